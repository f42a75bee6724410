"""The duties of the background thread, and what it calls. Each is one short call, made when it is due."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

from redis.exceptions import NoPermissionError, ResponseError

from enforcement.engine.change_log import ChangeLogReader, LogChange
from enforcement.engine.store_clock import StoreClock
from enforcement.engine.store_warnings import StoreWarnings
from enforcement.model.checks import is_secret
from enforcement.model.documents import StateName
from enforcement.model.keys import GLOBAL_TAG, Keys
from enforcement.state.disk import HostClock, restore, save, save_confirmation, unconfirmed_seconds
from enforcement.state.published import PublishedState, name_of
from enforcement.store.base_client import StoreClient
from enforcement.store_calls.instances import SET_BACK
from enforcement.usage.batch import OutgoingBatch
from enforcement.usage.counts import MAX_ROWS_PER_BATCH, MAX_UNDELIVERED, MAX_WAITING_ROWS, UsageLog
from enforcement.usage.intakes import by_project, denials_by_project, id_in_intake
from enforcement.usage.shards import read_shards

MAX_STREAM_LENGTH: Final = 100_000
MAX_DENIALS_LENGTH: Final = 10_000
DELIVERIES_OF_ALL: Final = 1 + MAX_WAITING_ROWS // (MAX_UNDELIVERED * MAX_ROWS_PER_BATCH)
"""How often a process that ends delivers at most. All rows that may wait need so many deliveries."""
TOKENS_PER_READ: Final = 500
CONFIRM_SECONDS: Final = 10.0
"""How often it is written to disk at most that the store has confirmed the documents."""
SAVE_SECONDS: Final = 1.0
"""How often a copy is written to disk at most, if documents were published."""
SAVE_TOKENS_SECONDS: Final = 5.0
"""The same if only tokens were met."""

logger = logging.getLogger("sluicegate.agent")


class Hooks(Protocol):
    """Callbacks of the agent, which calls them in its own thread. Each method may raise any store error."""

    def is_open(self) -> bool:
        """Return whether all requests are decided without the store."""

    def examine(self) -> bool:
        """Try a decision, open the breaker after several failures, and return False if the store may be unavailable."""

    def obstacle(self) -> str:
        """Return the cause why an unavailable store still cannot decide, or an empty string if it can."""

    def recovered(self) -> bool:
        """Replay charges to a store that answers, decide with it again, and return whether that worked."""

    def settle(self) -> None:
        """Replay the charges that could not be replayed when the store came back."""


class Duty:
    """
    One duty of the background thread.

    Args:
        name: The noun for it in log lines.
        period: Seconds between two calls of ``act``.
        act: Does it. It may raise redis-py's errors.
    Attributes:
        due_at: When it is due, in seconds of monotonic time.
    """

    __slots__ = ("act", "due_at", "name", "period")

    def __init__(self, name: str, period: float, act: Callable[[], None]) -> None:
        self.name = name
        self.period = period
        self.act = act
        self.due_at = float("-inf")


class OnceLogger:
    """Logs each warning once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def warn(self, text: str) -> None:
        """Log a warning, unless the same text was logged before."""
        if text not in self._logged:
            self._logged.add(text)
            logger.warning("%s", text)

    def forget_except(self, texts: Collection[str]) -> None:
        """Allow all texts except these to be logged again."""
        self._logged.intersection_update(texts)


class DocumentLoader:
    """
    Keeps the documents of this process at the state of the store.

    The change log brings single changes. If it does not lead to the state of the store, everything is loaded. A state
    before the present one is never loaded.

    Args:
        client: Reads the store.
        keys: The keys of the store.
        documents: The loader is their only writer.
        change_log: Closed when it has to be read from another entry on.
        clock: Its monotonic time is used.
        once: Logs what is wrong with the store's documents.
        loaded: Set as soon as there are documents.
        warnings: Gets the problem of a store that was set back.

    Attributes:
        cursor: The id of the last entry of the change log that was read, or an empty string.
        confirmed_at: When the store last had the same documents, in monotonic seconds, or None.
    """

    def __init__(
        self,
        client: StoreClient,
        keys: Keys,
        documents: PublishedState,
        change_log: ChangeLogReader,
        clock: StoreClock,
        once: OnceLogger,
        loaded: threading.Event,
        warnings: StoreWarnings,
    ) -> None:
        self._client = client
        self._keys = keys
        self._documents = documents
        self._change_log = change_log
        self._clock = clock
        self._once = once
        self._loaded = loaded
        self._warnings = warnings
        self._behind: StateName | None = None
        self._is_set_back = False
        self._knows_rights = False
        self._begun_at = clock.monotonic()
        self.cursor = ""
        self.confirmed_at: float | None = None

    def unconfirmed_for(self) -> float:
        """Return the seconds since the store last confirmed the documents, or since the start if it never did."""
        return self._clock.monotonic() - (self._begun_at if self.confirmed_at is None else self.confirmed_at)

    def go_on_after(self, earlier: DocumentLoader) -> None:
        """Trust the documents for no longer than an earlier loader did, as in a child process."""
        self._begun_at, self.confirmed_at = earlier._begun_at, earlier.confirmed_at

    def restored(self, age_seconds: float) -> float:
        """Note how long ago the store confirmed the documents, which are from disk, and return when that was."""
        self.confirmed_at = self._clock.monotonic() - age_seconds
        return self.confirmed_at

    def resume(self) -> None:
        """Set the position in the change log to the documents that this process has already, if it has any."""
        if self._documents.loaded:
            self._loaded.set()
            self.cursor = f"{self._documents.current.revision}-0"

    def apply(self, change: LogChange) -> bool:
        """Apply one change and return True, or load all documents and return False if the change does not fit."""
        # The cursor also passes an entry that cannot be applied, as reading it again would not help.
        self.cursor = change.id
        if change.changes is not None and self._documents.apply(change.revision, change.changes, change.store_id):
            return True
        self._load()
        return False

    def check(self) -> None:
        """
        Load all documents if the revision in the store shows that reading the log will not bring this process there.

        It does so if no documents are loaded yet, and if the store is another one or was repaired, or was ahead at the
        previous check already. A store that was set back is used for counters only.
        """
        self._learn_rights()
        revision, store_id = self._read("HMGET", self._keys.documents, "revision", "store_id")
        current, loaded = self._documents.current, self._documents.loaded
        if revision is None:
            if loaded:
                self._once.warn(f"The store lost its documents; {current.name} remains in force.")
            return  # Limits in code need no documents.
        present = name_of(revision, store_id)
        if loaded and present is not None and present < current.name:
            text = (
                f"The store was set back to {present}; {current.name} remains in force until a later one is published."
            )
            self._warnings.begin(SET_BACK, text)
            self._is_set_back = True
            return
        other = present is None or store_id != current.store_id.encode() or self._is_set_back
        stuck = self._behind is not None and current.name < self._behind
        if other or stuck or not loaded:
            self._load_anew()
        current = self._documents.current
        self._behind = present if present is not None and present > current.name else None
        if self._documents.loaded and present is not None and self._behind is None:
            self.confirmed_at = self._clock.monotonic()
            self._is_set_back = False
            self._warnings.end(SET_BACK, f"The store is no longer behind; {current.name} is in force.")

    def _load_anew(self) -> None:
        """Load all documents, and if that works, read the log from there on."""
        if self._load():
            self._change_log.close()
            self.cursor = f"{self._documents.current.revision}-0"

    def _load(self) -> bool:
        raw = self._read("HGETALL", self._keys.documents)
        # Tokens are read after the documents, so that none is older than the revision that is acknowledged.
        tokens = dict(self._read_tokens(self._documents.cached()))
        if self._is_older(raw):
            return False  # it was set back between the two, and the tokens may be outdated
        problems = self._documents.load(raw, tokens)
        texts = [f"{it.document} is refused, the last good one stays: {it.reason}" for it in problems]
        for text in texts:
            self._once.warn(text)
        if any(problem.whole for problem in problems):
            return False
        # A document that is repaired and breaks again is logged again.
        self._once.forget_except(texts)
        self._loaded.set()
        current = self._documents.current
        logger.info("Documents of %s were loaded from store %s.", current.name, current.store_id)
        return True

    def _learn_rights(self) -> None:
        """Ask once, before there are documents, whether the account may use the counters of the global policy."""
        if self._knows_rights:
            return
        try:
            self._read("MGET", f"{self._keys.scope(GLOBAL_TAG)}rights")
        except NoPermissionError:
            self._documents.lacks_global = True
            self._documents.outdate()
            logger.warning(
                "The account of the store has no right on global counters (store_acl --no-global), so each request "
                "under a limit of the global policy is refused. Ask a decision service, or make the account anew."
            )
        self._knows_rights = True

    def _is_older(self, raw: Mapping[bytes, bytes]) -> bool:
        """Return whether the store has a state before the one that was read from it, or before the present one."""
        read = name_of(raw.get(b"revision"), raw.get(b"store_id"))
        if read is None:
            return False  # loading it says why
        now = name_of(*self._read("HMGET", self._keys.documents, "revision", "store_id"))
        return now is None or now < read or read < self._documents.current.name

    def _read_tokens(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        for start in range(0, len(digests), TOKENS_PER_READ):
            some = digests[start : start + TOKENS_PER_READ]
            yield from zip(some, self._read("MGET", *map(self._keys.token, some)), strict=True)

    def _read(self, *command: str) -> Any:
        # Replies are not decoded, as one byte that is not UTF-8 would spoil all documents and not only its own.
        return self._client.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]


class UsageDelivery:
    """
    Delivers the usage of this process.

    It goes to streams that all projects share. An account of the store that is limited to projects may not write there,
    and so writes to the intake of each project.

    Args:
        client: Reaches the store.
        keys: Has the key of the usage stream.
        usage: Batches come from it. One that fails is sent again with the same id.
        once: Logs usage that nobody reads, or that the account may write nowhere.
        intakes: Returns the ids of the projects of which the control plane reads the intake.
    """

    def __init__(
        self,
        client: StoreClient,
        keys: Keys,
        usage: UsageLog,
        once: OnceLogger | None = None,
        intakes: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._client = client
        self._keys = keys
        self._usage = usage
        self._once = once or OnceLogger()
        self._intakes = intakes
        self._shards: int | None = None
        self._is_limited = False

    def deliver(self) -> None:
        """
        Add all undelivered batches and the sampled denials to the streams of the store. Raises redis-py's errors.

        Denials that the store does not accept are dropped, as they are only a sample.
        """
        self._shards = None
        for batch in self._usage.drain(self._read_shards):
            self._add(batch)
            self._usage.delivered(batch)
        rows = self._usage.sample.take()
        if rows is not None:
            self._deliver_denials(rows)

    def _deliver_denials(self, rows: str) -> None:
        instance = {"instance": self._usage.instance}
        with contextlib.suppress(NoPermissionError):  # an account made by 0.2 may not write them
            if not self._is_limited:
                self._append(self._keys.denials, {**instance, "rows": rows}, MAX_DENIALS_LENGTH)
                return
        for project, own in denials_by_project(rows).items() if self._is_limited else ():
            with contextlib.suppress(NoPermissionError):
                self._append(self._keys.intake(project), {**instance, "denials": own})

    def deliver_rest(self) -> None:
        """
        Deliver what is counted until now, also if one delivery does not take all of it. Raises redis-py's errors.

        Requests that are counted meanwhile do not prolong it for ever.
        """
        for _ in range(DELIVERIES_OF_ALL):
            self.deliver()
            if not self._usage.is_waiting:
                break

    def _read_shards(self) -> int:
        """
        Return the number of shards that the control plane announces now, or 0 without any. It is read once a delivery.

        A control plane that reads no shards announces none, and its announcement ends soon after it has stopped.
        """
        if self._is_limited:
            return 0
        if self._shards is None:
            try:
                # Not decoded, as any byte may be there, and an error would stop all deliveries.
                found = self._client.execute_command("GET", self._keys.usage_shards, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
                self._shards = read_shards(found)
            except ResponseError:  # an account made by an earlier version may not read it
                self._shards = 0
        return self._shards

    def _add(self, batch: OutgoingBatch) -> None:
        if not self._is_limited:
            try:
                self._add_to_shared(batch)
                return
            except NoPermissionError:
                self._is_limited = True
        for project, part in by_project(batch).items():
            self._add_to_intake(project, part)

    def _add_to_intake(self, project: str, part: OutgoingBatch) -> None:
        try:
            self._append(self._keys.intake(project), part.fields())
            if project not in self._intakes():
                advice = f"run 'manage.py store_acl --project' for {project}"
                self._once.warn(f"Nobody reads the usage that this account of the store reports: {advice}.")
            return
        except NoPermissionError:
            pass
        try:
            # The account may have other rights than before. The id is the one that the control plane gives to a batch
            # of an intake, so that it counts once if this was sent to both.
            self._append(self._keys.usage, part._replace(id=id_in_intake(part.id, project)).fields())
            self._is_limited = False
        except NoPermissionError as exc:
            self._usage.dropped += sum(row[6] + row[7] for row in json.loads(part.rows) if row[4] == "")
            self._once.warn(f"The account of the store may not report usage of {project}, which is missing: {exc}")

    def _add_to_shared(self, batch: OutgoingBatch) -> None:
        if batch.shard is not None and batch.shard < self._read_shards():
            # If the store refuses a shard, its rows go to the stream that every account may write.
            with contextlib.suppress(ResponseError):
                self._append(self._keys.usage_shard(batch.shard), batch.fields())
                return
        self._append(self._keys.usage, batch.fields())

    def _append(self, stream: str, fields: dict[str, str], at_most: int = MAX_STREAM_LENGTH) -> None:
        self._client.xadd(stream, fields, maxlen=at_most, approximate=True)  # type: ignore[arg-type]


class DiskCopy:
    """
    Keeps a copy of the documents on disk, and when the store confirmed them last.

    Args:
        path: The file, or None if no copy is kept.
        documents: Saved when they have changed since the last time.
        clock: That of this host, which goes on while no process runs.

    Attributes:
        confirmed_at: The confirmation that the disk has, in seconds of the clock that :meth:`confirm` is called with.
    """

    def __init__(self, path: Path | None, documents: PublishedState, clock: HostClock) -> None:
        self._path = path
        self._documents = documents
        self._clock = clock
        self._saved = self._present()
        self._tried_at = float("-inf")
        self.confirmed_at = float("-inf")

    def restore(self) -> float | None:
        """
        Load the documents from disk, unless this process has some already.

        Returns:
            For how many seconds the store has not confirmed them. None if nothing was loaded.
        """
        documents, path = self._documents, self._path
        if path is None or documents.loaded or not restore(path, documents):
            return None
        self._saved = self._present()
        logger.info("Documents of revision %d were read from disk.", documents.current.revision)
        return unconfirmed_seconds(_confirmation_of(path), path, self._clock)

    def confirm(self, confirmed_at: float | None, now: float) -> None:
        """
        Write when the store confirmed the documents last, if the disk has them, at most every ten seconds.

        Args:
            confirmed_at: When that was, or None if it never did.
            now: The present time of the same clock, in seconds.
        """
        if self._path is None or confirmed_at is None or self._saved[0] != self._documents.generation:
            return
        if confirmed_at - self.confirmed_at >= CONFIRM_SECONDS:
            self.confirmed_at = confirmed_at
            try:
                save_confirmation(_confirmation_of(self._path), now - confirmed_at, self._clock)
            except OSError as exc:
                if not self._documents.disk_failures:
                    logger.warning("Cannot write to %s: %s", self._path.parent, exc)
                self._documents.disk_failures += 1

    def save(self, *, at_once: bool = False) -> None:
        """
        Write the documents to disk if they have changed.

        A publication is written at once or within a second, so that a process that dies does not forget a revocation.
        Tokens that were only met wait longer, as a copy takes a while if there are many.

        Args:
            at_once: Whether to write a change that came too soon after another one, because this process ends.
        """
        present = self._present()
        if self._path is None or not self._documents.loaded or present == self._saved:
            return
        pause = SAVE_TOKENS_SECONDS if present[0] == self._saved[0] else SAVE_SECONDS
        if at_once or monotonic() - self._tried_at >= pause:
            self._tried_at = monotonic()
            if save(self._path, self._documents):
                self._saved = present

    def _present(self) -> tuple[int, int]:
        return self._documents.generation, self._documents.kept


def _confirmation_of(path: Path) -> Path:
    return path.with_name(path.name.replace("documents", "confirmed", 1))


def read_key(client: StoreClient, keys: Keys, documents: PublishedState) -> None:
    """
    Set the secret of decision ids to that of the store. Raises redis-py's errors.

    A store of 0.2 has none, and an account made by 0.2 may not read it. The last one stays then, also one from disk.
    """
    try:
        (found,) = client.mget([keys.decision_key])  # so that GET is only sent for tokens, which operators count
    except NoPermissionError:
        return
    if is_secret(found):
        documents.decision_key = str(found)
