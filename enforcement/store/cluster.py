"""
Speaking to a cluster: the same calls as to one server, each sent to the node that owns the slot of its first key.

A call follows at most two redirections. One to a node whose breaker is open fails at once, so that a dead primary costs
only those whose counters it held.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from hiredis import ReplyError
from redis import ConnectionPool, Redis
from redis.client import Pipeline
from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError

from enforcement.plan.commands import Redirected, StoreError, trouble
from enforcement.store.aio_connection import AsyncPipe
from enforcement.store.connection import SyncPipe
from enforcement.store.slot_map import MAX_REDIRECTS, Node, SlotMap, slot_of

_LOAD: Final = b"*4\r\n$8\r\nFUNCTION"


def _away(node: Node) -> StoreError:
    return StoreError("away", f"{node.place[0]}:{node.place[1]}", executed=False)


class ClusterPipe:
    """
    :class:`~enforcement.store.connection.SyncPipe` for a cluster.

    Args:
        heeds: Whether it sends nothing to a node whose breaker is open, and counts failures. False: for what finds
            nodes again and pays them what is owed.
    """

    def __init__(self, slot_map: SlotMap, budget: float, *, heeds: bool = True) -> None:
        self._slot_map = slot_map
        self._budget = budget
        self._heeds = heeds
        self._pipes: dict[Node, SyncPipe] = {}

    def call(self, command: bytes) -> Any:
        """Send one encoded command to where it belongs and return its parsed reply. Raises StoreError."""
        slot_map = self._slot_map
        if command.startswith(_LOAD):
            return [self._of(node).call(command) for node in list(slot_map.nodes.values()) if not node.breaker.open]
        slot = slot_of(command)
        node, asks = slot_map.known_owner(slot) or slot_map.owner(slot), False
        for _ in range(1 + MAX_REDIRECTS):
            if self._heeds and node.breaker.open:
                raise _away(node)
            pipe = self._of(node)
            try:
                reply = pipe.ask(command) if asks else pipe.call(command)
            except Redirected as sent:
                node, asks = slot_map.follow(sent, node), sent.asks
                continue
            except StoreError as exc:
                if self._heeds:
                    slot_map.failed(node, exc)
                raise
            if node.breaker.failures and self._heeds:
                node.breaker.succeeded()
            return reply
        raise StoreError("moved", "too many redirections", executed=False)

    def load(self, key: str, command: bytes) -> None:
        """Send the command that loads the functions to the node that owns a key. Raises StoreError."""
        self._of(self._slot_map.owner(slot_of(key.encode()))).call(command)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for pipe in list(self._pipes.values()):
            pipe.close()

    def _of(self, node: Node) -> SyncPipe:
        pipe = self._pipes.get(node)
        if pipe is None:
            for old in set(self._pipes) - set(self._slot_map.nodes.values()):
                if (left := self._pipes.pop(old, None)) is not None:  # None: another thread was faster
                    left.close()
            pipe = self._pipes.setdefault(node, SyncPipe(lambda: node.address, self._budget))
        return pipe


class AsyncClusterPipe:
    """:class:`~enforcement.store.aio_connection.AsyncPipe` for a cluster: one connection a node."""

    def __init__(self, slot_map: SlotMap, budget: float) -> None:
        self._slot_map = slot_map
        self._budget = budget
        self._pipes: dict[Node, AsyncPipe] = {}

    async def call(self, command: bytes) -> Any:
        """Send one encoded command to where it belongs; replies and errors are as of AsyncPipe."""
        slot_map = self._slot_map
        if command.startswith(_LOAD):
            return await self._everywhere(command)
        slot = slot_of(command)
        node, asks = slot_map.known_owner(slot) or await self._owner(slot), False
        for _ in range(1 + MAX_REDIRECTS):
            if node.breaker.open:
                raise _away(node)
            pipe = self._of(node)
            try:
                reply = await (pipe.ask(command) if asks else pipe.call(command))
                if type(reply) is ReplyError:
                    raise trouble(reply)
            except Redirected as sent:
                node, asks = slot_map.follow(sent, node), sent.asks
                continue
            except StoreError as exc:
                slot_map.failed(node, exc)
                raise
            if node.breaker.failures:
                node.breaker.succeeded()
            return reply
        raise StoreError("moved", "too many redirections", executed=False)

    def trouble(self, reply: object) -> StoreError:
        """Return what an error reply means."""
        return trouble(reply)

    def renew(self) -> None:
        """Nothing to do: what leads to a node that lost its slots is closed when they are found elsewhere."""

    def close(self) -> None:
        """Close the connections; calls under way fail."""
        for pipe in self._pipes.values():
            pipe.close()

    async def _owner(self, slot: int) -> Node:
        try:
            async with asyncio.timeout(self._budget):
                return await asyncio.to_thread(self._slot_map.owner, slot)
        except TimeoutError as exc:
            raise StoreError("timeout", "no table of slots in time", executed=False) from exc

    async def _everywhere(self, command: bytes) -> list[Any]:
        nodes = [node for node in self._slot_map.nodes.values() if not node.breaker.open]
        replies = await asyncio.gather(*(self._of(node).call(command) for node in nodes))
        for reply in replies:
            if type(reply) is ReplyError:
                raise trouble(reply)
        return replies

    def _of(self, node: Node) -> AsyncPipe:
        pipe = self._pipes.get(node)
        if pipe is None:
            for old in set(self._pipes) - set(self._slot_map.nodes.values()):
                if (left := self._pipes.pop(old, None)) is not None:  # None: another loop's thread was faster
                    left.renew()
            pipe = self._pipes.setdefault(node, AsyncPipe(lambda: node.address, self._budget))
        return pipe


# Commands whose first key is not their first argument.
_KEY_AT: Final = {"EVAL": 3, "EVALSHA": 3, "FCALL": 3, "FCALL_RO": 3}
# What concerns every primary, as one word of a command: functions, accounts, a sign of life.
_EVERYWHERE: Final = frozenset({"FUNCTION", "PING", "FLUSHALL"})


class ClusterClient(Redis):
    """
    redis-py's client for a cluster, as far as documents, log, heartbeats and usage need it.

    Each command goes to the node that owns its first key; all keys of one command have one hash tag. FUNCTION and PING
    go to every primary, other commands without a key to any. One try, one timeout, no waiting: redis-py's own client
    for clusters waits, tries again and asks the server where a function's keys stand.

    Args:
        open_client: Makes the client of one node; by host and port.
        heeds: Whether it sends nothing to nodes whose breaker is open, and opens it for those that do not answer. Only
            where somebody finds them again.
    """

    def __init__(self, slot_map: SlotMap, open_client: Callable[[str, int], Redis], *, heeds: bool = False) -> None:
        self._slot_map = slot_map
        self._heeds = heeds
        self._open_client = functools.cache(open_client)
        # What redis-py wants a pool for without sending anything: how texts are encoded.
        super().__init__(connection_pool=self._open_client("", 0).connection_pool)

    def pool_of(self, key: str) -> ConnectionPool:
        """Return the pool of connections to the node that owns a key. Raises redis-py's errors."""
        node = self._owner(key)
        if self._heeds and node.breaker.open:
            raise StoreConnectionError(str(_away(node)))
        return self._client_of(node).connection_pool

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to where it belongs. Raises redis-py's errors."""
        name = str(args[0]).split(" ")[0].upper()
        if name in _EVERYWHERE:
            return self._execute_everywhere(name, args, options)
        key = self._key_of(name, args)
        if key is None:
            return self._execute_anywhere(args, options)
        node = self._owner(key)
        for _ in range(MAX_REDIRECTS):
            try:
                return self._execute(node, args, options)
            except MovedError as sent:
                node = self._follow(sent, node)
            except AskError as sent:
                return self._ask(self._follow(sent, node, asks=True), args, options)
        return self._execute(node, args, options)

    def primaries(self) -> list[tuple[str, Redis]]:
        """Return every primary, as host and port, with a client of it alone. Raises redis-py's errors."""
        return [("{}:{}".format(*node.place), self._client_of(node)) for node in self._primaries()]

    def _execute_everywhere(self, name: str, args: Any, options: Any) -> Any:
        replies, errors = [], []
        for node in self._primaries():
            try:
                replies.append(self._execute(node, args, options))
            except (StoreConnectionError, StoreTimeoutError, OSError) as exc:
                errors.append(exc)
        # Functions are for those who answer; who is away gets them when he is back.
        if errors and (name != "FUNCTION" or not replies):
            raise errors[0]
        return min(replies, key=bool)  # what only some have, as a list of functions tells it, is not there

    def _execute_anywhere(self, args: Any, options: Any) -> Any:
        *others, last = self._primaries()
        for node in others:
            with contextlib.suppress(StoreConnectionError, StoreTimeoutError, OSError):
                return self._execute(node, args, options)
        return self._execute(last, args, options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline; all keys of a transaction have one hash tag."""
        return _ClusterPipeline(self, transaction)

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Walk the keys of every primary."""
        for node in self._primaries():
            yield from self._client_of(node).scan_iter(*args, **options)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for node in list(self._slot_map.nodes.values()):
            self._client_of(node).close()

    def reconnect(self) -> None:
        """Drop all connections: what is pooled may hold half an answer, or lead to a host that is no more."""
        for node in list(self._slot_map.nodes.values()):
            self._client_of(node).connection_pool.disconnect()

    def _execute(self, node: Node, args: Any, options: Any) -> Any:
        if self._heeds and node.breaker.open:
            raise StoreConnectionError(str(_away(node)))
        try:
            return self._client_of(node).execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except (StoreConnectionError, StoreTimeoutError, OSError) as exc:
            self.failed(node, exc)
            raise

    def failed(self, node: Node, exc: Exception) -> None:
        """Note that a node does not answer."""
        self._client_of(node).connection_pool.disconnect()
        if self._heeds:
            node.breaker.trip(type(exc).__name__)
        else:
            self._slot_map.refresh()  # nobody does it in the background here

    def _ask(self, node: Node, args: Any, options: Any) -> Any:
        pipe = self._client_of(node).pipeline(transaction=False)
        pipe.execute_command("ASKING")  # type: ignore[no-untyped-call]
        pipe.execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return pipe.execute()[1]

    def _follow(self, sent: AskError, asked: Node, *, asks: bool = False) -> Node:
        return self._slot_map.follow(Redirected(sent.slot_id, (sent.host, sent.port), asks=asks), asked)

    def _owner(self, key: str | bytes) -> Node:
        slot = slot_of(key if isinstance(key, bytes) else key.encode())
        try:
            return self._slot_map.known_owner(slot) or self._slot_map.owner(slot)
        except StoreError as exc:
            raise StoreConnectionError(str(exc)) from exc

    def _primaries(self) -> list[Node]:
        self._owner("{doc}")  # the table is read by now
        return list(self._slot_map.nodes.values())

    def _client_of(self, node: Node) -> Redis:
        return self._open_client(*node.place)

    @staticmethod
    def _key_of(name: str, args: Any) -> str | bytes | None:
        if name == "XREAD":
            return cast(str, args[args.index("STREAMS") + 1])
        at = _KEY_AT.get(name, 1)
        key = args[at] if len(args) > at else None
        if isinstance(key, (str, bytes)) and (b"{" if isinstance(key, bytes) else "{") in key:  # type: ignore[operator]
            return key
        return None


class _ClusterPipeline(Pipeline):
    """
    A pipeline whose commands are told apart by node, and sent again where a slot has moved and nothing was done.

    A transaction has one hash tag; commands without a key go where the others go.
    """

    def __init__(self, client: ClusterClient, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all commands and return their replies, in the order of the commands. Raises redis-py's errors."""
        stack, replies = list(self.command_stack), dict[int, Any]()
        for node, places in self._by_node(stack).items():
            some = self._execute_at(node, [stack[place] for place in places], raise_on_error)
            replies.update(zip(places, some, strict=True))
        return [replies[place] for place in range(len(stack))]

    def _by_node(self, stack: Sequence[Any]) -> dict[Node, list[int]]:
        keys = [self._client._key_of(str(arguments[0]).upper(), arguments) for arguments, _ in stack]
        first = next((key for key in keys if key is not None), None)
        if stack and first is None:
            raise ValueError("a pipeline must have a command with a key")
        by_node: dict[Node, list[int]] = {}
        for place, key in enumerate(keys):
            by_node.setdefault(self._client._owner(key or first or ""), []).append(place)
        return by_node

    def _execute_at(self, node: Node, stack: list[Any], raise_on_error: bool) -> list[Any]:
        client = self._client
        for _ in range(1 + MAX_REDIRECTS):
            self.command_stack = list(stack)
            self.connection_pool = client._client_of(node).connection_pool
            try:
                return super().execute(raise_on_error)
            except MovedError as sent:
                node = client._follow(sent, node)
            except (StoreConnectionError, StoreTimeoutError, OSError) as exc:
                client.failed(node, exc)
                raise
        raise StoreConnectionError("too many redirections")


__all__ = ["AsyncClusterPipe", "ClusterClient", "ClusterPipe"]
