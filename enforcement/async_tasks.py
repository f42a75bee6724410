"""Tasks that run to their end even if nobody awaits them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_running: Final[set[asyncio.Task[Any]]] = set()
"""The tasks begun here. The event loop itself keeps only weak references to tasks."""


def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task and keep it alive until it is done."""
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def seen_through(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end even if the task awaiting it is cancelled, however often."""
    return await asyncio.shield(begun(work))


__all__ = ["begun", "seen_through"]
