"""Run tasks to completion even if no other task awaits them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_running: Final[set[asyncio.Task[object]]] = set()
"""Tasks that are kept alive here, because the event loop has only weak references to them."""


def begun(work: Coroutine[object, None, T]) -> asyncio.Task[T]:
    """Return a new task for a coroutine, which is kept alive until it is done."""
    task = asyncio.ensure_future(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


class SharedTasks(Generic[T]):
    """Runs one task for all that want its result at the same time in one event loop, whoever of them is cancelled."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, asyncio.AbstractEventLoop], asyncio.Task[T]] = {}

    async def result(self, name: str, work: Callable[[], Coroutine[object, None, T]]) -> T:
        """Return the result of the running task with this name, or of a new one for *work*."""
        key = name, asyncio.get_running_loop()
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = begun(work())
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return await asyncio.shield(task)


async def seen_through(work: Coroutine[object, None, T]) -> T:
    """Return the result of a coroutine, which runs to completion even if the task awaiting it is cancelled."""
    return await asyncio.shield(begun(work))
