"""A cluster of some primaries on this machine, with documents of many projects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from redis import Redis

from benchmarks.world import FAR
from enforcement.limiter import Limiter
from enforcement.model.limits import Consistency, Limit
from enforcement.testing import Published
from tests.enforcement.topologies import Cluster, plain

PROJECTS = 48
NODE_TIMEOUT_MS = 15_000
"""Nodes share one core here, and none shall be taken for lost."""
PATIENCE = 0.5
OWN, LEASED = "own", "leased"
EVERYONE, EVERYONE_LEASED = "everyone", "everyone-leased"


def _limit(name: str, consistency: Consistency = "strict") -> Limit:
    return Limit(name=name, algorithm="fixed_window", quota=FAR, window_seconds=60, consistency=consistency)


POLICIES = {
    OWN: _limit("minute"),
    LEASED: _limit("leased", "leased"),
    EVERYONE: _limit("all"),
    EVERYONE_LEASED: _limit("all-leased", "leased"),
}


class Load(NamedTuple):
    """What the nodes have done: microseconds of processor time of each, and calls of functions of all."""

    cpu_us: list[float]
    calls: int


class Nodes:
    """
    A cluster with a limiter.

    Attributes:
        tokens: By the policy of the token, one token of each project.
    """

    def __init__(self, cluster: Cluster, published: Published, limiter: Limiter, clients: list[Redis]) -> None:
        self.cluster, self.limiter, self._published, self._clients = cluster, limiter, published, clients
        for slug, limit in POLICIES.items():
            published.policy(slug, limit)
        self.tokens: dict[str, list[str]] = {OWN: [], LEASED: []}
        for number in range(PROJECTS):
            published.project(f"p{number}")
            for slug, secrets in self.tokens.items():
                secrets.append(published.token(policy=slug, project=f"p{number}"))

    def globally(self, policy: str | None) -> None:
        """Apply a policy to every request, or none. Returns when the limiter uses it."""
        self._published.globally(policy)

    def load(self) -> Load:
        """Return what the nodes have done so far."""
        cpu, calls = [], 0
        for client in self._clients:
            used = client.info("cpu")
            cpu.append((float(used["used_cpu_user_main_thread"]) + float(used["used_cpu_sys_main_thread"])) * 1e6)
            calls += int(client.info("commandstats").get("cmdstat_fcall", {}).get("calls", 0))
        return Load(cpu, calls)


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """Run a cluster of so many primaries while the block runs."""
    with Cluster(replicas=False, count=count, timeout_ms=NODE_TIMEOUT_MS) as cluster:
        published = Published(cluster.url)
        clients = [plain(server) for server in cluster.primaries]
        try:
            with Limiter(cluster.url, timeout=PATIENCE) as limiter:
                published.followers.append(limiter)
                yield Nodes(cluster, published, limiter, clients)
        finally:
            published.close()
            for client in clients:
                client.close()
