"""A store of its own, with policies, projects and tokens published as the control plane publishes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from enforcement.embedded import ValkeyServer
from enforcement.keys import GLOBAL_TAG, WHOLE, Keys
from enforcement.limits import Limit
from enforcement.publishing import Publication, publish_call
from enforcement.store import connect, load_library
from enforcement.tokens import digest, mint

FAR = 1_000_000_000
"""A quota that no run comes near."""
TOKENS_A_CALL = 2_000

PER_MINUTE = Limit(name="minute", algorithm="fixed_window", quota=FAR, window_seconds=60)
PER_DAY = Limit(name="day", algorithm="fixed_window", quota=FAR, calendar="day")
PROJECT_MINUTE = Limit(name="project-minute", algorithm="fixed_window", quota=FAR, window_seconds=60)
SLIDING = Limit(name="sliding", algorithm="sliding_window", quota=FAR, window_seconds=60)
BUCKET = Limit(name="bucket", algorithm="token_bucket", quota=FAR, window_seconds=60)
LEASED = Limit(name="leased", algorithm="fixed_window", quota=FAR, window_seconds=60, consistency="leased")
CLOSED = Limit(name="closed", algorithm="fixed_window", quota=1, window_seconds=86_400)

# Ids as long as real ones: keys are made of them.
PLAIN, SHARED = ("proj_" + letter * 26 for letter in "ab")
POLICIES: Mapping[str, tuple[Limit, ...]] = {
    "fixed": (PER_MINUTE,),
    "sliding": (SLIDING,),
    "bucket": (BUCKET,),
    "leased": (LEASED,),
    "closed": (CLOSED,),
    "two": (PER_MINUTE, PER_DAY),
    "project": (PROJECT_MINUTE,),
}
_TRIVIAL = "#!lua name=benchmarks\nredis.register_function('bench_nothing', function() return 1 end)"


class World:
    """One server with its documents."""

    def __init__(self, server: ValkeyServer) -> None:
        self.url = server.url
        self.keys = Keys()
        self.client = connect(server.url, timeout=10.0)
        self._revision = 0
        self._made = 0
        load_library(self.client)
        self.client.function_load(_TRIVIAL)
        for tag in (GLOBAL_TAG, PLAIN, SHARED):
            self.client.sadd(self.keys.dirty(tag), WHOLE)  # nothing was ever counted here that could have been lost
        self._publish(_documents(), {})

    def tokens(self, policy: str, count: int, project: str = PLAIN) -> list[str]:
        """Publish tokens under a policy; return their secrets."""
        secrets = [mint("live") for _ in range(count)]
        for start in range(0, count, TOKENS_A_CALL):
            part = secrets[start : start + TOKENS_A_CALL]
            self._publish({}, {digest(secret): self._token(policy, project) for secret in part})
        return secrets

    def main_thread_seconds(self) -> float:
        """Return the processor time that the store's main thread has used."""
        info = self.client.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])

    def calls(self, command: str) -> int:
        """Return how often a command was called."""
        return int(self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def _token(self, policy: str, project: str) -> dict[str, Any]:
        self._made += 1
        token = {"schema": 1, "id": token_id(self._made), "project": project, "name": "bench"}
        return {**token, "policy": f"pol_{policy}", "revoked": False, "expires_at_us": None, "overrides": []}

    def _publish(self, documents: dict[str, Any], tokens: dict[str, Any]) -> None:
        self._revision += 1
        publication = Publication(self._revision, time.time_ns() // 1_000, "benchmarks", documents, tokens)
        function, keys, args = publish_call(publication, self.keys)
        self.client.fcall(function, len(keys), *keys, *args)


def token_id(number: int) -> str:
    """Return an id as long as real ones."""
    return f"tok_{number:026}"


@contextmanager
def world() -> Iterator[World]:
    """Run a server without persistence while a block lasts."""
    with ValkeyServer(persistent=False) as server:
        yield World(server)


def _documents() -> dict[str, Any]:
    documents: dict[str, Any] = {"global": {"schema": 1, "policy": None}}
    for name, limits in POLICIES.items():
        policy = {"schema": 1, "id": f"pol_{name}", "slug": name, "name": name, "version": 1}
        documents[f"policy:pol_{name}"] = {**policy, "limits": [limit.to_json() for limit in limits]}
    for ident, slug, policy_id in ((PLAIN, "plain", None), (SHARED, "shared", "pol_project")):
        project = {"schema": 1, "id": ident, "slug": slug, "active": True, "policy": policy_id, "overrides": []}
        documents[f"project:{ident}"] = project
    return documents
