"""Build a limiter around the engine, and report its state. Both limiters inherit this."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Self

from enforcement.engine.asking import Asker
from enforcement.engine.engine import Engine
from enforcement.failover.health import BACKGROUND_BUDGET
from enforcement.failover.probe import probe_command
from enforcement.latency import Listener, Timing
from enforcement.model.keys import DEFAULT_PREFIX
from enforcement.model.matching import Attributes
from enforcement.plan.binding import BoundLimit, Limits
from enforcement.plan.commands import Steps
from enforcement.plan.decision import Decision
from enforcement.run_steps import run
from enforcement.settings import DEFAULT_LOOKUP, DEFAULT_TIMEOUT, DEFAULT_URL, Settings, folder_of, named_as, variables
from enforcement.state.live_plan import LivePlan
from enforcement.state.published import DerivedPlans
from enforcement.stats import Stats
from enforcement.store.credentials import Credentials, from_client

if TYPE_CHECKING:
    from enforcement.http.own_limits import OwnLimits
    from enforcement.metering.prices import Prices
    from enforcement.metering.tally import MeteredTally

MANY_LIMITERS = 16
"""
From this number on, a warning is logged: so many limiters in one process are a mistake, such as a new one a request.
"""
START_SECONDS = 1.0
"""How long ``start()`` waits for the documents of a store that replies."""


logger = logging.getLogger("sluicegate.limiter")


class BaseLimiter:
    """
    The base of both limiters.

    A limiter opens no connection and starts no thread before its first call. A background thread then follows the
    published documents, reports usage and sends the heartbeats of this instance.
    """

    def __init__(
        self,
        url: str | object = DEFAULT_URL,
        *,
        prefix: str = DEFAULT_PREFIX,
        instance: str | None = None,
        state_dir: str | Path | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        lookup: float = DEFAULT_LOOKUP,
        clock: Callable[[], int] | None = None,
        credentials: Credentials | None = None,
        fleet_size: int = 1,
        decision_key: str | None = None,
    ) -> None:
        """
        Make a limiter without any I/O.

        Args:
            url: URL of the store: ``redis://``, ``rediss://`` or ``unix://``, and for several servers
                ``redis+sentinel://host1,host2/service`` or ``redis+cluster://host1,host2``. ``valkey`` may stand for
                ``redis``. Or a redis-py client or connection pool of one server, whose address is taken.
            prefix: Prefix of all keys.
            instance: Its name in the fleet. None: made of the host's name, the process id and random characters.
            state_dir: Folder for the last good documents, with which it starts while the store is unavailable, and for
                what it has admitted then, so that a restart takes no second share. None: nothing is kept.
            timeout: Seconds that a decision may take, connecting included, 0.001 to 10. After that, each limit's
                ``on_store_failure`` decides.
            lookup: Seconds for reading the document of a token that this process has not met yet, 0.001 to 10. All
                requests with this token wait for one look-up, and the decision after it has its own *timeout*.
            clock: Returns microseconds since the epoch as an integer, for tests. None: the store's clock.
            credentials: Returns user and password for each new connection, for passwords that expire. It must return at
                once. None: those of *url*.
            fleet_size: How many instances share the quotas at least while the store is unavailable, 1 to 100,000. A
                process that starts then takes this part of each quota, or a smaller one if it knows of more instances.
            decision_key: The secret of decision ids, 16 to 256 characters, the same in the whole fleet. None: the one
                that the control plane keeps in the store.
        Raises:
            ValueError: An argument breaks a rule. The message names it.
        """
        folder = None if state_dir is None else folder_of(state_dir)
        place, own = (url, None) if isinstance(url, str) else from_client(url)
        own = credentials or own
        spans = timeout, lookup, clock
        self._set_up(Settings(place, prefix, instance, folder, *spans, own, fleet_size, decision_key))

    @classmethod
    def from_env(cls) -> Self:
        """
        Return a new limiter with the settings from environment variables.

        The page "Settings" of the documentation (``templates/docs/settings.md``) lists them. The most important one is
        ``SLUICEGATE_REDIS_URL``, the URL of the store.

        Raises:
            ValueError: A variable breaks a rule. The message names it.
        """
        with named_as(variables(os.environ)):
            return cls.from_settings(Settings.from_env())

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return a new limiter with these settings, or raise ValueError if the URL or the prefix is not valid."""
        limiter = cls.__new__(cls)
        limiter._set_up(settings)
        return limiter

    def _set_up(self, settings: Settings) -> None:
        self._engine = Engine(settings)
        # Every decision needs these. Here they cost one look-up.
        self._decider = self._engine.decider
        self._begin = self._decider.begin
        self._budget = settings.timeout
        self._documents = self._engine.documents
        self._in_code = self._engine.planner.in_code
        self._queues = self._engine.queues
        self._rest()
        self._timing: Timing | None = None
        _limiters.add(self)

    def _rest(self) -> None:
        """Forget that the limiter was started, so that the next call starts it."""
        self._started = self._ready = False
        _running.discard(self._engine)
        self._ready_by: float | None = None

    def _start(self, timeout: float) -> bool:
        self._begin_running()
        loaded = self._engine.start(timeout)
        self._ready = True
        return loaded

    def _begin_running(self) -> None:
        self._started = True
        _running.add(self._engine)
        if len(_running) == MANY_LIMITERS:
            logger.warning(
                "%d limiters run in this process, each with threads, connections and a place in the fleet. One is "
                "enough for all requests: make it once, and close() the others.",
                MANY_LIMITERS,
            )

    def _first_wait(self) -> float:
        """Return the seconds that the requests which come before the documents still wait for them, all together."""
        if self._ready_by is None:
            self._ready_by = monotonic() + START_SECONDS
        return max(0.0, self._ready_by - monotonic())

    def __repr__(self) -> str:
        engine = self._engine
        return f"<{type(self).__module__}.{type(self).__name__} {engine.agent.identity.id} {engine.state}>"

    @property
    def state(self) -> str:
        """The state of the limiter, which is ``starting``, ``ok`` or ``degraded``."""
        return self._engine.state

    @property
    def revision(self) -> int:
        """The published revision that this limiter uses, or 0 before the first."""
        return self._engine.documents.current.revision

    @property
    def derived(self) -> DerivedPlans:
        """Data that integrations keep for as long as the present documents are in use. See :class:`DerivedPlans`."""
        return self._documents.derived

    @property
    def prices(self) -> Prices:
        """
        The published prices that this limiter uses, as far as they are loaded.

        A limiter loads prices from the first use of this property on. ``find_prices()`` waits for them.
        """
        return self._engine.prices().current

    def now_us(self) -> int:
        """Return the time of the store in microseconds since the epoch, as far as it is known."""
        return self._engine.health.now_us()

    def stats(self) -> Stats:
        """
        Return a new record of this limiter's decisions and failures so far, and of its present state. Any thread may
        call this.
        """
        return self._engine.stats(self._timing)

    def report(self, name: str, report: Callable[[], Mapping[str, int]]) -> None:
        """Have each heartbeat say under *name* what a function returns. This is for Sluicegate's own proxy."""
        self._engine.agent.report(name, report)

    def time_store_calls(self, listener: Listener | None = None) -> None:
        """
        Record from now on how long the store takes to reply, for :meth:`stats` and a *listener*. This adds about a
        microsecond to each call to the store.

        Args:
            listener: Called with the seconds of each call. It must be quick and must not raise.
        """
        if self._timing is None:
            self._timing = Timing()
            self._time_calls(self._timing)
        if listener is not None:
            self._timing.listeners.append(listener)

    def noted(self, decision: Decision, attributes: Attributes | None) -> Decision:
        """Return the decision on a request, after adding these attributes to it in the sample of denials."""
        if attributes and not decision.allowed:
            self._engine.usage.sample.describe(decision, attributes)
        return decision

    def note_unsupported(self, plan: LivePlan, bound: BoundLimit, reason: str) -> None:
        """
        Report in the next heartbeats that this process refuses requests under a limit, because it cannot enforce it.

        Args:
            reason: A key of :data:`~enforcement.store_calls.instances.UNSUPPORTED_REASONS`.
        """
        name = plan.subject[0], bound.policy_slug, bound.limit.name, reason
        self._engine.planner.unsupported.note(name, monotonic())

    def looked_at(self, token: object) -> frozenset[str]:
        """Return the names of the attributes of requests that the limits of a token look at, as far as it is known."""
        return self._engine.planner.looked_at(token)

    def reading_own_limits(self, token: object, attributes: Attributes) -> Steps[OwnLimits | None] | None:
        """
        Return steps whose result is the limits of a token, or None if the document of the token must be read again.

        Args:
            token: A token that :meth:`find_plan` has just found.
            attributes: Those of the request, which select the counters of partitioned limits.
        Raises:
            ValueError: The attributes are not a small mapping of strings.
        """
        return self._engine.own_limits.reading(token, attributes)

    def metered_tally(self) -> MeteredTally:
        """Return where this process counts how metered requests were settled. Its usage then reports them."""
        return self._engine.usage.metering()

    def _time_calls(self, timing: Timing) -> None:
        raise NotImplementedError

    def _ping(self) -> None:
        pipe = self._engine.health.connector.pipe(BACKGROUND_BUDGET, respects_breakers=False)
        try:
            run(Asker(self._engine.health).calling(probe_command(self._engine.keys)), pipe.call)
        finally:
            pipe.close()

    def _plan_in_code(self, limits: Limits, key: str | None) -> LivePlan:
        if not self._started:
            self._begin_running()
            self._engine.start_quietly()
        return self._engine.planner.plan_in_code(limits, key)


_limiters: weakref.WeakSet[BaseLimiter] = weakref.WeakSet()
_running: set[Engine] = set()
"""The engines that were started and not stopped, also those of limiters that nobody refers to any more."""


def _after_fork() -> None:
    _running.clear()
    for limiter in list(_limiters):
        if limiter._started:
            _running.add(limiter._engine)
            limiter._engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_at_exit() -> None:
    """Stop what is not closed when the process ends, so that nothing that it counted is lost."""
    while _running:
        _running.pop().stop()
