"""Stores of several servers on loopback, from the same binary as any other: a primary with sentinels, and a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from enforcement.embedded import ValkeyServer, find_binary, free_port
from enforcement.store.cluster.slot_map import slot_of
from tests.enforcement.world import eventually

SERVICE = "store"
NEVER_MS = 3_600_000
ASKING_SECONDS = 0.03
"""Before several servers are asked again."""
QUICK = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}


def plain(server: ValkeyServer) -> Redis:
    """Return a client of one server, which sees what is really there."""
    return Redis(port=server.port, decode_responses=True, protocol=2, socket_timeout=10)


def execute(server: ValkeyServer, *command: Any) -> Any:
    """Send one command to one server and hang up."""
    with plain(server) as client:
        return client.execute_command(*command)


def every(action: Callable[[Any], Any], things: list[Any]) -> None:
    """Do something with all things at once."""
    with ThreadPoolExecutor(len(things)) as threads:
        list(threads.map(action, things))


class Servers:
    """Servers that start and end together."""

    def __init__(self) -> None:
        self.servers: list[ValkeyServer] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self.build()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.kill()
        self._stack.close()

    def build(self) -> None:
        raise NotImplementedError

    def run(self, servers: list[Any]) -> list[Any]:
        for server in servers:
            self._stack.callback(server.close)
        every(ValkeyServer.start, servers)
        self.servers += servers
        return servers


class SentinelTrio(Servers):
    """A primary with two replicas, and three sentinels that fail over within about a second."""

    def build(self) -> None:
        (self.primary,) = self.run([ValkeyServer(persistent=False, config=QUICK)])
        config = {**QUICK, "replicaof": f"127.0.0.1 {self.primary.port}"}
        self.replicas = self.run([ValkeyServer(persistent=False, config=config) for _ in range(2)])
        self.sentinel_ports = [free_port() for _ in range(3)]
        self.sentinels = [self._start_sentinel(port) for port in self.sentinel_ports]
        assert eventually(self._watched, 20, ASKING_SECONDS)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def promoted(self) -> ValkeyServer | None:
        """Return the replica that is a primary now."""
        return next((server for server in self.replicas if _role(server) == "master"), None)

    def agreed(self) -> bool:
        """Tell whether every sentinel names the replica that was promoted."""
        new = self.promoted()
        return new is not None and all(self._named(port) == new.port for port in self.sentinel_ports)

    def demote(self) -> None:
        """Make the old primary a replica of the new one at once; the sentinels do it within ten seconds."""
        new = self.promoted()
        assert new is not None
        execute(self.primary, "REPLICAOF", "127.0.0.1", new.port)
        execute(self.primary, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    @staticmethod
    def _named(port: int) -> int:
        with Redis(port=port, decode_responses=True) as sentinel:
            return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def fail_over_once(self) -> None:
        """
        Have one sentinel alone find that the primary is away.

        Two that find it at the same time may both be elected, one after the other. Then a second replica is promoted,
        and what was written to the first one is lost.
        """
        first, *others = self.sentinel_ports
        self._set(first, "quorum", 1)
        for port in others:
            self._set(port, "down-after-milliseconds", NEVER_MS)

    def fail_over_no_more(self) -> None:
        """Have no sentinel find that the primary is away, although a busy machine may not answer for a second."""
        self._set(self.sentinel_ports[0], "down-after-milliseconds", NEVER_MS)

    @staticmethod
    def _set(port: int, name: str, value: int) -> None:
        with Redis(port=port, decode_responses=True) as sentinel:
            sentinel.execute_command("SENTINEL", "SET", SERVICE, name, value)

    def freeze_sentinel(self, number: int) -> None:
        """Stop a sentinel in its tracks."""
        os.kill(self.sentinels[number].pid, signal.SIGSTOP)

    def _start_sentinel(self, port: int) -> subprocess.Popen[bytes]:
        folder = self.primary.directory / f"sentinel-{port}"
        folder.mkdir()
        config = folder / "sentinel.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f'dir "{folder}"',
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        config.write_text("\n".join(lines) + "\n")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([find_binary(), config, "--sentinel"], stdout=log, stderr=subprocess.STDOUT)
        self._stack.callback(_end, process)
        return process

    def _watched(self) -> bool:
        """Tell whether every sentinel knows both others and both replicas, and these are in step."""
        try:
            for port in self.sentinel_ports:
                with Redis(port=port, decode_responses=True) as sentinel:
                    state = sentinel.sentinel_master(SERVICE)
                if (state["num-other-sentinels"], state["num-slaves"]) != (2, 2):
                    return False
        except RedisError:
            return False
        return all(execute(server, "INFO", "replication")["master_link_status"] == "up" for server in self.replicas)


class ClusterServer(ValkeyServer):
    """A node: what it keeps for others it says on a port of its own."""

    def __init__(self, timeout_ms: int = 1_000) -> None:
        self.bus = 0
        config = {
            **QUICK,
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(timeout_ms),
            "cluster-replica-validity-factor": "0",
            "cluster-require-full-coverage": "no",
        }
        super().__init__(persistent=False, config=config)

    def prepare(self) -> list[str]:
        """Choose the second port with the first: others look for free ones at the same time."""
        if not (self.port and self.bus):
            self.bus = free_port()
            self._directives["cluster-port"] = str(self.bus)
        return super().prepare()


class Cluster(Servers):
    """
    Three primaries, or as many as wanted, with a replica each if wanted, that fail over within about two seconds.

    Attributes:
        primaries: Each serves a third of the slots, or its share, in order, as long as nobody changes that.
        replicas: ``replicas[i]`` of ``primaries[i]``.
    """

    def __init__(self, *, replicas: bool = True, count: int = 3, timeout_ms: int = 1_000) -> None:
        super().__init__()
        self.count, self._timeout_ms = count, timeout_ms
        self.primaries: list[ClusterServer] = []
        self.replicas: list[ClusterServer] = []
        self._with_replicas = replicas

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.primaries)

    def build(self) -> None:
        nodes = self.count * (2 if self._with_replicas else 1)
        servers = self.run([ClusterServer(self._timeout_ms) for _ in range(nodes)])
        self.primaries, self.replicas = servers[: self.count], servers[self.count :]
        for number, server in enumerate(self.primaries):
            first, last = number * 16_384 // self.count, (number + 1) * 16_384 // self.count - 1
            execute(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
            execute(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            execute(servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port, server.bus)
        assert eventually(
            lambda: all(_info(server, "cluster_known_nodes") == len(servers) for server in servers), 20, ASKING_SECONDS
        )
        for primary, replica in zip(self.primaries, self.replicas, strict=False):
            assert eventually(partial(_replicates, replica, ident(primary)), 20, ASKING_SECONDS)
        assert eventually(self.healthy, 20, ASKING_SECONDS)

    def index_of(self, key: str) -> int:
        """Return which third a key lies in, or which share."""
        slot = slot_of(key.encode())
        return next(i for i in range(self.count) if slot < (i + 1) * 16_384 // self.count)

    def owner(self, key: str) -> ValkeyServer:
        """Return the primary that serves a key at first."""
        return self.primaries[self.index_of(key)]

    def move(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        """Hand a slot over, its keys included, as an operator's tool does."""
        self.begin_move(slot, source, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, target, *self.primaries)

    def begin_move(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        """Mark a slot as moving: from now on the source sends those who ask for missing keys to the target."""
        execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ident(source))
        execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ident(target))

    def move_keys(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        """Move all keys of a slot."""
        while keys := execute(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            execute(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 1000, "KEYS", *keys)

    def end_move(self, slot: int, target: ValkeyServer, *others: ValkeyServer) -> None:
        """Tell primaries where a slot is now."""
        # The target first: told last, it would send back whoever the source sends to it.
        for server in (target, *(server for server in others if server is not target)):
            execute(server, "CLUSTER", "SETSLOT", slot, "NODE", ident(target))
        # Who has not heard of this move would begin the next with an old epoch, and lose the slot to what is under way.
        assert eventually(
            lambda: len({_info(server, "cluster_current_epoch") for server in self.servers}) == 1, 10, ASKING_SECONDS
        )

    def knows(self, server: ValkeyServer, other: ValkeyServer) -> bool:
        """Tell whether a node has heard that another is a primary."""
        rows = execute(server, "CLUSTER", "NODES").splitlines()
        return any(row.startswith(ident(other)) and "master" in row for row in rows)

    def promoted(self, number: int) -> bool:
        """Tell whether the replica of a primary has taken over."""
        return _role(self.replicas[number]) == "master"

    def healthy(self) -> bool:
        """Tell whether every node runs, knows the others to be well, and has its replica in step."""
        try:
            linked = all(
                execute(server, "INFO", "replication")["master_link_status"] == "up" for server in self.replicas
            )
            return linked and all(cluster_info(server)["cluster_state"] == "ok" for server in self.servers)
        except (RedisError, OSError):
            return False


def ident(server: ValkeyServer) -> str:
    """Return a node's name in its cluster."""
    return execute(server, "CLUSTER", "MYID")


def cluster_info(server: ValkeyServer) -> dict[str, str]:
    """Return what a node says of its cluster."""
    return dict(line.split(":") for line in execute(server, "CLUSTER", "INFO").splitlines())


def _info(server: ValkeyServer, field: str) -> int:
    return int(cluster_info(server)[field])


def _replicates(replica: ValkeyServer, primary: str) -> bool:
    try:
        return bool(execute(replica, "CLUSTER", "REPLICATE", primary))
    except RedisError:
        return False


def _role(server: ValkeyServer) -> str:
    try:
        return execute(server, "ROLE")[0]
    except (RedisError, OSError):
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)
