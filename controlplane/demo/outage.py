"""Steps five and six of the demo, in which the store is stopped and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.demo.environment import DemoEnvironment
from controlplane.demo.load import NEVER, Replies
from controlplane.demo.reporter import Reporter
from controlplane.demo.steps import LIMIT, POLICY, RAISED, WINDOW_SECONDS, DemoToken, new_token, room_in_window

EACH_BEFORE = 4
EACH_FROZEN = 30
EACH_KILLED = 30
# A decision without the store takes at most 25 ms. The rest is for two HTTP servers and a client on one machine.
ANSWER_MS = 250.0
HEALED_SECONDS = 30.0
USAGE_SECONDS = 60.0
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class DemoOutage:
    """The token that was used during the outage, the number of its admitted requests, and the minute of the outage."""

    token: DemoToken
    admitted: int
    minute: int


async def stop_store(demo: DemoEnvironment, reporter: Reporter) -> DemoOutage:
    """Freeze and kill the store, and return the token used and what it was admitted before and during the outage."""
    reporter.step("Valkey is frozen (SIGSTOP) and then killed, while a new token sends requests")
    token = await new_token(demo, "outage")
    await room_in_window(reporter, seconds=25)
    minute = _minute()
    before = await demo.clients.in_turn(token.secret, each=EACH_BEFORE)
    # One after the other, so that each proxy knows the remaining permits, which differ by one between them.
    last = await demo.clients.one_by_one(token.secret)
    passed = before.count(200) + last.count(200)
    reporter.note(f"healthy: {passed} pass, median {before.median_ms:.1f} ms, slowest {before.slowest_ms:.1f} ms")
    os.kill(demo.supervisor.pid("valkey"), signal.SIGSTOP)
    frozen = await demo.clients.in_turn(token.secret, each=EACH_FROZEN)
    _check_replies(reporter, "frozen", frozen)
    await demo.supervisor.take_down("valkey")
    killed = await demo.clients.in_turn(token.secret, each=EACH_KILLED)
    _check_replies(reporter, "killed", killed)
    meanwhile = [sum(counts) for counts in zip(frozen.by_proxy(200), killed.by_proxy(200), strict=True)]
    _check_share(reporter, last, meanwhile, passed)
    silent = [reply for reply in (*frozen.all, *killed.all) if "Sluicegate-Degraded" not in reply.headers]
    reporter.check(not silent, "each of these replies has the header Sluicegate-Degraded: fallback")
    return DemoOutage(token, passed + sum(meanwhile), minute)


async def restart_store(demo: DemoEnvironment, reporter: Reporter, first: DemoToken, outage: DemoOutage) -> None:
    """Start the store again, and check that the proxies use it and that every request is counted."""
    reporter.step("Valkey is started again")
    started = time.perf_counter()
    await demo.supervisor.bring_back("valkey")
    answered = time.perf_counter()
    reporter.note(f"it replies {answered - started:.1f} s after its start")
    healed = await demo.clients.when_ready(lambda readiness: readiness["state"] == "ok", HEALED_SECONDS)
    seconds = ", ".join(f"{instant - answered:.1f}" for instant in healed)
    reporter.check(max(healed) < NEVER, f"all three proxies use it again by themselves, {seconds} s later")
    await _check_counter(demo, reporter, outage)
    for name, token in (("first", first), ("outage", outage.token)):
        await _check_usage(demo, reporter, name, token)
    report = await demo.manage("daily_report", "--day", datetime.now(UTC).date().isoformat())
    reporter.check(bool(report), "the daily report of this day so far:")
    for line in report.splitlines():
        reporter.note(f"  {line}")


def _check_replies(reporter: Reporter, state: str, replies: Replies) -> None:
    answers = replies.count(200) + replies.count(429)
    in_time = answers == len(replies.all) and replies.slowest_ms < ANSWER_MS
    reporter.check(
        in_time,
        f"{state}: {answers} of {len(replies.all)} get a reply, {replies.count(200)} pass, "
        f"median {replies.median_ms:.1f} ms, slowest {replies.slowest_ms:.0f} ms",
    )


def _check_share(reporter: Reporter, last: Replies, meanwhile: list[int], passed: int) -> None:
    """Print a check that each proxy admitted at most a third of the remaining permits in its last reply (``r``)."""
    remaining = [int(reply.headers["RateLimit"].split(";r=")[1].split(";")[0]) for reply in last.all]
    shares = [each // len(remaining) for each in remaining]
    total = passed + sum(meanwhile)
    reporter.check(
        all(0 < admitted <= share for admitted, share in zip(meanwhile, shares, strict=True)) and total <= RAISED,
        f"{' + '.join(map(str, meanwhile))} admitted without Valkey, each proxy at most its third of the rest, "
        f"{total} of {RAISED} in total",
    )


async def _check_counter(demo: DemoEnvironment, reporter: Reporter, outage: DemoOutage) -> None:
    """Print a check that the counter contains the requests admitted without the store, if its window has not ended."""
    if _minute() != outage.minute:
        reporter.note("(the minute of the outage is over, so its counter has ended)")
        return
    answer = await demo.call("GET", f"counters?token={outage.token.id}")
    used = next(c["used"] for c in answer.json()["results"] if c["limit"] == f"{POLICY}/{LIMIT}")
    reporter.check(
        used == outage.admitted, f"its counter has caught up: {used} used, {outage.admitted} admitted in all"
    )


async def _check_usage(demo: DemoEnvironment, reporter: Reporter, name: str, token: DemoToken) -> None:
    """Wait until SQL has counted the requests, and print a check that it has counted exactly these."""
    sent = demo.clients.counted[token.secret]
    deadline = time.monotonic() + USAGE_SECONDS
    allowed, denied = await _usage(demo, token)
    while allowed + denied < sent and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        allowed, denied = await _usage(demo, token)
    counted = f"{allowed} allowed + {denied} denied = {allowed + denied}"
    reporter.check(allowed + denied == sent, f"usage in SQL of the token {name!r}: {counted}, {sent} were sent")


async def _usage(demo: DemoEnvironment, token: DemoToken) -> tuple[int, int]:
    answer = await demo.call("GET", f"usage?token={token.id}&step=minute")
    rows: list[dict[str, Any]] = answer.json()["results"]
    return sum(row["allowed"] for row in rows), sum(row["denied"] for row in rows)


def _minute() -> int:
    return int(time.time()) // WINDOW_SECONDS
