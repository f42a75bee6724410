"""Generators of steps that are run to their end although their task is cancelled."""

import asyncio

import pytest
from hiredis import ReplyError

from enforcement.run_steps import Unwaited, run_through
from enforcement.store.errors import StoreError


def steps():
    """Add the replies to two commands. A call that fails counts as 10."""
    total = 0
    for command in (b"one", b"two"):
        try:
            total += yield command
        except StoreError:
            total += 10
    return total


class Replies:
    """Replies to commands, which come when a test says so."""

    def __init__(self):
        self.waiting = {}

    def call(self, command):
        self.waiting[command] = asyncio.get_running_loop().create_future()
        return self.waiting[command]

    async def sent(self, command):
        while command not in self.waiting:
            await asyncio.sleep(0)
        return self.waiting[command]


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_a_cancelled_task_gets_its_replies_and_then_its_cancellation(times):
    """The store has done what it was asked, so what follows from its replies is done, too."""
    replies = Replies()
    task = asyncio.create_task(run_through(steps(), None, replies.call))
    first = await replies.sent(b"one")
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert (task.done(), first.done()) == (False, False)

    first.set_result(1)
    (await replies.sent(b"two")).set_result(2)

    total, cancelled = await task
    assert (total, type(cancelled)) == (3, asyncio.CancelledError if times else type(None))


@pytest.mark.parametrize("cancels", [False, True])
async def test_a_cancelled_task_learns_that_its_call_failed(cancels):
    replies = Replies()
    task = asyncio.create_task(run_through(steps(), None, replies.call))
    first = await replies.sent(b"one")
    if cancels:
        task.cancel()
    first.set_exception(StoreError("timeout"))
    (await replies.sent(b"two")).set_result(2)

    total, cancelled = await task
    assert (total, cancelled is not None) == (12, cancels)


async def test_a_call_that_is_a_coroutine_is_not_cancelled_either():
    """As that of a cluster, which may have to ask several nodes."""
    replies = Replies()

    async def call(command):
        return await replies.call(command)

    task = asyncio.create_task(run_through(steps(), None, call))
    first = await replies.sent(b"one")
    task.cancel()
    first.set_result(1)
    (await replies.sent(b"two")).set_result(2)

    assert (await task)[0] == 3


class Pipe(Replies):
    """Replies that come through a pipe, which makes errors of error replies."""

    def trouble(self, reply):
        return StoreError("error", str(reply))


@pytest.mark.parametrize(
    ("first", "total"),
    [(1, 3), (StoreError("timeout"), 12), (ReplyError("no"), 12), (None, 12)],
    ids=["reply", "error", "error reply", "cancelled"],
)
async def test_replies_that_nobody_waits_for_go_through_the_steps(first, total):
    """The next command is sent when a reply comes, or an error in its place. None: its future was cancelled."""
    pipe, replies, ended = Pipe(), set(), []

    def whole():
        ended.append((yield from steps()))

    Unwaited(whole(), pipe, replies, lambda: ended.append("over")).begin()
    waiting = await pipe.sent(b"one")
    assert replies == {waiting}
    if first is None:
        waiting.cancel()
    elif isinstance(first, StoreError):
        waiting.set_exception(first)
    else:
        waiting.set_result(first)
    (await pipe.sent(b"two")).set_result(2)
    await asyncio.sleep(0)

    assert (ended, replies) == ([total, "over"], set())


async def test_steps_that_need_no_reply_end_at_once():
    ended = []
    Unwaited(iter(()), Pipe(), set(), lambda: ended.append("over")).begin()
    assert ended == ["over"]
