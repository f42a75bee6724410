"""
The one background thread of an enforcer: it follows the documents, says that it lives, and finds the store again.

Requests never wait for it, and it never waits long: each duty is one short call, and between duties it listens to the
change log. It alone probes a store that is away, so a fleet asks once a process and not once a request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from redis.exceptions import NoPermissionError, ResponseError

from enforcement.engine.change_log import ChangeLogReader, LogChange
from enforcement.failover.lost_counters import LOOK_SECONDS
from enforcement.lua import function
from enforcement.model.keys import Keys, fingerprint
from enforcement.state.disk import restore, save
from enforcement.state.published import PublishedState
from enforcement.state.usage import UsageLog
from enforcement.store.base_client import StoreClient
from enforcement.store.breaker import jittered
from enforcement.store.client import STORE_ERRORS, cause_of, is_unknown_function, load_library
from enforcement.store.duty_failures import DutyFailures

CHECK_SECONDS: Final = 2.0
HEARTBEAT_SECONDS: Final = 2.0
TELL_SECONDS: Final = 0.1
"""A new revision is told about sooner, but not by all instances in one moment."""
HEARTBEAT_LIFETIME_MS: Final = 15_000
FLEET_SECONDS: Final = 600.0
FLUSH_SECONDS: Final = 1.0
SAVE_SECONDS: Final = 5.0
MAX_STREAM_LENGTH: Final = 100_000
TOKENS_PER_READ: Final = 500
FIRST_PROBE_SECONDS: Final = 0.05
LONGEST_PROBE_SECONDS: Final = 1.0
STEADY_SECONDS: Final = 10.0
"""A store that is lost again sooner is probed no more often than before: each return costs a few slow decisions."""
PAUSE_SECONDS: Final = 1.0
"""After an error that nobody foresaw."""

logger = logging.getLogger("sluicegate.agent")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an instance is: a name that no other instance has, where it runs, and the version of this library."""

    id: str
    host: str
    pid: int
    version: str

    def of_child(self) -> Identity:
        """Return the identity of this process, forked from the one that bears the present name."""
        pid = os.getpid()
        return replace(self, id=f"{self.id[:80]}-{pid}-{secrets.token_hex(2)}", pid=pid)


class Hooks(Protocol):
    """What the agent asks of those who decide. Called in the agent's thread; any store error may come out of them."""

    def is_open(self) -> bool:
        """Whether all requests are decided without the store."""

    def lost(self, reason: str) -> None:
        """The agent found the store away, or away for another cause; *reason* is its cause, and more after a colon."""

    def recovered(self) -> bool:
        """The store answers: settle what is owed and decide with it again. False: it does not answer well enough."""

    def settle(self) -> None:
        """Charge what was decided without the store and could not be charged when it came back."""


class Agent:
    """
    One daemon thread a process.

    Args:
        client_factory: Makes a client with short timeouts and without retries; called anew after a fork or a stop.
        keys: The keys of the store.
        documents: Kept at the store's state. The agent is their only writer.
        usage: Delivered every second.
        identity: Told to the control plane.
        hooks: The limiter.
        state_dir: Folder for the last good documents; None: they are not kept.
        look: Called every two seconds: looks whether the store is still where it was.
        duty_failures: Decides whether a duty may fail alone, because a part of the store is unavailable.
        fallbacks: Decisions made without the store so far.
        overflowing: Limits that had no place for a value lately: project id, policy id and name of each.
        failed: Told the cause of each call of the background that failed.
        monotonic: Seconds, for whatever lasts.
        wall_us: Microseconds since the epoch, for what is told to others.

    Attributes:
        fleet_size: The most instances seen alive in ten minutes, this one among them.
        confirmed_at: When the store last said that it has the documents obeyed, monotonic seconds; None: not yet.
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
        failed: Callable[[str], None] = lambda cause: None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self.documents = documents
        self.identity = identity
        self.fleet_size = 1
        self._lost_since_us: int | None = None
        self._client_factory = client_factory
        self._keys = keys
        self._usage = usage
        self._hooks = hooks
        self._path = state_dir and state_dir / f"documents-{fingerprint((keys.prefix,))[:8]}"
        self._look = look
        self._duty_failures = duty_failures or DutyFailures()
        self._fallbacks = fallbacks
        self._overflowing = overflowing
        self._failed = failed
        self._monotonic = monotonic
        self._wall_us = wall_us
        # The store's time less monotonic time: a wall clock that is set while the store is away must not move windows.
        self._ahead_us = wall_us() - self._passed_us()
        self._given = identity
        self._started_at_us = wall_us()
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        """Set what a forked child must not share with its parent."""
        self._client = self._client_factory()
        self._change_log = ChangeLogReader(self._client, self._keys.log, self._monotonic)
        self._stopping, self._wake, self._loaded = threading.Event(), threading.Event(), threading.Event()
        self._due = dict.fromkeys(self._duties(), float("-inf"))
        self._cursor = ""
        self._told = 0
        self._behind: int | None = None
        self.confirmed_at: float | None = None
        self._begun_at = self._monotonic()
        self._partly_lost_since_us: int | None = None
        self._duty_failures.reset()
        self._probes = 0
        self._back_at = float("-inf")
        self._lost_for = ""
        self._fleet: deque[tuple[float, int]] = deque()
        self._saved = (self.documents.generation, self.documents.kept)
        self._said: set[str] = set()

    # For the owner and for readers.

    @property
    def state(self) -> str:
        """``starting`` until there are documents, then ``ok``; ``degraded`` while any of the store is unavailable."""
        if self.degraded_since_us is not None:
            return "degraded"
        return "ok" if self.documents.loaded else "starting"

    @property
    def degraded_since_us(self) -> int | None:
        """When the store, or a part of it, became unavailable; None: all of it is available."""
        return self._partly_lost_since_us if self._lost_since_us is None else self._lost_since_us

    @property
    def acknowledged(self) -> int:
        """The revision that is obeyed; 0: none."""
        return self.documents.current.revision

    @property
    def store_id(self) -> str:
        """The identity of the store whose documents are obeyed."""
        return self.documents.current.store_id

    def now_us(self) -> int:
        """Return the store's time as far as is known, microseconds since the epoch; before it told, this process'."""
        return self._passed_us() + self._ahead_us

    @property
    def clock_offset_us(self) -> int:
        """The store's time less this process'."""
        return self.now_us() - self._wall_us()

    def _passed_us(self) -> int:
        return int(self._monotonic() * 1_000_000)

    def _set_clock(self, store_us: int, sent_us: int) -> None:
        """Take the store's time over, which it told to a question that was sent at *sent_us* of monotonic time."""
        self._ahead_us = store_us - (sent_us + self._passed_us()) // 2

    def unconfirmed_for(self) -> float:
        """Return for how many seconds the store has not said that the documents obeyed are its present ones."""
        return self._monotonic() - (self._begun_at if self.confirmed_at is None else self.confirmed_at)

    def start(self) -> None:
        """Start the thread, unless it runs; also once more after ``stop()``."""
        if self._stopping.is_set():
            self._begin()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="sluicegate-agent", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """
        Deliver the usage, take the heartbeat away and end the thread; tell whether it has ended.

        Args:
            timeout: Give up waiting after so many seconds.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Look at once whether the store is there, and let the hooks settle what is owed. Any thread may call."""
        self._wake.set()

    def wait_loaded(self, timeout: float) -> bool:
        """Wait until there are documents, from the store or from disk; tell whether there are."""
        return self._loaded.wait(timeout)

    def after_fork(self) -> None:
        """Go on in a child process, under a name of its own, if the parent's thread ran."""
        ran = self._thread is not None and not self._stopping.is_set()
        self._thread = None
        self.identity = self._given.of_child()
        self._started_at_us = self._wall_us()
        self.documents.after_fork()
        self._usage.after_fork(self.identity.id)
        self._change_log.after_fork()
        self._client.drop_inherited()
        self._begin()
        if ran:
            self.start()

    # The thread.

    def _run(self) -> None:
        self._restore()
        while not self._stopping.is_set():
            try:
                self._turn()
            except STORE_ERRORS as exc:
                self._failed(cause_of(exc))
                self._lose(f"{cause_of(exc)}: {exc}")
            # The one place that catches all: whatever is wrong, in here or in a hook, requests go on being decided, and
            # without this thread they would obey old documents for ever and nobody would know.
            except Exception:
                logger.exception("The background thread met an error and goes on.")
                self._change_log.close()
                self._stopping.wait(PAUSE_SECONDS)
        self._leave()

    def _turn(self) -> None:
        """Do what is due, then listen to the log until something is."""
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

    def _work(self) -> None:
        now = self._monotonic()
        if self.acknowledged != self._told:
            self._due["heartbeat"] = min(self._due["heartbeat"], now + jittered(TELL_SECONDS, least=0.0))
        for duty, (seconds, act) in self._duties().items():
            if now >= self._due[duty]:
                self._due[duty] = now + seconds
                self._attempt(duty, act)
        self._attempt("log", self._follow)

    def _duties(self) -> dict[str, tuple[float, Callable[[], None]]]:
        return {
            # Before the documents, once: whoever waits for these judges the ends of tokens by the store's clock.
            "clock": (float("inf"), self._read_clock),
            "place": (CHECK_SECONDS, self._look),
            "documents": (CHECK_SECONDS, self._check),
            "heartbeat": (HEARTBEAT_SECONDS, self._beat),
            "usage": (FLUSH_SECONDS, self._flush),
            "debts": (LOOK_SECONDS, self._hooks.settle),
            "disk": (SAVE_SECONDS, self._save),
        }

    def _settled(self) -> bool:
        """Answer a ``wake()``: let the hooks settle what is owed, and tell whether the store took it."""
        if not self._wake.is_set():
            return True
        self._wake.clear()
        return self._hooks.recovered()

    def _attempt(self, duty: str, act: Callable[[], None]) -> None:
        """Do a duty; if it fails, go on with the others where the store allows that."""
        try:
            self._try(duty, act)
        except STORE_ERRORS as exc:
            self._duty_failures.failed(duty, exc)
            if duty == "log":
                self._change_log.close()
                self._stopping.wait(FIRST_PROBE_SECONDS)
        else:
            self._duty_failures.succeeded(duty)

    def _try(self, duty: str, act: Callable[[], None]) -> None:
        """
        Do a duty. What this instance may not do, or finds a key of another kind for, is said once and left undone: the
        store is not away for that.
        """
        try:
            act()
        except ResponseError as exc:
            if not isinstance(exc, NoPermissionError) and not str(exc).startswith("WRONGTYPE"):
                raise
            self._say_once(f"The store refused the {duty}: {exc}")
            self._stopping.wait(FIRST_PROBE_SECONDS)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    # Documents.

    def _follow(self) -> None:
        """Apply what the log says, until something else is due."""
        until = min(self._due.values())
        for entry in self._change_log.entries(self._cursor or "0-0", until, self._wake):
            # Also an entry that cannot be applied is behind us: reading it again would not help.
            self._cursor = entry.id
            if not self._apply(entry):
                self._load()
                break

    def _apply(self, entry: LogChange) -> bool:
        return entry.changes is not None and self.documents.apply(entry.revision, entry.changes)

    def _check(self) -> None:
        """
        Compare the store's state with the one obeyed; load everything if the log does not lead from one to the other.

        That is so if the store is another one, or went back, or was ahead already at the check before.
        """
        revision, store_id = self._raw("HMGET", self._keys.documents, "revision", "store_id")
        current = self.documents.current
        if revision is None:
            if self.documents.loaded:
                self._say_once(f"The store lost its documents; those of revision {current.revision} stay.")
            return  # limits in code need none
        present = int(revision) if revision.isdigit() and len(revision) <= 16 else 0
        other = store_id != current.store_id.encode() or present < current.revision
        stuck = self._behind is not None and current.revision < self._behind
        if other or stuck or not self.documents.loaded:
            self._load_anew()
        self._behind = present if present > self.documents.current.revision else None
        if self.documents.loaded and self._behind is None:
            self.confirmed_at = self._monotonic()

    def _load_anew(self) -> None:
        """Load everything, and read the log from there on."""
        if self._load():
            self._change_log.close()
            self._cursor = f"{self.documents.current.revision}-0"

    def _load(self) -> bool:
        raw = self._raw("HGETALL", self._keys.documents)
        # After the documents, so that no token is older than the revision that is acknowledged with them.
        tokens = dict(self._read_tokens(self.documents.cached()))
        problems = self.documents.load(raw, tokens)
        texts = [f"{it.document} is refused, the last good one stays: {it.reason}" for it in problems]
        for text in texts:
            self._say_once(text)
        if any(problem.whole for problem in problems):
            return False
        # What is mended and breaks again is worth saying again.
        self._said.intersection_update(texts)
        self._loaded.set()
        logger.info("Documents of revision %d were loaded from store %s.", self.acknowledged, self.store_id)
        return True

    def _read_tokens(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        for start in range(0, len(digests), TOKENS_PER_READ):
            some = digests[start : start + TOKENS_PER_READ]
            yield from zip(some, self._raw("MGET", *map(self._keys.token, some)), strict=True)

    def _raw(self, *command: str) -> Any:
        # Undecoded: one byte that is no UTF-8 would fail the whole answer, and not the document that holds it.
        return self._client.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]

    # The other duties.

    def _read_clock(self) -> None:
        sent_us = self._passed_us()
        seconds, microseconds = self._client.time()
        self._set_clock(seconds * 1_000_000 + microseconds, sent_us)

    def _beat(self) -> None:
        sent_us, self._told = self._passed_us(), self.acknowledged
        text = json.dumps(self._heartbeat(), separators=(",", ":"))
        keys = (self._keys.instance(self.identity.id), self._keys.instances)
        now_us, alive = self._call(function("heartbeat"), keys, ("", self.identity.id, text, HEARTBEAT_LIFETIME_MS))
        self._set_clock(now_us, sent_us)
        self._count_fleet(alive)

    def _heartbeat(self) -> Mapping[str, Any]:
        counts = {"allowed": self._usage.allowed, "denied": self._usage.denied, "fallback": self._fallbacks()}
        return {
            "id": self.identity.id,
            "host": self.identity.host,
            "pid": self.identity.pid,
            "version": self.identity.version,
            "revision": self.acknowledged,
            "state": self.state,
            "started_at_us": self._started_at_us,
            "seen_at_us": self.now_us(),
            "store_id": self.store_id,
            "decisions": counts,
            "degraded_since_us": self.degraded_since_us,
            "overflowing": self._overflowing(),
        }

    def _call(self, name: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Call a function of the library; a store that lost the library gets it back."""
        try:
            return self._client.fcall(name, len(keys), *keys, *args)
        except ResponseError as exc:
            if not is_unknown_function(exc):
                raise
        load_library(self._client)
        logger.warning("The store had no function library and was given it.")
        return self._client.fcall(name, len(keys), *keys, *args)

    def _count_fleet(self, alive: int) -> None:
        """Keep the most: an instance that the store cannot see now may well be admitting on its own."""
        now = self._monotonic()
        self._fleet.append((now, alive))
        while self._fleet[0][0] < now - FLEET_SECONDS:
            self._fleet.popleft()
        self.fleet_size = max(1, *(seen for _, seen in self._fleet))

    def _flush(self) -> None:
        for batch in self._usage.drain():
            fields = {"id": batch.id, "instance": batch.instance, "rows": batch.rows}
            self._client.xadd(self._keys.usage, fields, maxlen=MAX_STREAM_LENGTH, approximate=True)  # type: ignore[arg-type]
            self._usage.delivered(batch)

    def _save(self) -> None:
        present = (self.documents.generation, self.documents.kept)
        if self._path is not None and self.documents.loaded and present != self._saved:
            self._saved = present
            save(self._path, self.documents)

    def _restore(self) -> None:
        if self._path is not None and not self.documents.loaded and restore(self._path, self.documents):
            logger.info("Documents of revision %d were read from disk.", self.acknowledged)
        if self.documents.loaded:
            self._loaded.set()
            self._cursor = f"{self.acknowledged}-0"

    def _leave(self) -> None:
        self._change_log.close()
        self._save()
        if self._lost_since_us is None:
            with contextlib.suppress(*STORE_ERRORS):
                self._flush()
                self._client.unlink(self._keys.instance(self.identity.id))
                self._client.zrem(self._keys.instances, self.identity.id)
        self._client.close()

    # When the store is away.

    def _lose(self, reason: str) -> None:
        self._change_log.close()
        if self._lost_since_us is None:
            self._lost_since_us = self.now_us()
            if self._monotonic() - self._back_at > STEADY_SECONDS:
                self._probes = 0
            # The breaker warns, once for all who find it away.
            logger.info("The store is away: %s.", reason or "requests found it so")
        cause = reason.partition(":")[0]
        if not self._hooks.is_open() or (cause and cause != self._lost_for):
            self._hooks.lost(reason or "owed charges were not taken")
        self._lost_for = cause or self._lost_for
        self._client.reconnect()

    def _probe(self) -> None:
        """
        Wait, ask the store whether it is there, and come back if it is.

        A random part of a growing time: instances that lost the store in one moment do not return in one.
        """
        longest = min(LONGEST_PROBE_SECONDS, FIRST_PROBE_SECONDS * 2.0 ** min(self._probes, 10))
        self._probes += 1
        if self._stopping.wait(jittered(longest)):
            return
        self._client.ping()
        self._attempt("documents", self._check)
        self._attempt("heartbeat", self._beat)
        self._wake.clear()
        if not self._hooks.recovered():
            return
        away_us = self.now_us() - (self._lost_since_us or 0)
        self._lost_since_us = None
        self._back_at = self._monotonic()
        self._due["heartbeat"] = float("-inf")
        logger.info("The store is back after %.1f s.", away_us / 1_000_000)


__all__ = ["Agent", "Hooks", "Identity"]
