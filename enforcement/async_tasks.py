"""Run tasks to completion even if no other task awaits them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_running: Final[set[asyncio.Task[Any]]] = set()
"""Tasks that are kept alive here, because the event loop has only weak references to them."""


def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Return a new task for a coroutine, which is kept alive until it is done."""
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def seen_through(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine, which runs to completion even if the task awaiting it is cancelled."""
    return await asyncio.shield(begun(work))


__all__ = ["begun", "seen_through"]
