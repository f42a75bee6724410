"""Tasks that nobody waits for to the end, and that end all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_under_way: Final[set[asyncio.Task[Any]]] = set()
"""What was begun: the event loop itself holds on to no task."""


def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Return a task that does the work to its end, also where whoever began it has forgotten it."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return task


async def seen_through(work: Coroutine[Any, Any, T]) -> T:
    """Do the work to its end even where the task that waits for it is cancelled, as often as anyio cancels one."""
    return await asyncio.shield(begun(work))


__all__ = ["begun", "seen_through"]
