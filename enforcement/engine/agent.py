"""
The one background thread of an enforcer.

It follows the documents, reports that this instance is alive, and notices when the store is unavailable or back.
Requests never wait for the thread. It does not wait long itself, as each duty is one short call, and it reads the
change log between duties. Only this thread probes an unavailable store, so a fleet sends one probe for each process and
not one for each request.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from redis.exceptions import NoPermissionError, ResponseError

from enforcement.engine.change_log import ChangeLogReader
from enforcement.engine.duties import DiskCopy, DocumentLoader, Duty, OnceLogger, UsageDelivery, read_clock, read_key
from enforcement.engine.heartbeat import Heartbeat, Identity
from enforcement.engine.store_clock import StoreClock
from enforcement.failover.lost_counters import LOOK_SECONDS
from enforcement.model.keys import Keys, fingerprint
from enforcement.state.published import PublishedState
from enforcement.state.usage import UsageLog
from enforcement.store.base_client import StoreClient
from enforcement.store.breaker import jittered
from enforcement.store.client import STORE_ERRORS, cause_of
from enforcement.store.duty_failures import DutyFailures

CHECK_SECONDS: Final = 2.0
HEARTBEAT_SECONDS: Final = 2.0
NEW_REVISION_SECONDS: Final = 0.1
"""A new revision is reported sooner than the next heartbeat, but not by all instances in one moment."""
DELIVERY_SECONDS: Final = 1.0
SAVE_SECONDS: Final = 5.0
FIRST_PROBE_SECONDS: Final = 0.05
LONGEST_PROBE_SECONDS: Final = 1.0
STEADY_SECONDS: Final = 10.0
"""If the store is lost again sooner, the probes continue at their last pace. Each return costs a few slow decisions."""
PAUSE_SECONDS: Final = 1.0
"""After an unexpected error."""

logger = logging.getLogger("sluicegate.agent")


class Hooks(Protocol):
    """What the agent calls, in its own thread. Each method may raise any store error."""

    def is_open(self) -> bool:
        """Return whether all requests are decided without the store."""

    def lost(self, reason: str) -> None:
        """Open the breaker of an unavailable store, for a *reason* that begins with its cause and a colon."""

    def recovered(self) -> bool:
        """Replay charges to a store that answers, decide with it again, and return whether that worked."""

    def settle(self) -> None:
        """Replay the charges that could not be replayed when the store came back."""


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
        overflowing: See :class:`Heartbeat`.
        unmetered: See :class:`Heartbeat`.
        failed: Called with the cause of each failed call of this thread.

    Attributes:
        clock: The store's time.
        now_us: Returns the store's time. Every decision calls it.
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
        overflowing: Callable[[], Sequence[Sequence[str]]] = list,
        unmetered: Callable[[], Sequence[Sequence[str]]] = list,
        failed: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self.documents = documents
        self.clock = StoreClock()
        self.now_us = self.clock.now_us
        self._client_factory = client_factory
        self._keys = keys
        self._usage = usage
        self._hooks = hooks
        self._path = state_dir and state_dir / f"documents-{fingerprint((keys.prefix,))[:8]}"
        self._look = look
        self._duty_failures = duty_failures or DutyFailures()
        self._failed = failed
        reports = {"overflowing": overflowing, "unmetered": unmetered}
        self._heartbeat = Heartbeat(identity, keys, documents, usage, self.clock, fallbacks=fallbacks, **reports)
        self._lost_since_us: int | None = None
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        """Create everything that a forked child must not share with its parent."""
        self._client = self._client_factory()
        self._change_log = ChangeLogReader(self._client, self._keys.log, self.clock.monotonic)
        self._stopping, self._wake, self._loaded = threading.Event(), threading.Event(), threading.Event()
        self._once = OnceLogger()
        self._make_duties()
        self._heartbeat.reset()
        self._duty_failures.reset()
        self._partly_lost_since_us: int | None = None
        self._probes = 0
        self._back_at = float("-inf")
        self._lost_for = ""

    def _make_duties(self) -> None:
        client, documents, clock = self._client, self.documents, self.clock
        self._loader = DocumentLoader(
            client, self._keys, documents, self._change_log, clock, self._once, loaded=self._loaded
        )
        self._delivery = UsageDelivery(client, self._keys, self._usage)
        self._disk = DiskCopy(self._path, documents)
        self._beat = Duty("heartbeat", HEARTBEAT_SECONDS, self._send_heartbeat)
        self._duties = (
            # Once, and before the documents, as the ends of tokens are compared with the store's time.
            Duty("clock", float("inf"), lambda: read_clock(client, clock)),
            Duty("decision key", CHECK_SECONDS, lambda: read_key(client, self._keys, documents)),
            Duty("topology", CHECK_SECONDS, self._look),
            Duty("documents", CHECK_SECONDS, self._loader.check),
            self._beat,
            Duty("usage", DELIVERY_SECONDS, self._delivery.deliver),
            Duty("replay", LOOK_SECONDS, self._hooks.settle),
            Duty("disk", SAVE_SECONDS, self._disk.save),
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
    def state(self) -> str:
        """``starting`` until there are documents, then ``ok``, or ``degraded`` while the store is unavailable."""
        if self.degraded_since_us is not None:
            return "degraded"
        return "ok" if self.documents.loaded else "starting"

    @property
    def degraded_since_us(self) -> int | None:
        """
        When the store, or a part of it, became unavailable, in microseconds since the epoch, or None if all is
        available.
        """
        return self._partly_lost_since_us if self._lost_since_us is None else self._lost_since_us

    @property
    def clock_offset_us(self) -> int:
        """The store's time minus this host's, in microseconds."""
        return self.clock.offset_us()

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
        """Have the thread check the store at once, and replay charges. Any thread may call this."""
        self._wake.set()

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
        self._begin()
        if ran:
            self.start()

    # The thread.

    def _run(self) -> None:
        self._disk.restore()
        self._loader.resume()
        while not self._stopping.is_set():
            try:
                self._turn()
            except STORE_ERRORS as exc:
                self._failed(cause_of(exc))
                self._lose(f"{cause_of(exc)}: {exc}")
            # Only here is every error caught. Whatever is wrong, here or in a hook, requests are still decided. Without
            # this thread they would be decided by old documents for ever, and nobody would notice.
            except Exception:
                logger.exception("Unexpected error in the background thread, which continues.")
                self._change_log.close()
                self._stopping.wait(PAUSE_SECONDS)
        self._leave()

    def _turn(self) -> None:
        """
        Probe a store that is unavailable, else run the duties that are due and apply changes until another one is due.
        """
        if self._lost_since_us is not None:
            self._probe()
            return
        if self._hooks.is_open() or not self._settled():
            self._lose("")
            return
        if not self._duty_failures.is_degraded():
            self._partly_lost_since_us = None
        elif self._partly_lost_since_us is None:
            self._partly_lost_since_us = self.now_us()
        self._work()

    def _settled(self) -> bool:
        """Replay charges if ``wake()`` was called, and return False if the store did not accept them, else True."""
        if not self._wake.is_set():
            return True
        self._wake.clear()
        return self._hooks.recovered()

    def _work(self) -> None:
        now = self.clock.monotonic()
        if self.documents.current.revision != self._heartbeat.reported_revision:
            self._beat.due_at = min(self._beat.due_at, now + jittered(NEW_REVISION_SECONDS, least=0.0))
        for duty in self._duties:
            if now >= duty.due_at:
                duty.due_at = now + duty.period
                self._attempt(duty.name, duty.act)
        self._attempt("log", self._follow)

    def _attempt(self, duty: str, act: Callable[[], None]) -> None:
        """Run a duty, and if it fails, log that, or raise the error if the other duties cannot go on either."""
        try:
            act()
        except STORE_ERRORS as exc:
            if _is_refusal(exc):
                self._once.warn(f"The store refused the {duty}: {exc}")
                self._stopping.wait(FIRST_PROBE_SECONDS)
            else:
                self._duty_failures.failed(duty, exc)
                if duty == "log":
                    self._change_log.close()
                    self._stopping.wait(FIRST_PROBE_SECONDS)
                return
        self._duty_failures.succeeded(duty)

    def _follow(self) -> None:
        """Apply the changes in the log to the documents until a duty is due."""
        until = min(duty.due_at for duty in self._duties)
        for change in self._change_log.entries(self._loader.cursor or "0-0", until, self._wake):
            if not self._loader.apply(change):
                break

    def _send_heartbeat(self) -> None:
        self._heartbeat.send(self._client, self.state, self.degraded_since_us)

    def _leave(self) -> None:
        self._change_log.close()
        self._disk.save()
        if self._lost_since_us is None:
            with contextlib.suppress(*STORE_ERRORS):
                self._delivery.deliver()
                self._heartbeat.remove(self._client)
        self._client.close()

    # When the store is unavailable.

    def _lose(self, reason: str) -> None:
        self._change_log.close()
        if self._lost_since_us is None:
            self._lost_since_us = self.now_us()
            if self.clock.monotonic() - self._back_at > STEADY_SECONDS:
                self._probes = 0
            # The breaker logs the warning, once for whoever noticed first.
            logger.info("The store is away: %s.", reason or "requests could not reach it")
        cause = reason.partition(":")[0]
        if not self._hooks.is_open() or (cause and cause != self._lost_for):
            self._hooks.lost(reason or "it did not accept the charges made without it")
        self._lost_for = cause or self._lost_for
        self._client.reconnect()

    def _probe(self) -> None:
        """
        Wait, check whether the store answers, and decide with it again if it does.

        The wait is a random part of a growing time, so that instances which lost the store in one moment do not return
        in one.
        """
        longest = min(LONGEST_PROBE_SECONDS, FIRST_PROBE_SECONDS * 2.0 ** min(self._probes, 10))
        self._probes += 1
        if self._stopping.wait(jittered(longest)):
            return
        self._client.ping()
        self._attempt("documents", self._loader.check)
        self._attempt("heartbeat", self._send_heartbeat)
        self._wake.clear()
        if not self._hooks.recovered():
            return
        away_us = self.now_us() - (self._lost_since_us or 0)
        self._lost_since_us = None
        self._back_at = self.clock.monotonic()
        self._beat.due_at = float("-inf")
        logger.info("The store is back after %.1f s.", away_us / 1_000_000)


def _is_refusal(exc: Exception) -> bool:
    """Return whether an error says that this account lacks a right, or that a key has the wrong type."""
    return isinstance(exc, ResponseError) and (isinstance(exc, NoPermissionError) or str(exc).startswith("WRONGTYPE"))


__all__ = ["Agent", "Hooks"]
