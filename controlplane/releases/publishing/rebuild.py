"""
The tokens of a full publication, which are written in parts ahead of it.

All of them in one call would keep the store from deciding for seconds, and fill the memory of this process. Enforcers
obey the parts with the publication that ends the rebuild. Each part is read from SQL after the state of the store, and
the store refuses it if another publisher came in between. A mark in the store shows that no part of it was lost.

A thread prolongs the mark and the lock while the rebuild gets on. So a slow part loses neither of them, and after a
rebuild that was killed the next one begins within seconds. One that hangs, as on a connection to a database that is cut
off, gives way after a minute, because no revocation is published while it has the lock.

A task of Celery has a time limit, which is too short for a million tokens on a slow machine. A rebuild in a task
therefore ends after a slice of its work, and leaves its mark and its place in the store. The next task goes on there.
What changes between the two is published by itself, or together with the end of the rebuild.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import batched

import redis

from controlplane.core import store
from controlplane.core.locks import prolong
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import compile
from enforcement.store.client import STORE_ERRORS, call_function
from enforcement.store_calls.publication import LOST, TAKEN, WRITTEN, write_tokens_call

# Tokens of a part, which is read from SQL at once.
TOKENS_AT_ONCE = 1000
# The store decides nothing while it writes these, which takes about 3 milliseconds.
WRITTEN_AT_ONCE = 250
# How often changes that came during the rebuild are published.
PAUSE_SECONDS = 0.5
# How often the lock and the mark are prolonged. The lock has 5 seconds, so that it survives a store that is slow once.
PROLONGED_SECONDS = 1.0
# For how long they are prolonged without a part that is written. The end of a rebuild, which reads all other documents,
# takes seconds in a large installation.
LONGEST_PART_SECONDS = 60.0
# How long a task writes tokens, at most. Its soft time limit leaves more than as much again for the end of the rebuild.
SLICE_SECONDS = 20.0
# How long the place of a rebuild is kept for the next task. A worker that restarts, or a queue, may delay that task.
PLACE_TTL_MS = 120_000
# Publications that may come first between two parts. More of them are not published one at a time.
ATTEMPTS = 20

Progress = Callable[[int, int], None]
"""Gets the number of tokens that are written, and the number of all."""


class Busy(RuntimeError):
    """Raised if other publishers write to the store, so that this one must wait."""


class Unfinished(RuntimeError):
    """Raised if a slice of the rebuild has ended. The next task goes on at the place that it has left."""


@dataclass(slots=True)
class Rebuild:
    """
    A rebuild of the store.

    Attributes:
        in_slices: Whether it goes on where an earlier one stopped, and stops itself when its slice is over. Otherwise
            it begins anew, and writes all tokens.
        mark: Names it in the store. Empty: no token was written yet, or they were lost.
        tokens: The number of tokens that were written.
    """

    lock: str
    lock_ttl_ms: int
    progress: Progress | None = None
    in_slices: bool = False
    mark: str = ""
    tokens: int = 0
    # The id of the last token that was written, empty before the first, None after the last.
    _last: str | None = ""
    _moved_at: float = field(default_factory=time.monotonic)
    _ends: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def write(self, client: redis.Redis, now: datetime, meanwhile: Callable[[], object]) -> None:
        """
        Write all published tokens to the store. If the store is emptied meanwhile, ``mark`` is empty afterwards.

        Args:
            meanwhile: Called between two parts, often enough that a change does not wait for long.
        Raises:
            Busy: Another publisher rebuilds the store, or others publish without a pause.
            Unfinished: The slice of this task is over.
            One of STORE_ERRORS: The store is unavailable.
        """
        total = Token.objects.count() if self.progress else 0
        self.mark, self.tokens, self._last = secrets.token_hex(16), 0, ""
        self._take_over(client)
        self._stay_alive(client)
        paused = ends = time.monotonic()
        ends += SLICE_SECONDS
        while self._last is not None:
            self._last = self._write_after(self._last, client, now)
            self._moved_at = time.monotonic()
            if self.progress:
                self.progress(self.tokens, total)
            if self.in_slices and self.mark and time.monotonic() > ends:
                raise Unfinished(f"The rebuild of the store goes on in the next task, after {self.tokens} tokens.")
            if time.monotonic() - paused > PAUSE_SECONDS:
                meanwhile()
                paused = time.monotonic()

    def _take_over(self, client: redis.Redis) -> None:
        """Go on with a rebuild that a task has left, or if this one does not work in slices, begin in its place."""
        place = client.get(store.keys().rebuild_place)
        # Only one process takes it: the one that deletes it.
        if not place or not client.delete(store.keys().rebuild_place):
            return
        left = json.loads(place)
        if self.in_slices:
            self.mark, self.tokens, self._last = left["mark"], left["tokens"], left["last"]
        elif client.get(store.keys().rebuild) == left["mark"]:
            client.delete(store.keys().rebuild)

    def _leave(self, client: redis.Redis) -> None:
        """Keep the mark and the place for the next task, if the mark is still in the store."""
        keys = store.keys()
        if client.get(keys.rebuild) != self.mark:
            return
        place = {"mark": self.mark, "tokens": self.tokens, "last": self._last}
        with client.pipeline(transaction=True) as pipe:
            # Not if it expires now, because what was written may be lost with it.
            pipe.set(keys.rebuild, self.mark, xx=True, px=PLACE_TTL_MS)
            pipe.set(keys.rebuild_place, json.dumps(place), px=PLACE_TTL_MS)
            pipe.execute()

    def _write_after(self, last: str, client: redis.Redis, now: datetime) -> str | None:
        """Write the next tokens after the id *last*, and return the id of the last one of them, or None at the end."""
        for _ in range(ATTEMPTS):
            # Read before the tokens are, as publisher.py explains.
            state = store.StoreState.read(client)
            part = compile.tokens_after(last, now, TOKENS_AT_ONCE)
            reply = self._send(part, state, client, begins=last == "")
            if reply == WRITTEN:
                self.tokens += len(part)
                return next(reversed(part.values()))["id"] if part else None
            if reply == LOST:
                self.mark = ""
                return None
            if reply == TAKEN:
                raise Busy("Another publisher writes all tokens.")
        raise Busy(f"Other publishers came first in {ATTEMPTS} attempts.")

    def _send(
        self, part: dict[str, compile.Document], state: store.StoreState, client: redis.Redis, *, begins: bool
    ) -> int:
        """Write a part, and return the reply of the store to the last call, which is that it refused if it did."""
        reply = WRITTEN
        # Also without any token, so that the store has the mark.
        for some in batched(part.items(), WRITTEN_AT_ONCE) if part else [()]:
            reply = _write(client, dict(some), state, self.mark, begins=begins)
            if reply != WRITTEN:
                break
            begins = False  # a store that is emptied from now on must refuse the rest
        return reply

    def _stay_alive(self, client: redis.Redis) -> None:
        """Start the thread that prolongs the lock and the mark, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._prolong, args=(client,), name="rebuild", daemon=True)
            self._thread.start()

    def _prolong(self, client: redis.Redis) -> None:
        while not self._ends.wait(PROLONGED_SECONDS):
            if time.monotonic() - self._moved_at > LONGEST_PART_SECONDS:
                continue
            with suppress(*STORE_ERRORS):
                prolong(client, self.lock, self.lock_ttl_ms)
                if mark := self.mark:
                    # A part without tokens. The store refuses it if the mark is gone, as tokens were lost with it.
                    _write(client, {}, store.StoreState.read(client), mark, begins=False)

    @contextmanager
    def ended(self, client: redis.Redis) -> Iterator[None]:
        """
        Run the block, and then remove the mark if it is still this one, so that no other rebuild waits for it.

        If the block of a rebuild in slices fails, as at the time limit of a task, its mark and its place stay.
        """
        leave = self.in_slices
        try:
            yield
            leave = False
        finally:
            if self._thread is not None:
                self._ends.set()
                self._thread.join()
            if self.mark:
                with suppress(*STORE_ERRORS):
                    if leave:
                        self._leave(client)
                    elif client.get(store.keys().rebuild) == self.mark:
                        client.delete(store.keys().rebuild)


def unknown_tokens(client: redis.Redis, now: datetime) -> Iterator[str]:
    """
    Yield the digest of each token in the store that SQL does not publish, because it was deleted or expired long ago.

    Such tokens come from a restored backup of the store. All keys are scanned, so no request waits for this.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    keys = store.keys()
    for batch in batched(client.scan_iter(match=keys.token("*"), count=TOKENS_AT_ONCE), TOKENS_AT_ONCE):
        digests = {key.rpartition(":")[2] for key in batch if key != keys.revision}
        yield from digests - compile.published_among(digests, now)


def _write(
    client: redis.Redis, part: dict[str, compile.Document], state: store.StoreState, mark: str, *, begins: bool
) -> int:
    """Write tokens to a store that still has this state, give the mark its full time to live, and return the reply."""
    name = (str(state.revision or ""), state.store_id)
    return call_function(client, *write_tokens_call(part, name, mark, store.keys(), begins=begins))
