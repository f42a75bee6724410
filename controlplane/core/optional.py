"""
Sources of what only advises: usage, previews, heartbeats, counters. An error of one refuses no page and no save.

Each is logged once, counted by its source for /metrics, and named on the page.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import wraps
from time import monotonic
from typing import Any

from django.core.cache import cache
from django.db import connection, transaction

from controlplane.core.requests import PerRequest
from enforcement.logs import RateLimitedLogger

USAGE, PREVIEW, HEARTBEATS, COUNTERS, PRICES = "usage", "preview", "heartbeats", "counters", "prices"
# In words, for the sentence on a page.
SOURCES = {
    USAGE: "usage",
    PREVIEW: "what requests were like",
    HEARTBEATS: "the heartbeats of instances",
    COUNTERS: "counters",
    PRICES: "what models use",
}
# The log has the traceback of one error of a source in this time.
QUIET_SECONDS = 60.0
# A store that hangs must not hold up each page, so a process adds its numbers at most so often.
COUNTED_EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)
_log = RateLimitedLogger(logger, seconds=QUIET_SECONDS)
# The sources that a request only reads, although its view reads others or none.
read_by: PerRequest[set[str]] = PerRequest(lambda request: set())
_unread: ContextVar[tuple[str, ...]] = ContextVar("unread", default=())


def optional[**P, T](
    source: str, otherwise: Callable[..., Any], *, of_store: bool = False
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """
    Return a decorator for a function that reads a source. If it raises, the result is that of *otherwise*.

    Args:
        source: One of SOURCES.
        otherwise: Takes the same arguments, reads nothing, and returns what stands for "not known".
        of_store: Whether the function reads the store alone, and no table.
    """

    def decorated(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def reading(*args: P.args, **keywords: P.kwargs) -> T:
            try:
                with nullcontext() if of_store else _apart():
                    return read(*args, **keywords)
            except Exception as exc:  # noqa: BLE001  (whatever a hostile or damaged source makes of its readers)
                note(source, exc)
                return otherwise(*args, **keywords)

        return reading

    return decorated


def _apart() -> AbstractContextManager[None]:
    """Return a context in which an error of the database spoils no open transaction, as one of PostgreSQL would."""
    is_open = connection.vendor == "postgresql" and connection.in_atomic_block
    return transaction.atomic() if is_open else nullcontext()


def note(source: str, exc: Exception) -> None:
    """Log an error of a source unless one was logged lately, count it, and name the source on the present page."""
    _log.warning(source, "An optional source failed (%s): %s", source, exc, exc_info=exc)
    _unread.set((*(one for one in _unread.get() if one != source), source))
    _errors.add(source)


class _Errors:
    """Adds the errors of this process to those of all processes, which are in the cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._next = 0.0

    def add(self, source: str) -> None:
        with self._lock:
            self._waiting[source] += 1
            now = monotonic()
            if now < self._next:
                return
            self._next, counts, self._waiting = now + COUNTED_EVERY_SECONDS, self._waiting, Counter()
        for name, count in counts.items():
            cache.add(_key(name), 0, timeout=None)
            cache.incr(_key(name), count)


_errors = _Errors()


def _key(source: str) -> str:
    return f"source-errors:{source}"


def error_counts() -> dict[str, int]:
    """Return the number of errors of each source, as far as the cache has them."""
    found = cache.get_many([_key(source) for source in SOURCES])
    return {source: int(found.get(_key(source), 0)) for source in SOURCES}


def begin_page() -> None:
    """Forget what an earlier request of this thread could not read."""
    _unread.set(())


def unread() -> str:
    """Return a sentence on what the present page or answer could not read, or an empty string."""
    names = [SOURCES[source] for source in _unread.get()]
    if not names:
        return ""
    unknown = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"Not all of this page is known, because {unknown} cannot be read now. Everything else works as usual."
