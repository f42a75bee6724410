"""Check the server. The checks cover version, role, eviction, memory, persistence and clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from redis import Redis

from enforcement.doctor.findings import Finding, pairs
from enforcement.embedded import OLDEST_MAJOR

# Every other policy evicts counters, and a lost counter admits too much.
SAFE_EVICTION: Final = "noeviction"
FULL_SHARE: Final = 0.9
SKEW_SECONDS: Final = 1.0
CLOCK_ROUNDS: Final = 5


def eviction_advice(policy: object) -> str:
    """Return advice on a ``maxmemory-policy``, or an empty string if the policy is safe."""
    return "" if policy == SAFE_EVICTION else f"Set maxmemory-policy to {SAFE_EVICTION}."


def identity(client: Redis) -> Iterator[Finding]:
    """Yield a finding on the version of the server, and one on whether it is a primary."""
    # HELLO without arguments changes nothing, and every account is permitted to call it.
    hello = pairs(client.execute_command("HELLO"))  # type: ignore[no-untyped-call]
    name, version = hello["server"], str(hello["version"])
    old = name == "redis" and int(version.partition(".")[0]) < OLDEST_MAJOR
    advice = f"Use Redis {OLDEST_MAJOR} or newer, or any Valkey. Decisions need functions inside the server."
    yield Finding("server", "problem" if old else "ok", f"{name} {version}, {hello['mode']}", advice if old else "")
    replica = hello["role"] != "master"
    advice = "Use the address of the primary. A replica cannot charge." if replica else ""
    yield Finding("role", "problem" if replica else "ok", "replica" if replica else "primary", advice)


def memory(client: Redis) -> Iterator[Finding]:
    """Yield a finding on whether the server may evict keys, and one on how much memory is used."""
    info = client.info("memory")
    policy = info.get("maxmemory_policy")
    advice = eviction_advice(policy)
    if advice:
        advice += " Evicted counters admit too much. Evicted documents stop the fleet."
    value, evicted = f"maxmemory-policy {policy}", int(client.info("stats").get("evicted_keys", 0))
    if evicted:
        value += f", {evicted} keys evicted since the server started"
        advice = f"Limits have admitted too much since then. {advice} Then raise maxmemory.".replace("  ", " ")
    yield Finding("eviction", "problem" if evicted else "warning" if advice else "ok", value, advice)
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if not most:
        yield Finding("memory", "ok", f"{_megabytes(used)} used, no limit set")
        return
    value = f"{_megabytes(used)} of {_megabytes(most)} used"
    if used > FULL_SHARE * most:
        advice = "Raise maxmemory. A full server refuses to charge, and on_store_failure of each limit decides."
        yield Finding("memory", "warning", value, advice)
    else:
        yield Finding("memory", "ok", value)


def persistence(client: Redis) -> Iterator[Finding]:
    """Yield a finding on what a restart of the server would lose."""
    info = client.info("persistence")
    failing = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(name, "ok") != "ok"]
    if failing:
        advice = (
            "Read the log of the server and check its disk. Until this is repaired the server may refuse to charge."
        )
        yield Finding("persistence", "problem", f"{', '.join(failing)} not ok", advice)
    elif info.get("aof_enabled"):
        yield Finding("persistence", "ok", "append-only file")
    else:
        advice = (
            "Set appendonly yes. Otherwise a restart loses what was counted since the last snapshot, or everything."
        )
        yield Finding("persistence", "warning", "no append-only file", advice)


def clock(client: Redis) -> Iterator[Finding]:
    """
    Yield a finding on the difference between the clock of the server and that of this host. The fastest of several
    round trips is the most exact.
    """
    offset, error = min((_clock_once(client) for _ in range(CLOCK_ROUNDS)), key=lambda pair: pair[1])
    side = "behind" if offset < 0 else "ahead"
    value = f"the store is {abs(offset) * 1_000:.1f} ms {side} (+-{error * 1_000:.1f} ms)"
    if abs(offset) - error > SKEW_SECONDS:
        advice = "Set both clocks by NTP. Limits follow the clock of the store, logs and reports that of this host."
        yield Finding("clock", "warning", value, advice)
    else:
        yield Finding("clock", "ok", value)


def _clock_once(client: Redis) -> tuple[float, float]:
    """
    Return by how many seconds the server's clock is ahead of this host's, and the largest error of that in seconds. The
    first is negative if it is behind.
    """
    sent = time.time()
    seconds, microseconds = client.time()
    received = time.time()
    return seconds + microseconds / 1e6 - (sent + received) / 2, (received - sent) / 2


def _megabytes(size: int) -> str:
    return f"{size / 1_048_576:.1f} MiB"
