"""The first four steps of the demo, in which a limit is created, used and changed, and its token revoked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from controlplane.demo.environment import DemoEnvironment
from controlplane.demo.load import NEVER, DemoReply, Readiness, Replies
from controlplane.demo.reporter import Reporter

POLICY = "demo-requests"
LIMIT = "per-minute"
QUOTA = 100
RAISED = 150
WINDOW_SECONDS = 60
EACH_AT_ONCE = 100
EACH_AFTER_RAISE = 30
# A change must reach every proxy within this time.
LIVE_MS = 100.0


@dataclass(frozen=True)
class DemoToken:
    """A token of the demo's project."""

    id: str
    secret: str = field(repr=False)


async def new_token(demo: DemoEnvironment, name: str, policy: str = POLICY) -> DemoToken:
    """Create a token over REST, and return its id and secret."""
    created = (await demo.call("POST", "projects/demo/tokens", {"name": name, "policy": policy})).json()
    return DemoToken(created["id"], created["secret"])


def a_limit(quota: int) -> dict[str, object]:
    """Return the demo's limit, with this quota, as a body of REST."""
    return {"name": LIMIT, "algorithm": "fixed_window", "quota": quota, "window_seconds": WINDOW_SECONDS}


async def create(demo: DemoEnvironment, reporter: Reporter) -> DemoToken:
    """Create a project, a policy and a token, print a check that every proxy has them, and return the token."""
    reporter.step(f"A project, a policy of {QUOTA} requests per minute and a token are created over REST")
    started = time.perf_counter()
    await demo.call("POST", "projects", {"slug": "demo", "name": "Demo"})
    await demo.call("POST", "policies", {"slug": POLICY, "name": "Demo requests", "limits": [a_limit(QUOTA)]})
    issued = await demo.call("POST", "projects/demo/tokens", {"name": "first", "policy": POLICY})
    spent_ms = (time.perf_counter() - started) * 1000
    revision = issued.headers["Sluicegate-Revision"]
    reporter.check(revision.isdecimal(), f"three calls take {spent_ms:.0f} ms and are published as revision {revision}")
    instants = await demo.clients.when_ready(runs(revision))
    reporter.check(max(instants) < NEVER, f"all three proxies run revision {revision}")
    return DemoToken(issued.json()["id"], issued.json()["secret"])


async def saturate(demo: DemoEnvironment, reporter: Reporter, token: DemoToken) -> None:
    """Send three times the quota at once over three proxies, and print a check that exactly the quota passes."""
    sent = EACH_AT_ONCE * len(demo.stack.proxy_urls)
    reporter.step(f"{sent} concurrent requests are sent with that token, {EACH_AT_ONCE} to each of three proxies")
    await room_in_window(reporter, seconds=12)
    replies = await demo.clients.at_once(token.secret, each=EACH_AT_ONCE)
    passed, denied = replies.count(200), replies.count(429)
    reporter.check(passed == QUOTA, f"{passed} pass (by proxy: {_listed(replies.by_proxy(200))})")
    reporter.check(denied == sent - QUOTA, f"{denied} get 429 (by proxy: {_listed(replies.by_proxy(429))})")
    wrong = [reply for reply in replies.having(429) if not explains(reply, QUOTA)]
    sample = replies.having(429)[0].headers if denied else httpx2.Headers()
    reporter.check(denied > 0 and not wrong, "each 429 has the reason, the limit and the time to wait:")
    for name in ("Content-Type", "Retry-After", "RateLimit-Policy", "RateLimit"):
        reporter.note(f"  {name}: {sample.get(name, '-')}")
    note_times(reporter, replies)


async def raise_quota(demo: DemoEnvironment, reporter: Reporter, token: DemoToken) -> None:
    """Raise the quota over REST, and print checks that the usage so far still counts."""
    reporter.step(f"The quota is raised to {RAISED} with one PATCH")
    before = await _revision_of(demo)
    change = demo.call("PATCH", f"policies/{POLICY}", {"limits": [a_limit(RAISED)]})
    answer, delays = await _watched(change, demo.clients.when_ready(lambda readiness: readiness["revision"] > before))
    revision = answer.headers["Sluicegate-Revision"]
    reporter.check(
        max(delays) < LIVE_MS, f"revision {revision} is live on all three: {_delays(delays)} after the reply"
    )
    replies = await demo.clients.at_once(token.secret, each=EACH_AFTER_RAISE)
    passed = replies.count(200)
    more = f"{passed} more pass of {len(replies.all)} (by proxy: {_listed(replies.by_proxy(200))})"
    reporter.check(passed == RAISED - QUOTA, f"{more}, so the earlier usage still counts")


async def revoke(demo: DemoEnvironment, reporter: Reporter, token: DemoToken) -> None:
    """Revoke the token over REST, and print checks that every proxy refuses it."""
    reporter.step("The token is revoked")
    call = demo.call("POST", f"tokens/{token.id}/revoke")
    _, delays = await _watched(call, demo.clients.when_refused(token.secret))
    reporter.check(max(delays) < LIVE_MS, f"401 from all three: {_delays(delays)} after the reply")
    replies = await demo.clients.in_turn(token.secret, each=5)
    refused = [reply for reply in replies.having(401) if "invalid_token" in reply.headers.get("WWW-Authenticate", "")]
    reporter.check(len(refused) == len(replies.all), f"{len(refused)} of {len(replies.all)} further requests get 401")


def runs(revision: str) -> Callable[[Readiness], bool]:
    """Return a function that returns whether the proxy with a given readiness runs *revision* or a later one."""
    return lambda readiness: revision.isdecimal() and readiness["revision"] >= int(revision)


def explains(reply: DemoReply, quota: int) -> bool:
    """Return whether a denial has the headers that say why and for how long it denies."""
    wait = reply.headers.get("Retry-After", "")
    return (
        reply.headers.get("Content-Type") == "application/problem+json"
        and wait.isdecimal()
        and 1 <= int(wait) <= WINDOW_SECONDS
        and reply.headers.get("RateLimit-Policy") == f'"{LIMIT}";q={quota};w={WINDOW_SECONDS}'
        and reply.headers.get("RateLimit", "").startswith(f'"{LIMIT}";r=0;t=')
    )


def note_times(reporter: Reporter, replies: Replies) -> None:
    """Print how long the replies took for the client."""
    reporter.note(
        f"{len(replies.all)} replies in {replies.ms:.0f} ms, median {replies.median_ms:.1f} ms, "
        f"slowest {replies.slowest_ms:.1f} ms"
    )


async def room_in_window(reporter: Reporter, seconds: float) -> None:
    """Wait for the next minute if this one ends within *seconds*, so that the window does not end during a step."""
    left = WINDOW_SECONDS - time.time() % WINDOW_SECONDS
    if left < seconds:
        reporter.note(f"(waiting {left:.0f} s for the next minute, so that the window does not end during this step)")
        await asyncio.sleep(left + 0.05)


async def _revision_of(demo: DemoEnvironment) -> int:
    """Return the highest revision that a proxy runs."""
    seen: list[int] = []

    def noting(readiness: Readiness) -> bool:
        seen.append(readiness["revision"])
        return True

    await demo.clients.when_ready(noting)
    return max(seen)


async def _watched(
    call: Awaitable[httpx2.Response], watch: Awaitable[list[float]]
) -> tuple[httpx2.Response, list[float]]:
    """Make a call while *watch* runs, and return the response and how many milliseconds later each proxy followed."""
    watching = asyncio.ensure_future(watch)
    try:
        answer = await call
        replied = time.perf_counter()
        return answer, [max(0.0, (seen - replied) * 1000) for seen in await watching]
    finally:
        watching.cancel()


def _delays(delays: Sequence[float]) -> str:
    return ", ".join(f"{delay:.0f}" for delay in delays) + " ms"


def _listed(counts: Sequence[int]) -> str:
    return " + ".join(map(str, counts))
