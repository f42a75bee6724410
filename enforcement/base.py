"""What the two limiters have in common around the engine: how they are made, and what they tell of themselves."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from enforcement.engine.engine import Engine
from enforcement.latency import Listener, Timing
from enforcement.model.keys import DEFAULT_PREFIX
from enforcement.model.limits import Limit
from enforcement.model.matching import Attributes
from enforcement.settings import DEFAULT_TIMEOUT, DEFAULT_URL, Settings
from enforcement.state.live_plan import LivePlan
from enforcement.stats import Stats

START_SECONDS = 1.0
"""How long ``start()`` waits for the documents of a store that answers."""

Limits = Limit | Sequence[Limit]


class BaseLimiter:
    """
    A limiter before it does any I/O.

    Nothing happens before the first call: no connection, no thread. A background thread then follows the published
    documents, reports usage and tells the fleet that this instance lives.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        prefix: str = DEFAULT_PREFIX,
        instance: str | None = None,
        state_dir: str | Path | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """
        Make a limiter, and do no I/O.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://`` of the store; ``redis+sentinel://host1,host2/service`` or
                ``redis+cluster://host1,host2`` where it is several servers.
            prefix: What all keys begin with.
            instance: Its name in the fleet; None: made of host, process and chance.
            state_dir: Folder for the last good documents, so that it can start while the store is away; None: not kept.
            timeout: Seconds a decision may take, connecting included, 0.001 to 10; beyond it the limit's
                ``on_store_failure`` decides.
            clock: Whole microseconds since the epoch, for tests; None: the store's clock.
        Raises:
            ValueError: One of them cannot be used; the text names it.
        """
        folder = None if state_dir is None else Path(state_dir)
        self._set_up(
            Settings(url=url, prefix=prefix, instance=instance, state_dir=folder, timeout=timeout, clock=clock)
        )

    @classmethod
    def from_env(cls) -> Self:
        """
        Return a limiter made from ``SLUICEGATE_REDIS_URL`` (else ``REDIS_URL``) and its sisters; the README lists them.

        Raises:
            ValueError: A variable that cannot be used.
        """
        limiter = cls.__new__(cls)
        limiter._set_up(Settings.from_env())
        return limiter

    def _set_up(self, settings: Settings) -> None:
        self._engine = Engine(settings)
        # What every decision asks, one look-up away.
        self._decider = self._engine.decider
        self._begin = self._decider.begin
        self._documents = self._engine.documents
        self._in_code = self._engine.planner.in_code
        self._started = False
        self._timing: Timing | None = None
        _limiters.add(self)

    @property
    def state(self) -> str:
        """``starting``, ``ok`` or ``degraded``."""
        return self._engine.state

    @property
    def revision(self) -> int:
        """The published revision that it obeys; 0 before it has one."""
        return self._engine.documents.current.revision

    def stats(self) -> Stats:
        """Return what this limiter has done and how it is, in numbers; any thread may ask, as often as it likes."""
        return self._engine.stats(self._timing)

    def time_store_calls(self, listener: Listener | None = None) -> None:
        """
        Measure from now on how long the store takes to answer, which costs each call to it about a microsecond.

        Args:
            listener: Told the seconds of each call; it must be quick, and must not raise.
        """
        if self._timing is None:
            self._timing = Timing()
            self._time_calls(self._timing)
        if listener is not None:
            self._timing.listeners.append(listener)

    def _time_calls(self, timing: Timing) -> None:
        raise NotImplementedError

    def _plan_in_code(self, limits: Limits, key: str) -> LivePlan:
        if not self._started:
            self._started = True
            self._engine.start_quietly()
        return self._engine.planner.plan_in_code(limits, key)


def check_subject(subject: object, key: str | None, attributes: Attributes | None) -> None:
    """Raise TypeError for what does not go together: a token with a key, or limits in code with attributes."""
    if isinstance(subject, str):
        if key is not None:
            raise TypeError("key: belongs to limits in code, not to a token; Limit.parse() makes a limit of a text.")
    elif attributes is not None:
        raise TypeError("attributes: belong to a token; limits in code look at none.")


_limiters: weakref.WeakSet[BaseLimiter] = weakref.WeakSet()


def _after_fork() -> None:
    for shell in list(_limiters):
        if shell._started:
            shell._engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
