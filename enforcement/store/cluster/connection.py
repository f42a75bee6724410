"""
Send each command to the node of a cluster that owns the slot of its first key.

A call follows at most two redirections. A call to a node whose breaker is open fails at once, so that a dead primary
affects only the counters that it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from typing import Final

from hiredis import ReplyError

from enforcement.store.aio_connection import AsyncPipe
from enforcement.store.cluster.slot_map import Node, SlotMap, slot_of
from enforcement.store.connection import SyncPipe
from enforcement.store.errors import Redirected, StoreError, trouble

MAX_REDIRECTS: Final = 2
"""One for a slot that has moved, and another for a slot that is being moved."""
_LOAD: Final = b"*4\r\n$8\r\nFUNCTION"

Hops = Generator[tuple[Node, bool], object, object]


def away(node: Node) -> StoreError:
    """Return the exception for a call that was not sent, because the breaker of its node is open."""
    return StoreError("away", node.name, executed=False)


def after_failure(slot_map: SlotMap, node: Node, exc: StoreError, *, respects_breakers: bool, counts: bool) -> Hops:
    """
    Yield (node, asking) for each redirection of a failed call, and return the reply, or raise the last error.

    A generator: it yields a node, and whether ``ASKING`` has to precede the call. The caller sends the call there. Then
    it sends the reply into the generator, or throws the StoreError that came instead. The first call, which nearly
    always succeeds, is left to the caller, so that it costs no generator.

    Args:
        node: The node that failed the call.
        exc: How it failed.
        respects_breakers: Whether a call to a node whose breaker is open fails at once.
        counts: Whether failures and successes count for the breakers.
    Raises:
        StoreError: The call failed for another reason, or there were too many redirections.
    """
    redirects = 0
    while isinstance(exc, Redirected):
        node, asking = slot_map.follow(exc, node), exc.asking
        if redirects == MAX_REDIRECTS:
            raise StoreError("moved", "too many redirections", executed=False)
        redirects += 1
        if respects_breakers and node.breaker.open:
            raise away(node)
        try:
            reply = yield node, asking
        except StoreError as again:
            exc = again
        else:
            if counts and node.breaker.failures:
                node.breaker.succeeded()
            return reply
    if counts:
        slot_map.failed(node, exc)
    try:
        raise exc
    finally:
        del exc  # its traceback contains this frame: a late reply must not wait for the garbage collector


def drive(hops: Hops, send: Callable[..., object], *arguments: object) -> object:
    """Run the generator of :func:`after_failure` with ``send(node, asking, *arguments)``, and return the reply."""
    try:
        node, asking = next(hops)
        while True:
            try:
                reply = send(node, asking, *arguments)
            except StoreError as exc:
                node, asking = hops.throw(exc)
            else:
                node, asking = hops.send(reply)
    except StopIteration as stop:
        return stop.value


class ClusterPipe:
    """
    A :class:`~enforcement.store.connection.SyncPipe` for each node of a cluster.

    Args:
        respects_breakers: Whether calls to a node whose breaker is open fail at once, and failures count for the
            breaker. False: for replaying to a node that is just coming back.
    """

    def __init__(self, slot_map: SlotMap, budget: float, *, respects_breakers: bool = True) -> None:
        self._slot_map = slot_map
        self._budget = budget
        self._respects_breakers = respects_breakers
        self._pipes: dict[Node, SyncPipe] = {}

    def call(self, command: bytes, deadline: float = 0.0) -> object:
        """
        Send one encoded command to the node of its first key and return the parsed reply.

        Args:
            deadline: See :meth:`~enforcement.store.connection.SyncPipe.call`.
        Raises:
            StoreError: There is no usable reply.
        """
        deadline = deadline or monotonic() + self._budget
        node = None if command.startswith(_LOAD) else self._slot_map.owners[slot_of(command)]
        if node is None:
            return self.call_again(command, deadline - monotonic())
        return self._call_on(node, (self._pipes.get(node) or self._pipe_of(node)).call, command, deadline)

    def call_again(self, command: bytes, seconds: float) -> object:
        """
        Send a further command of a decision to the node of its first key, or the library to each, and return the reply.

        See :meth:`~enforcement.store.connection.SyncPipe.call_again`.
        """
        slot_map, deadline = self._slot_map, monotonic() + seconds
        if command.startswith(_LOAD):
            nodes = [node for node in list(slot_map.nodes.values()) if not node.breaker.open]
            return [self._send(node, False, command, deadline) for node in nodes]
        node = slot_map.owners[slot_of(command)]
        if node is None:
            node, seconds = slot_map.owner(slot_of(command), deadline), deadline - monotonic()
        pipe = self._pipe_of(node)
        return self._call_on(node, lambda command, _: pipe.call_again(command, seconds), command, deadline)

    def _call_on(self, node: Node, call: Callable[[bytes, float], object], command: bytes, deadline: float) -> object:
        """Send a command to a node by *call*, follow redirections, and return the reply."""
        breaker, respects = node.breaker, self._respects_breakers
        if respects and breaker.open:
            raise away(node)
        try:
            reply = call(command, deadline)
        except StoreError as exc:
            hops = after_failure(self._slot_map, node, exc, respects_breakers=respects, counts=respects)
            return drive(hops, self._send, command, deadline)
        if breaker.failures and respects:
            breaker.succeeded()
        return reply

    def close(self) -> None:
        """Close the connections that no call is using."""
        for pipe in list(self._pipes.values()):
            pipe.close()

    def _send(self, node: Node, asking: bool, command: bytes, deadline: float) -> object:
        return self._pipe_of(node).call_again(command, deadline - monotonic(), asking=asking)

    def _pipe_of(self, node: Node) -> SyncPipe:
        """Return the pipe of a node, or a new one, which replaces those of nodes that have left the cluster."""
        pipe = self._pipes.get(node)
        if pipe is None:
            for old in set(self._pipes) - set(self._slot_map.nodes.values()):
                if (left := self._pipes.pop(old, None)) is not None:  # None: another thread was faster
                    left.close()
            pipe = self._pipes.setdefault(node, SyncPipe(lambda: node.address, self._budget))
        return pipe


class AsyncClusterPipe:
    """
    An :class:`~enforcement.store.aio_connection.AsyncPipe` for each node of a cluster.

    Args:
        respects_breakers: See :class:`ClusterPipe`.
    """

    def __init__(self, slot_map: SlotMap, budget: float, *, respects_breakers: bool = True) -> None:
        self._slot_map = slot_map
        self._budget = budget
        self._respects_breakers = respects_breakers
        self._pipes: dict[Node, AsyncPipe] = {}

    async def call(self, command: bytes) -> object:
        """
        Send an encoded command to the node of its first key, or ``FUNCTION LOAD`` to all nodes, and return what they
        reply.

        Raises:
            StoreError: There is no usable reply. Unlike a single store's pipe, this one raises error replies.
        """
        deadline = monotonic() + self._budget
        node = None if command.startswith(_LOAD) else self._slot_map.owners[slot_of(command)]
        if node is None:
            return await self.call_again(command, deadline)
        pipe = self._pipes.get(node) or self._pipe_of(node)
        return await self._call_on(node, pipe.call, command, deadline)

    async def call_again(self, command: bytes, deadline: float) -> object:
        """
        Send a further command of a decision before this deadline, in monotonic seconds, and return the reply.

        See :meth:`call`.
        """
        if command.startswith(_LOAD):
            return await self._call_everywhere(command, deadline)
        slot = slot_of(command)
        node = self._slot_map.owners[slot] or await self._owner(slot, deadline)
        pipe = self._pipe_of(node)
        return await self._call_on(node, lambda command: pipe.call_again(command, deadline), command, deadline)

    async def _call_on(
        self, node: Node, call: Callable[[bytes], Awaitable[object]], command: bytes, deadline: float
    ) -> object:
        """Send a command to a node by *call*, follow redirections, and return the reply."""
        breaker, respects = node.breaker, self._respects_breakers
        if respects and breaker.open:
            raise away(node)
        try:
            reply = await call(command)
            if type(reply) is ReplyError:
                raise trouble(reply)
        except StoreError as exc:
            hops = after_failure(self._slot_map, node, exc, respects_breakers=respects, counts=respects)
            return await self._follow(hops, command, deadline)
        if breaker.failures and respects:
            breaker.succeeded()
        return reply

    async def _follow(self, hops: Hops, command: bytes, deadline: float) -> object:
        """Send a command to the nodes of *hops*, as :func:`drive` does, and return the reply."""
        try:
            node, asking = next(hops)
            while True:
                try:
                    reply = await self._pipe_of(node).call_again(command, deadline, asking=asking)
                    if type(reply) is ReplyError:
                        raise trouble(reply)
                except StoreError as exc:
                    node, asking = hops.throw(exc)
                else:
                    node, asking = hops.send(reply)
        except StopIteration as stop:
            return stop.value

    def trouble(self, reply: object) -> StoreError:
        """Return the exception that stands for an error reply."""
        return trouble(reply)

    def renew(self) -> None:
        """Do nothing, because the connections of a node are closed when the node has left the cluster."""

    async def finish(self) -> None:
        """Close the connections when the calls in flight are over. See the pipe of a single store."""
        for pipe in list(self._pipes.values()):
            await pipe.finish()

    def close(self) -> None:
        """Close the connections and fail the calls in flight."""
        for pipe in self._pipes.values():
            pipe.close()

    async def _owner(self, slot: int, deadline: float) -> Node:
        try:
            async with asyncio.timeout(deadline - monotonic()):
                return await asyncio.to_thread(self._slot_map.owner, slot, deadline)
        except TimeoutError as exc:
            raise StoreError("timeout", "no table of slots in time", executed=False) from exc

    async def _call_everywhere(self, command: bytes, deadline: float) -> list[object]:
        nodes = [node for node in self._slot_map.nodes.values() if not node.breaker.open]
        replies = await asyncio.gather(*(self._pipe_of(node).call_again(command, deadline) for node in nodes))
        for reply in replies:
            if type(reply) is ReplyError:
                raise trouble(reply)
        return replies

    def _pipe_of(self, node: Node) -> AsyncPipe:
        """Return the pipe of a node, or a new one, which replaces those of nodes that have left the cluster."""
        pipe = self._pipes.get(node)
        if pipe is None:
            for old in set(self._pipes) - set(self._slot_map.nodes.values()):
                if (left := self._pipes.pop(old, None)) is not None:  # None: the thread of another loop was faster
                    left.renew()
            pipe = self._pipes.setdefault(node, AsyncPipe(lambda: node.address, self._budget))
        return pipe
