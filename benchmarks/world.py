"""A store of its own, with policies, projects and tokens published as the control plane publishes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from enforcement.embedded import ValkeyServer
from enforcement.model.limits import Limit
from enforcement.model.tokens import mint
from enforcement.testing import Published

FAR = 1_000_000_000
"""A quota that no run comes near."""
FAR_COST = 1_000 * FAR
"""The same where one request costs many permits."""
MODEL = "gpt-x"
PRICE = {"model": MODEL, "input": 150_000, "output": 600_000}
"""Of the only model, micros per million tokens."""
TOKENS_A_CALL = 2_000

PER_MINUTE = Limit(name="minute", algorithm="fixed_window", quota=FAR, window_seconds=60)
PER_DAY = Limit(name="day", algorithm="fixed_window", quota=FAR, calendar="day")
PROJECT_MINUTE = Limit(name="project-minute", algorithm="fixed_window", quota=FAR, window_seconds=60)
SLIDING = Limit(name="sliding", algorithm="sliding_window", quota=FAR, window_seconds=60)
BUCKET = Limit(name="bucket", algorithm="token_bucket", quota=FAR, window_seconds=60)
LEASED = Limit(name="leased", algorithm="fixed_window", quota=FAR, window_seconds=60, consistency="leased")
TOKENS = Limit(name="tokens", algorithm="fixed_window", quota=FAR_COST, window_seconds=60, unit="tokens")
MONEY = Limit(name="money", algorithm="fixed_window", quota=FAR_COST, window_seconds=60, unit="micros")
KEPT = Limit(name="kept", algorithm="fixed_window", quota=FAR_COST, calendar="year", unit="tokens")
SLOTS = Limit(name="slots", algorithm="concurrency", quota=1_000, window_seconds=60)
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
    "tokens": (TOKENS,),
    "money": (MONEY,),
    "bound": (MONEY,),
    "kept": (KEPT,),
    "four kinds": (PER_MINUTE, TOKENS, MONEY, SLOTS),
}
RULES: Mapping[str, dict[str, str]] = {"bound": {"estimate": "bound", "on_disconnect": "drain"}}
"""What policies say of metered requests, if that is not the usual."""
_TRIVIAL = "#!lua name=benchmarks\nredis.register_function('bench_nothing', function() return 1 end)"


class World:
    """One server with its documents."""

    def __init__(self, server: ValkeyServer) -> None:
        self.url, self.port = server.url, server.port
        self._published = Published(server.url)
        self.keys, self.client = self._published.keys, self._published.client
        self._made = 0
        self.client.function_load(_TRIVIAL)
        self._published.publish(_documents())
        self._published.prices(PRICE)

    def tokens(self, policy: str | None, count: int, project: str = PLAIN) -> list[str]:
        """Publish tokens under a policy, or under none; return their secrets."""
        secrets = [mint("live") for _ in range(count)]
        for start in range(0, count, TOKENS_A_CALL):
            part = secrets[start : start + TOKENS_A_CALL]
            self._published.publish(tokens={secret: self._token(policy, project) for secret in part})
        return secrets

    @property
    def name(self) -> str:
        """The name and version of the server."""
        info = self.client.info("server")
        return f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"

    def main_thread_seconds(self) -> float:
        """Return the processor time that the store's main thread has used."""
        info = self.client.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])

    def calls(self, command: str) -> int:
        """Return how often a command was called."""
        return int(self.client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def reads(self) -> int:
        """Return how often the store has read from its connections. Commands that arrive together are one."""
        return int(self.client.info("stats")["total_reads_processed"])

    def _token(self, policy: str | None, project: str) -> dict[str, Any]:
        self._made += 1
        token = {"schema": 1, "id": token_id(self._made), "project": project, "name": "bench"}
        return {**token, "policy": policy and f"pol_{policy}", "revoked": False, "expires_at_us": None, "overrides": []}


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
        policy |= {"metering": RULES[name]} if name in RULES else {}
        documents[f"policy:pol_{name}"] = {**policy, "limits": [limit.to_json() for limit in limits]}
    for ident, slug, policy_id in ((PLAIN, "plain", None), (SHARED, "shared", "pol_project")):
        project = {"schema": 1, "id": ident, "slug": slug, "active": True, "policy": policy_id, "overrides": []}
        documents[f"project:{ident}"] = project
    return documents
