"""
The one background thread of an enforcer.

It follows the documents, reports that this instance is alive, and notices when an unavailable store is back. Requests
never wait for the thread. It does not wait long itself, as each duty is one short call, and it reads the change log
between duties. Only this thread probes an unavailable store, so a fleet sends one probe for each process and not one
for each request.

A duty that fails does not make the store unavailable, as decisions have other connections. It makes the thread try a
decision.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from enforcement.engine.change_log import ChangeLogReader
from enforcement.engine.duties import DiskCopy, DocumentLoader, Duty, Hooks, OnceLogger, UsageDelivery, read_key
from enforcement.engine.evictions import EVICTION_SECONDS, EvictionWatch
from enforcement.engine.heartbeat import Heartbeat, Identity, LimitReports
from enforcement.engine.store_clock import StoreClock, read_clock
from enforcement.engine.store_warnings import StoreWarnings
from enforcement.failover.lost_counters import LOOK_SECONDS
from enforcement.failover.outage_copy import OutageCopy
from enforcement.model.keys import Keys, fingerprint
from enforcement.state.disk import HostClock
from enforcement.state.published import PublishedState
from enforcement.store.absence import Absence
from enforcement.store.base_client import StoreClient
from enforcement.store.breaker import jittered
from enforcement.store.client import STORE_ERRORS, cause_of, is_refusal, reported
from enforcement.store.duty_failures import DutyFailures
from enforcement.usage.counts import UsageLog

if TYPE_CHECKING:
    from enforcement.engine.prices import PriceLoader

CHECK_SECONDS: Final = 2.0
HEARTBEAT_SECONDS: Final = 2.0
NEW_REVISION_SECONDS: Final = 0.1
"""A new revision is reported sooner than the next heartbeat, but not by all instances in one moment."""
DELIVERY_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.05
"""Before something is tried again that has just failed."""
LONGEST_RETRY_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 1.0
"""After an unexpected error."""

ALONE: Final = (
    "This process has started while the store is away, and knows of no other: it admits whole quotas by itself. Set "
    "SLUICEGATE_FLEET_SIZE to the number of instances, or SLUICEGATE_STATE_DIR to a folder that outlives a restart."
)

logger = logging.getLogger("sluicegate.agent")


class Agent:
    """
    The background thread. It is a daemon thread, and each process has one.

    Args:
        client_factory: Makes a client with short timeouts and without retries. Called again after a fork or a stop.
        keys: The keys of the store.
        documents: Kept at the state of the store. Only the agent writes them.
        usage: Delivered every second.
        identity: That of this instance.
        hooks: Called when the store is unavailable or back.
        state_dir: Folder for a copy of the documents, or None for no copy.
        look: Called every two seconds. It checks whether the store is still where it was.
        duty_failures: Decides whether a duty may fail alone, because a part of the store is unavailable.
        fallbacks: See :class:`Heartbeat`.
        limits: See :class:`Heartbeat`.
        failed: Called with the cause of each failed call of this thread.
        told_fleet: Whether a setting says how many instances share the quotas.
        copy: Saved in each turn, also while the store is unavailable. None: nothing is kept of an outage.

    Attributes:
        clock: The store's time.
        host_clock: The clock of this host.
        now_us: Returns the store's time. Every decision calls it.
        prices: Loads the prices. None: this process uses none.
    """

    def __init__(
        self,
        client_factory: Callable[[], StoreClient],
        keys: Keys,
        documents: PublishedState,
        usage: UsageLog,
        identity: Identity,
        hooks: Hooks,
        *,
        state_dir: Path | None = None,
        look: Callable[[], None] = lambda: None,
        duty_failures: DutyFailures | None = None,
        fallbacks: Callable[[], int] = lambda: 0,
        limits: LimitReports = MappingProxyType({}),
        failed: Callable[[str], None] = lambda cause: None,
        told_fleet: bool = True,
        copy: OutageCopy | None = None,
    ) -> None:
        self.documents = documents
        self.clock, self.host_clock = StoreClock(), HostClock()
        self.now_us = self.clock.now_us
        self._client_factory = client_factory
        self._keys = keys
        self._usage = usage
        self._hooks = hooks
        self._path = state_dir and state_dir / f"documents-{fingerprint((keys.prefix,))[:8]}"
        self._look = look
        self._duty_failures = duty_failures or DutyFailures()
        self._failed = failed
        self._told_fleet = told_fleet
        self._copy = copy
        self._heartbeat = Heartbeat(
            identity,
            keys,
            documents,
            usage,
            self.clock,
            fallbacks=fallbacks,
            limits=limits,
            problems=lambda: self._warnings.problems,
            remembered=lambda: self._copy.fleet_size if self._copy else 0,
        )
        self.report = self._heartbeat.report
        self._absence = Absence(lambda: self.clock.monotonic())
        self._thread: threading.Thread | None = None
        self.prices: PriceLoader | None = None
        self._price_duty: tuple[Duty, ...] = ()
        self._begin()

    def _begin(self) -> None:
        """Create everything that a forked child must not share with its parent."""
        self._client = self._client_factory()
        self._change_log = ChangeLogReader(self._client, self._keys.log, self.clock.monotonic)
        self._stopping, self._wake, self._loaded = threading.Event(), threading.Event(), threading.Event()
        self._once, self._warnings = OnceLogger(), StoreWarnings(self.now_us)
        self._make_duties()
        self._heartbeat.reset()
        self._duty_failures.reset()
        self._partly_lost_since_us: int | None = None
        self._absence.reset()
        self._doubted = self._owes = False
        self._log_failures = 0

    def _make_duties(self) -> None:
        client, documents, clock, earlier = self._client, self.documents, self.clock, getattr(self, "_loader", None)
        loader = self._loader = DocumentLoader(
            client, self._keys, documents, self._change_log, clock, self._once, self._loaded, self._warnings
        )
        if earlier is not None:
            loader.go_on_after(earlier)
        evictions = EvictionWatch(client, clock, self._warnings)
        self._delivery = UsageDelivery(client, self._keys, self._usage, self._once, lambda: documents.current.intakes)
        self._disk = DiskCopy(self._path, documents, self.host_clock)
        send = self._heartbeat.send
        self._beat = Duty("heartbeat", HEARTBEAT_SECONDS, lambda: send(client, self.state, self.degraded_since_us))
        self._duties = (
            # Once, and before the documents, as the ends of tokens are compared with the store's time.
            Duty("clock", float("inf"), lambda: read_clock(client, clock)),
            Duty("decision key", CHECK_SECONDS, lambda: read_key(client, self._keys, documents)),
            Duty("topology", CHECK_SECONDS, self._look),
            Duty("documents", CHECK_SECONDS, loader.check),
            *self._price_duty,
            self._beat,
            Duty("usage", DELIVERY_SECONDS, self._delivery.deliver),
            Duty("evictions", EVICTION_SECONDS, evictions.look),
            Duty("replay", LOOK_SECONDS, self._hooks.settle),
        )

    # For the owner and for readers.

    @property
    def identity(self) -> Identity:
        """The identity of this instance."""
        return self._heartbeat.identity

    @property
    def fleet_size(self) -> int:
        """The highest number of live instances in ten minutes, including this one."""
        return self._heartbeat.fleet_size

    @property
    def counts_fleet(self) -> bool:
        """Whether the store has told this process how many instances there are."""
        return self._heartbeat.counted

    @property
    def told_fleet_size(self) -> int:
        """The same, or 0 if neither the store nor an earlier process has told it."""
        return self.fleet_size if self._heartbeat.knows_fleet else 0

    @property
    def state(self) -> str:
        """``degraded`` while the store is in trouble, else ``starting`` until there are documents, else ``ok``."""
        if self.degraded_since_us is not None:
            return "degraded"
        return "ok" if self.documents.loaded else "starting"

    @property
    def degraded_since_us(self) -> int | None:
        """When the store, or a part of it, became unavailable, was set back or began to evict. None if all is well."""
        return self._absence.since_us or self._partly_lost_since_us or self._warnings.since_us

    @property
    def confirmed_at(self) -> float | None:
        """When the store last had the same documents, in monotonic seconds, or None if it never had."""
        return self._loader.confirmed_at

    def unconfirmed_for(self) -> float:
        """Return the seconds since the store last confirmed the documents, or since the start if it never did."""
        return self._loader.unconfirmed_for()

    def start(self) -> None:
        """Start the thread, unless it runs. It can be started again after ``stop()``."""
        if self._stopping.is_set():
            self._begin()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="sluicegate-agent", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """
        Have the thread deliver the usage, remove the heartbeat and end, and return whether it has ended.

        Args:
            timeout: Seconds to wait for that.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Have the thread replay charges, or begin to probe an unavailable store. Any thread may call this."""
        self._owes = True
        self._wake.set()

    def doubt(self) -> None:
        """Have the thread try soon whether the store still decides. Any thread may call this."""
        self._doubted = True
        self._wake.set()

    def follow_prices(self) -> PriceLoader:
        """Load the prices soon, and keep them as published from then on. Only one thread may call this, once."""
        from enforcement.engine.prices import PriceLoader  # most processes meter nothing

        path = self._path and self._path.with_name(self._path.name.replace("documents", "prices", 1))
        prices = self.prices = PriceLoader(self._keys, self.documents, path)
        self._price_duty = (Duty("prices", CHECK_SECONDS, lambda: prices.check(self._client, self._warnings)),)
        self._duties += self._price_duty
        self._wake.set()
        return prices

    def wait_loaded(self, timeout: float) -> bool:
        """
        Wait at most *timeout* seconds for documents, from the store or from disk, and return whether there are any.
        """
        return self._loaded.wait(timeout)

    def after_fork(self) -> None:
        """Take a new identity in a child process, and start the thread there if it ran in the parent."""
        ran = self._thread is not None and not self._stopping.is_set()
        self._thread = None
        self._heartbeat.after_fork()
        self.documents.after_fork()
        self._usage.after_fork(self.identity.id)
        self._change_log.after_fork()
        self._client.drop_inherited()
        if self.prices is not None:
            self.prices.after_fork()
        self._begin()
        if ran:
            self.start()

    # The thread.

    def _run(self) -> None:
        age_seconds = self._disk.restore()
        if age_seconds is not None:
            self._disk.confirmed_at = self._loader.restored(age_seconds)
        self._loader.resume()
        while not self._stopping.is_set():
            try:
                self._turn()
            except STORE_ERRORS as exc:
                self._failed(cause_of(exc))
                self._doubted = True
            # Only here is every error caught. Whatever is wrong, here or in a hook, requests are still decided. Without
            # this thread they would be decided by old documents for ever, and nobody would notice.
            except Exception:
                logger.exception("Unexpected error in the background thread, which continues.")
                self._change_log.close()
                self._stopping.wait(PAUSE_SECONDS)
        self._leave()

    def _turn(self) -> None:
        """Run the duties that are due, then apply changes from the log until another duty is due."""
        if self._copy is not None:
            self._copy.save(self.told_fleet_size)
        self._disk.save()
        self._disk.confirm(self._loader.confirmed_at, self.clock.monotonic())
        if self.prices is not None:
            self.prices.restore()
        self._wake.clear()
        if self._absence.since_us is not None:
            self._probe()
        elif self._hooks.is_open():
            self._change_log.close()
            self._absence.begin(self.now_us())
            self._client.reconnect()
            # The breaker logs the warning, once for whoever noticed first.
            logger.info("The store is away: decisions failed.")
            if not (self._told_fleet or self._heartbeat.knows_fleet):
                logger.warning("%s", ALONE)
        elif self._doubted:
            self._examine()
        elif self._settled():
            if not self._duty_failures.is_degraded():
                self._partly_lost_since_us = None
            elif self._partly_lost_since_us is None:
                self._partly_lost_since_us = self.now_us()
            self._work()

    def _examine(self) -> None:
        """Try a decision, and do so again after a short pause if the store did not make it."""
        self._doubted = False
        if not self._hooks.examine():
            self._doubted = True
            self._stopping.wait(jittered(RETRY_SECONDS))

    def _settled(self) -> bool:
        """Replay charges if ``wake()`` was called, and return False if the store did not accept them."""
        if self._owes:
            self._owes = False
            self._doubted = not self._hooks.recovered()
        return not self._doubted

    def _work(self) -> None:
        now = self.clock.monotonic()
        if self._heartbeat.notice():
            self._beat.due_at = min(self._beat.due_at, now + jittered(NEW_REVISION_SECONDS, least=0.0))
        if self.prices is not None and self.prices.is_stale:
            self._price_duty[0].due_at = now
        for duty in self._duties:
            if now >= duty.due_at:
                duty.due_at = now + duty.period
                if not self._attempt(duty.name, duty.act):
                    return  # the other duties follow in the next turn, if the store still decides
        if self._attempt("log", self._follow):
            self._log_failures = 0
            return
        self._change_log.close()
        self._stopping.wait(min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(self._log_failures, 10)))
        self._log_failures += 1

    def _attempt(self, duty: str, act: Callable[[], None]) -> bool:
        """Run a duty, and return whether the store answered. If it did not, whether it still decides is in doubt."""
        try:
            act()
        except STORE_ERRORS as exc:
            if not is_refusal(exc):
                self._failed(cause_of(exc))
                self._duty_failures.failed(duty, exc)
                self._doubted = True
                return False
            self._once.warn(f"The store refused the {duty}: {reported(exc)}")
            self._stopping.wait(RETRY_SECONDS)
        self._duty_failures.succeeded(duty)
        return True

    def _follow(self) -> None:
        """Apply the changes in the log to the documents until a duty is due."""
        until = min(duty.due_at for duty in self._duties)
        for change in self._change_log.entries(self._loader.cursor or "0-0", until, self._wake):
            if not self._loader.apply(change):
                break

    def _leave(self) -> None:
        self._change_log.close()
        self._disk.save(at_once=True)
        if self._absence.since_us is None:
            with contextlib.suppress(*STORE_ERRORS):
                self._delivery.deliver_rest()
                self._heartbeat.remove(self._client)
        self._client.close()

    # When the store is unavailable.

    def _probe(self) -> None:
        """Wait, check whether the store decides, and decide with it again if it does."""
        if self._stopping.wait(self._absence.pause()):
            return
        cause = self._hooks.obstacle()
        self._absence.note(cause)
        if cause:
            return
        self._client.reconnect()
        answers = self._attempt("documents", self._loader.check) and self._attempt("heartbeat", self._beat.act)
        if not answers or not self._hooks.recovered():
            return
        self._doubted = self._owes = False
        away_us = self.now_us() - (self._absence.since_us or 0)
        logger.info("The store is back after %.1f s.", away_us / 1_000_000)
        self._absence.end()
        self._beat.due_at = float("-inf")
