"""Run generators of steps, in threads and in event loops. See :data:`~enforcement.plan.commands.Steps`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hiredis import ReplyError

from enforcement.plan.commands import Steps
from enforcement.store.connector import AwaitedPipe, Pipe
from enforcement.store.errors import StoreError


def run(steps: Steps, call: Callable[[bytes], Any]) -> Any:
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
        return stop.value


def run_within(steps: Steps, pipe: Pipe, deadline: float) -> Any:
    """
    Send the commands that a generator yields to the store, and return the generator's result.

    Args:
        deadline: When the budget of all these commands together ends, in monotonic seconds.
    """
    return run(steps, lambda command: pipe.call_again(command, deadline))


async def run_awaited(steps: Steps, pipe: AwaitedPipe, call: Callable[[bytes], Awaitable[Any]]) -> Any:
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
        return stop.value


async def run_through(
    steps: Steps, pipe: AwaitedPipe, call: Callable[[bytes], Awaitable[Any]]
) -> tuple[Any, asyncio.CancelledError | None]:
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
            replying = asyncio.ensure_future(call(command))
            while not replying.done():
                try:
                    await _end_of(replying)
                except asyncio.CancelledError as exc:
                    cancelled = exc
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


def _end_of(future: asyncio.Future[Any]) -> asyncio.Future[None]:
    """Return a future that is done when another one is. To cancel it does not cancel the other one."""
    end = future.get_loop().create_future()

    def ended(_: asyncio.Future[Any]) -> None:
        if not end.done():
            end.set_result(None)

    future.add_done_callback(ended)
    return end


async def run_awaited_within(steps: Steps, pipe: AwaitedPipe, deadline: float) -> Any:
    """Do what :func:`run_within` does in an event loop, and return the generator's result."""
    return await run_awaited(steps, pipe, lambda command: pipe.call_again(command, deadline))


__all__ = ["run", "run_awaited", "run_awaited_within", "run_through", "run_within"]
