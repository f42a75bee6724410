"""
Load the published prices, in a process that meters requests.

Other processes never make a :class:`PriceLoader`. They neither read the prices nor keep them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

from enforcement.engine.store_warnings import StoreWarnings
from enforcement.failover.private_file import read, write
from enforcement.metering.price_documents import parse_prices
from enforcement.metering.prices import NO_PRICES, Prices
from enforcement.model.documents import InvalidDocument
from enforcement.model.keys import Keys
from enforcement.state.published import PublishedState
from enforcement.store.base_client import StoreClient
from enforcement.store_calls.instances import BAD_PRICES

FIRST_WAIT_SECONDS: Final = 1.0
"""How long the requests that come before the prices wait for them, all together."""

_HEADER: Final = b"sluicegate-prices 1\n"
_LONG_BYTES: Final = 64 * 1024
_SHARE_SECONDS: Final = 0.0005

logger = logging.getLogger("sluicegate.agent")


class _SwitchInterval:
    """
    The time after which the threads of this process take turns. One loader at a time shortens it.

    A decision waits for the thread that parses a long document several times: whenever its event loop wakes up. Parsing
    a megabyte takes some 50 ms, in which such a decision would take 30 ms longer if threads took turns after the usual
    five milliseconds.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._usual: float | None = None  # what is set back, while the interval is short

    @contextmanager
    def shortened(self, size: int) -> Iterator[None]:
        """Let other threads run after half a millisecond if a document of *size* bytes is long."""
        usual, lock = sys.getswitchinterval(), self._lock
        # If two threads load at a time, the one that came first sets it back.
        if size < _LONG_BYTES or usual <= _SHARE_SECONDS or not lock.acquire(blocking=False):
            yield
            return
        try:
            self._usual = usual
            sys.setswitchinterval(_SHARE_SECONDS)
            yield
        finally:
            sys.setswitchinterval(usual)
            self._usual = None
            lock.release()

    def after_fork(self) -> None:
        """Set the interval back in a child process. The thread that would have done so exists in the parent only."""
        if self._process == os.getpid():
            return  # another loader of this process was first, and a thread may be parsing again
        usual = self._usual
        self._begin()
        if usual is not None:
            sys.setswitchinterval(usual)


_switch_interval: Final = _SwitchInterval()


class PriceLoader:
    """
    Keeps the prices of this process as they were published last.

    They are read again when the documents say that they may have changed. A document that breaks a rule changes
    nothing: the last good prices stay in use, and the instance reports itself as degraded.

    The background thread calls :meth:`check`. Any thread may call everything else.

    Args:
        keys: The keys of the store.
        documents: Counts the publications that may have changed the prices.
        path: The file of a copy on disk, or None for no copy.

    Attributes:
        current: The prices in use. There are none until some are loaded.
        is_loaded: Whether it is known which prices are published, which may be none.
    """

    def __init__(self, keys: Keys, documents: PublishedState, path: Path | None) -> None:
        self.current: Prices = NO_PRICES
        self.is_loaded = False
        self._keys = keys
        self._documents = documents
        self._path = path
        self._text: bytes | None = None
        self._seen = -1
        self._restored = path is None
        self._begin()
        self._wait_until = monotonic() + FIRST_WAIT_SECONDS

    def _begin(self) -> None:
        """Create everything that a forked child must not share with its parent."""
        self._ready = threading.Event()
        self._changing = threading.Lock()

    @property
    def is_stale(self) -> bool:
        """Whether the published prices may be others than those that were read last."""
        return self._seen != self._documents.price_changes

    def wait(self) -> bool:
        """
        Wait for the first prices, as long as the first requests may, and return whether they are loaded.

        The copy on disk is read here, because the background thread may be waiting for a store that is away.
        """
        self.restore()
        return self.is_loaded or self._ready.wait(max(0.0, self._wait_until - monotonic()))

    def after_fork(self) -> None:
        """
        Prepare the prices for a child process. A thread of the parent may have held the locks, and may have been about
        to use prices that it had read, so the child reads them again.
        """
        _switch_interval.after_fork()
        self._begin()
        self._seen = -1
        self._restored = self.is_loaded or self._path is None
        if self.is_loaded:
            self._ready.set()

    def restore(self) -> None:
        """Load the prices from disk, once, unless the store has already given some. Nothing is raised."""
        if self._restored:
            return
        with self._changing:
            if not self._restored:
                self._restored = True
                self._read_copy()

    def _read_copy(self) -> None:
        assert self._path is not None
        try:
            (line,) = read(self._path, _HEADER)
            self._use(line or None)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:  # an InvalidDocument is a ValueError, too
            logger.warning("Ignored the saved prices in %s: %s", self._path, exc)
            return
        logger.info("Prices of revision %d were read from disk.", self.current.revision)

    def check(self, client: StoreClient, warnings: StoreWarnings) -> None:
        """Read the prices if they may have changed. Raises redis-py's errors."""
        changes = self._documents.price_changes
        if self._seen == changes:
            return
        # One command, so that the prices are those of this revision.
        names = self._keys.prices, self._keys.revision
        text, state = client.execute_command("MGET", *names, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
        revision, _, store_id = (state or b"").partition(b" ")
        if self._documents.is_ahead_of(revision, store_id):
            return  # The store lost its documents or was set back. What is in use stays, until it is repaired.
        self._seen = changes
        try:
            with self._changing:
                changed = not self.is_loaded or text != self._text
                if changed:
                    self._use(text)
                self._restored = True
        except InvalidDocument as exc:
            warnings.begin(BAD_PRICES, f"The prices are refused, the last good ones stay: {exc}")
            return
        warnings.end(BAD_PRICES, f"The prices of revision {self.current.revision} are in use.")
        if changed:
            logger.info("Prices of revision %d were loaded.", self.current.revision)
            self._save()

    def _use(self, text: bytes | None) -> None:
        """Use the prices of a document, or none for None. Raises InvalidDocument."""
        if text is None:
            self.current = NO_PRICES
        else:
            with _switch_interval.shortened(len(text)):
                self.current = parse_prices(text)
        self._text = text
        self._documents.price_revision = self.current.revision
        self.is_loaded = True
        self._ready.set()

    def _save(self) -> None:
        if self._path is None:
            return
        try:
            write(self._path, _HEADER, [(self._text or b"") + b"\n"])
        except OSError as exc:
            if not self._documents.disk_failures:
                logger.warning("Cannot write the last good prices to %s: %s", self._path, exc)
            self._documents.disk_failures += 1
