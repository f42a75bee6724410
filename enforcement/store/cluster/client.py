"""redis-py's client of a cluster, for documents, the change log, heartbeats and usage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from redis import ConnectionPool, Redis
from redis.client import Pipeline
from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError

from enforcement.store.base_client import StoreClient
from enforcement.store.cluster.connection import after_failure, away, drive
from enforcement.store.cluster.slot_map import Node, SlotMap, slot_of
from enforcement.store.errors import Redirected, StoreError
from enforcement.store.topology import HostPort

# Commands whose first key is not their first argument.
_KEY_AT: Final = {"EVAL": 3, "EVALSHA": 3, "FCALL": 3, "FCALL_RO": 3}
# Commands that concern every primary.
_EVERYWHERE: Final = frozenset({"FUNCTION", "PING", "FLUSHALL"})
_UNREACHABLE: Final = (StoreConnectionError, StoreTimeoutError, OSError)


class ClusterClient(StoreClient):
    """
    Send each command to the node that owns its first key.

    All keys of one command share a hash tag. FUNCTION, PING and FLUSHALL go to every primary, other commands without a
    key to any of them. There is one try and one timeout. redis-py's own client of clusters waits, retries, and asks the
    server for the keys of each function call.

    Args:
        open_client: Returns the client of one node, given its host and port.
        respects_breakers: Whether a command to a node whose breaker is open fails at once, and the monitor tries a
            decision on a node that does not answer. Set it only where there is a monitor.
    """

    def __init__(
        self, slot_map: SlotMap, open_client: Callable[[str, int], StoreClient], *, respects_breakers: bool = False
    ) -> None:
        self._slot_map = slot_map
        self._respects_breakers = respects_breakers
        self._open_client = open_client
        self._clients: dict[HostPort, StoreClient] = {}
        # redis-py reads the encoding of strings from a pool; this one never connects.
        super().__init__(connection_pool=open_client("", 0).connection_pool)

    def pool_of(self, key: str) -> ConnectionPool:
        """Return the connection pool of the node that owns a key. Raises redis-py's errors."""
        node = self._owner(key)
        if self._respects_breakers and node.breaker.open:
            raise StoreConnectionError(str(away(node)))
        return self._client_of(node).connection_pool

    def primaries(self) -> list[tuple[str, Redis]]:
        """
        Return a list of (``host:port``, client of that primary alone) for all primaries. Raises redis-py's errors.
        """
        return [(node.name, self._client_of(node)) for node in self._primaries()]

    def reconnect(self) -> None:
        """Close all connections, as one may hold half a reply, or lead to a server that was replaced."""
        for node in list(self._slot_map.nodes.values()):
            self._client_of(node).reconnect()

    def drop_inherited(self) -> None:
        """Close the connections that a forked child has inherited, without sending anything to the store."""
        for client in list(self._clients.values()):
            client.drop_inherited()

    def close(self) -> None:
        """Close the connections that no call is using."""
        for node in list(self._slot_map.nodes.values()):
            self._client_of(node).close()

    def execute_command(self, *args: object, **options: object) -> object:
        """Send a command to the node or nodes of its keys, and return the reply. Raises redis-py's errors."""
        name = str(args[0]).split(" ")[0].upper()
        if name in _EVERYWHERE:
            return self._execute_everywhere(name, args, options)
        key = self._key_of(name, args)
        if key is None:
            return self._execute_anywhere(args, options)
        return self._execute(self._owner(key), args, options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline that sends commands to several nodes. All keys of a transaction must share a hash tag."""
        return _ClusterPipeline(self, transaction)

    def scan_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Yield the keys of every primary, one primary after the other."""
        for node in self._primaries():
            yield from self._client_of(node).scan_iter(*args, **options)

    def _execute_everywhere(self, name: str, args: object, options: object) -> object:
        replies, errors = [], []
        for node in self._primaries():
            try:
                replies.append(self._execute(node, args, options))
            except _UNREACHABLE as exc:
                errors.append(exc)
        # Functions are loaded where that is possible now; an unavailable node gets them when it is back.
        if errors and (name != "FUNCTION" or not replies):
            raise errors[0]
        return min(replies, key=bool)  # an empty reply wins: a list of functions counts only if all nodes have them

    def _execute_anywhere(self, args: object, options: object) -> object:
        *others, last = self._primaries()
        for node in others:
            with contextlib.suppress(*_UNREACHABLE):
                return self._execute(node, args, options)
        return self._execute(last, args, options)

    def _execute(self, node: Node, args: object, options: object) -> object:
        return self._follow(node, self._send, args, options)

    def _follow(self, node: Node, send: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``send(node, asking, *arguments)``, follow redirections to other nodes, and return the result."""
        try:
            if self._respects_breakers and node.breaker.open:
                raise away(node)
            try:
                return send(node, False, *arguments)
            except Redirected as exc:
                # The breakers count failed decisions. A command with a longer timeout must not reset them.
                hops = after_failure(self._slot_map, node, exc, respects_breakers=self._respects_breakers, counts=False)
                return drive(hops, send, *arguments)
        except StoreError as exc:
            raise StoreConnectionError(str(exc)) from exc

    def _send(self, node: Node, asking: bool, args: Any, options: Any) -> Any:
        client = self._client_of(node)
        try:
            if not asking:
                return client.execute_command(*args, **options)  # type: ignore[no-untyped-call]
            pipe = client.pipeline(transaction=False)
            pipe.execute_command("ASKING")  # type: ignore[no-untyped-call]
            pipe.execute_command(*args, **options)  # type: ignore[no-untyped-call]
            return pipe.execute()[1]
        except AskError as exc:  # also the base class of MovedError
            raise _redirected(exc) from exc
        except _UNREACHABLE:
            self._failed(node)
            raise

    def _failed(self, node: Node) -> None:
        self._client_of(node).reconnect()
        if self._respects_breakers:
            self._slot_map.doubt(node.host_port)  # this connection is not the one that decides
        else:
            self._slot_map.refresh()  # there is no monitor that would do it in the background

    def _owner(self, key: str | bytes) -> Node:
        slot = slot_of(key if isinstance(key, bytes) else key.encode())
        try:
            return self._slot_map.owner(slot)
        except StoreError as exc:
            raise StoreConnectionError(str(exc)) from exc

    def _primaries(self) -> list[Node]:
        self._owner("{doc}")  # reads the table if that was not done before
        return list(self._slot_map.nodes.values())

    def _client_of(self, node: Node) -> StoreClient:
        client = self._clients.get(node.host_port)
        if client is None:
            client = self._clients.setdefault(node.host_port, self._open_client(*node.host_port))
        return client

    @staticmethod
    def _key_of(name: str, args: Any) -> str | bytes | None:
        if name == "XREAD":
            return cast(str, args[args.index("STREAMS") + 1])
        at = _KEY_AT.get(name, 1)
        key = args[at] if len(args) > at else None
        if isinstance(key, (str, bytes)) and (b"{" if isinstance(key, bytes) else "{") in key:  # type: ignore[operator]
            return key
        return None


def _redirected(exc: AskError) -> Redirected:
    return Redirected(exc.slot_id, (exc.host, exc.port), asking=not isinstance(exc, MovedError))


class _ClusterPipeline(Pipeline):
    """
    A pipeline that sends each node its part of the commands.

    A transaction uses one hash tag. Commands without a key go to the node of the first command with a key. If a slot
    has moved, nothing was executed, and the part is sent again.
    """

    def __init__(self, client: ClusterClient, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._client = client

    def execute(self, raise_on_error: bool = True) -> list[object]:
        """Send all commands and return their replies, in the order of the commands. Raises redis-py's errors."""
        stack, replies = list(self.command_stack), dict[int, object]()
        for node, positions in self._by_node(stack).items():
            part = [stack[position] for position in positions]
            some = self._client._follow(node, self._send, part, raise_on_error)
            replies.update(zip(positions, some, strict=True))
        return [replies[position] for position in range(len(stack))]

    def _by_node(self, stack: Sequence[Any]) -> dict[Node, list[int]]:
        keys = [self._client._key_of(str(arguments[0]).upper(), arguments) for arguments, _ in stack]
        first = next((key for key in keys if key is not None), None)
        if stack and first is None:
            raise ValueError("a pipeline must have a command with a key")
        by_node: dict[Node, list[int]] = {}
        for position, key in enumerate(keys):
            by_node.setdefault(self._client._owner(key or first or ""), []).append(position)
        return by_node

    def _send(self, node: Node, asking: bool, stack: list[object], raise_on_error: bool) -> list[object]:
        self.command_stack = list(stack)
        self.connection_pool = self._client._client_of(node).connection_pool
        try:
            return super().execute(raise_on_error)
        except MovedError as exc:
            raise _redirected(exc) from exc
        except _UNREACHABLE:
            self._client._failed(node)
            raise
