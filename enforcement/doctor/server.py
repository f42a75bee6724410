"""The server itself: what it is, whether it keeps what it is given, and whether its clock is right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from redis import Redis

from enforcement.doctor.findings import Finding, pairs
from enforcement.embedded import OLDEST_MAJOR

# Documents never expire and must never be evicted; counters expire, and lost ones over-admit.
SAFE_EVICTION: Final = ("noeviction", "volatile-ttl")
FULL_SHARE: Final = 0.9
SKEW_SECONDS: Final = 1.0
CLOCK_ROUNDS: Final = 5


def eviction_advice(policy: object) -> str:
    """Return what to do about a ``maxmemory-policy``; nothing if it keeps documents and counters."""
    if policy in SAFE_EVICTION:
        return ""
    return "Set maxmemory-policy to noeviction, or volatile-ttl."


def identity(client: Redis) -> Iterator[Finding]:
    """Say which server this is, and whether it can be written to."""
    # HELLO without arguments changes nothing, and no account can be kept from it.
    said = pairs(client.execute_command("HELLO"))  # type: ignore[no-untyped-call]
    name, version = said["server"], str(said["version"])
    old = name == "redis" and int(version.partition(".")[0]) < OLDEST_MAJOR
    advice = f"Use Redis {OLDEST_MAJOR} or newer, or any Valkey: decisions are functions inside the server."
    yield Finding("server", "problem" if old else "ok", f"{name} {version}, {said['mode']}", advice if old else "")
    replica = said["role"] != "master"
    advice = "Give the address of the primary: a replica takes no charge." if replica else ""
    yield Finding("role", "problem" if replica else "ok", "replica" if replica else "primary", advice)


def memory(client: Redis) -> Iterator[Finding]:
    """Say whether the server may forget what it holds, and how much room there is."""
    said = client.info("memory")
    policy = said.get("maxmemory_policy")
    advice = eviction_advice(policy)
    if advice:
        advice += " Evicted counters admit too much, evicted documents stop the fleet."
    yield Finding("eviction", "warning" if advice else "ok", f"maxmemory-policy {policy}", advice)
    used, most = int(said["used_memory"]), int(said.get("maxmemory", 0))
    if not most:
        yield Finding("memory", "ok", f"{_megabytes(used)} used, no limit set")
        return
    value = f"{_megabytes(used)} of {_megabytes(most)} used"
    if used > FULL_SHARE * most:
        advice = "Raise maxmemory: a full server refuses to charge, and each limit is decided by its own rule."
        yield Finding("memory", "warning", value, advice)
    else:
        yield Finding("memory", "ok", value)


def persistence(client: Redis) -> Iterator[Finding]:
    """Say what a restart of the server would forget."""
    said = client.info("persistence")
    failing = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if said.get(name, "ok") != "ok"]
    if failing:
        advice = "See the server's log: is its disk full? Until then it may refuse to charge."
        yield Finding("persistence", "problem", f"{', '.join(failing)} not ok", advice)
    elif said.get("aof_enabled"):
        yield Finding("persistence", "ok", "append-only file")
    else:
        advice = "Set appendonly yes: a restart forgets what was counted since the last snapshot, or all."
        yield Finding("persistence", "warning", "no append-only file", advice)


def clock(client: Redis) -> Iterator[Finding]:
    """Compare the server's clock with this host's. The quickest of several questions is the most exact."""
    offset, error = min((_clock_once(client) for _ in range(CLOCK_ROUNDS)), key=lambda pair: pair[1])
    side = "behind" if offset < 0 else "ahead"
    value = f"the store is {abs(offset) * 1_000:.1f} ms {side} (+-{error * 1_000:.1f} ms)"
    if abs(offset) - error > SKEW_SECONDS:
        advice = "Set both by NTP. Limits follow the store's clock; logs, reports and people follow this one."
        yield Finding("clock", "warning", value, advice)
    else:
        yield Finding("clock", "ok", value)


def _clock_once(client: Redis) -> tuple[float, float]:
    """Return how far the server is ahead, and by how much that may be wrong; seconds."""
    sent = time.time()
    seconds, microseconds = client.time()
    received = time.time()
    return seconds + microseconds / 1e6 - (sent + received) / 2, (received - sent) / 2


def _megabytes(size: int) -> str:
    return f"{size / 1_048_576:.1f} MiB"
