"""Run generators of steps, in threads and in event loops. See :data:`~enforcement.plan.commands.Steps`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Self, TypeVar

from hiredis import ReplyError

from enforcement.plan.commands import ResultT, Steps
from enforcement.store.address import TimeToWait
from enforcement.store.connection import unconnected
from enforcement.store.connector import AwaitedPipe, Pipe
from enforcement.store.errors import StoreError

Step = TypeVar("Step")


def run(steps: Generator[Step, object, ResultT], call: Callable[[Step], object]) -> ResultT:
    """Send the commands that a generator yields by *call*, and return the generator's result."""
    try:
        command = next(steps)
        while True:
            try:
                reply = call(command)
            except StoreError as exc:
                command = steps.throw(exc)
            else:
                command = steps.send(reply)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result


def run_within(steps: Steps[ResultT], pipe: Pipe, seconds: float) -> ResultT:
    """
    Send the commands that a generator yields to the store, and return the generator's result.

    Args:
        seconds: The budget of all these commands together. What this thread does between two calls is not counted.
    """
    time = TimeToWait(seconds)

    def call(command: bytes) -> object:
        try:
            return time.during(lambda left: pipe.call_again(command, left))
        except TimeoutError as exc:
            raise unconnected(exc) from exc

    return run(steps, call)


async def run_awaited(
    steps: Generator[Step, object, ResultT], pipe: AwaitedPipe, call: Callable[[Step], Awaitable[object]]
) -> ResultT:
    """Send the commands that a generator yields by *call*, a method of *pipe*, and return the generator's result."""
    try:
        command = next(steps)
        while True:
            try:
                reply = await call(command)
                if type(reply) is ReplyError:
                    raise pipe.trouble(reply)
            except StoreError as exc:
                command = steps.throw(exc)
            else:
                command = steps.send(reply)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result


async def reply_through(pipe: AwaitedPipe, command: bytes) -> tuple[object, asyncio.CancelledError | None]:
    """
    Send one command, and wait for its reply even if the task is cancelled meanwhile.

    Returns:
        The reply, or the StoreError in its place, and the cancellation that the caller has to raise again, or None.
    """
    calling, cancelled = pipe.call(command), None
    replying = calling if isinstance(calling, asyncio.Future) else asyncio.ensure_future(calling)
    while not replying.done():
        try:
            await _Uncancelled(replying)
        except asyncio.CancelledError as exc:
            cancelled = exc
        except StoreError:
            break
    try:
        reply = replying.result()
    except StoreError as exc:
        return exc, cancelled
    return pipe.trouble(reply) if type(reply) is ReplyError else reply, cancelled


async def run_through(
    steps: Steps[ResultT], pipe: AwaitedPipe, call: Callable[[bytes], Awaitable[object]]
) -> tuple[ResultT, asyncio.CancelledError | None]:
    """
    Do what :func:`run_awaited` does, to the end even if the task is cancelled meanwhile. A task of its own for that
    would cost more than the call.

    Returns:
        The generator's result, and the cancellation that the caller has to raise again, or None.
    """
    cancelled = None
    try:
        command = next(steps)
        while True:
            calling = call(command)
            replying = calling if isinstance(calling, asyncio.Future) else asyncio.ensure_future(calling)
            while not replying.done():
                try:
                    await _Uncancelled(replying)
                except asyncio.CancelledError as exc:
                    cancelled = exc
                except StoreError:
                    break
            try:
                reply = replying.result()
                if type(reply) is ReplyError:
                    raise pipe.trouble(reply)
            except StoreError as exc:
                command = steps.throw(exc)
            else:
                command = steps.send(reply)
    except StopIteration as stop:
        return stop.value, cancelled


class Unwaited:
    """
    Do what :func:`run_awaited` does, without a task that waits. Each reply sends the next command.

    Args:
        replies: Has the reply that has not come, as long as there is one.
        over: Called when the generator has ended.
    """

    __slots__ = ("_over", "_pipe", "_replies", "_steps")

    def __init__(
        self, steps: Steps[object], pipe: AwaitedPipe, replies: set[asyncio.Future[object]], over: Callable[[], None]
    ) -> None:
        self._steps = steps
        self._pipe = pipe
        self._replies = replies
        self._over = over

    def begin(self) -> None:
        """Send the first command."""
        self._go_on(None)

    def _go_on(self, replying: asyncio.Future[object] | None) -> None:
        if replying is not None:
            self._replies.discard(replying)
        try:
            command = next(self._steps) if replying is None else self._after(replying)
        except BaseException as exc:
            self._over()
            if isinstance(exc, StopIteration):
                return
            raise
        calling = self._pipe.call(command)
        reply = calling if isinstance(calling, asyncio.Future) else asyncio.ensure_future(calling)
        self._replies.add(reply)
        reply.add_done_callback(self._go_on)

    def _after(self, replying: asyncio.Future[object]) -> bytes:
        """Return the command after a reply, or raise StopIteration."""
        try:
            if replying.cancelled():
                raise StoreError("connection", "the event loop has ended")
            reply = replying.result()
            if type(reply) is ReplyError:
                raise self._pipe.trouble(reply)
        except StoreError as exc:
            return self._steps.throw(exc)
        return self._steps.send(reply)


class _Uncancelled:
    """
    Waits for a future that is not cancelled with the task. The task gets its cancellation when the future is done.

    To the task this is a future itself, see :func:`asyncio.isfuture`. A real one that ends with the other would take a
    second turn of the event loop.
    """

    __slots__ = ("_asyncio_future_blocking", "add_done_callback", "get_loop")

    def __init__(self, future: asyncio.Future[object]) -> None:
        # The methods of a future that a task calls. Methods around these would be two calls more for each wait.
        self.add_done_callback = future.add_done_callback
        self.get_loop = future.get_loop
        self._asyncio_future_blocking = False

    def __await__(self) -> Generator[Self]:
        self._asyncio_future_blocking = True
        yield self

    def cancel(self, msg: str | None = None) -> bool:
        """Refuse to be cancelled, so that the task remembers that it was."""
        return False


async def run_awaited_within(steps: Steps[ResultT], pipe: AwaitedPipe, deadline: float) -> ResultT:
    """Do what :func:`run_within` does in an event loop, until a deadline in monotonic seconds."""
    return await run_awaited(steps, pipe, lambda command: pipe.call_again(command, deadline))
