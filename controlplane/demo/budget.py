"""Step eight of the demo, in which three proxies spend one budget of money on a model that streams its answers."""

from __future__ import annotations

import asyncio
import time

from controlplane.demo.environment import DemoEnvironment
from controlplane.demo.load import NEVER, DemoReply, Replies
from controlplane.demo.provider import Invoice
from controlplane.demo.reporter import Reporter
from controlplane.demo.steps import DemoToken, new_token, runs

POLICY = "demo-budget"
LIMIT = "monthly"
BUDGET = 10_000
MODEL = "demo-model"
# Micros for a million tokens.
PRICES = {"input": 1_000_000, "cached_input": 100_000, "output": 25_000_000}
# Questions, each with the most tokens that its answer may have. The first is the cheapest.
QUESTIONS = (("Hello!", 4), ("Which limit denies?", 8), ("How much of the budget is left this month?", 12))
# The number of each question at each proxy. Together they may cost more than the budget.
EACH = 4
MOST_WAVES = 40
SETTLED_SECONDS = 5.0
POLL_SECONDS = 0.02


async def check_budget(demo: DemoEnvironment, reporter: Reporter) -> None:
    """Send requests until the cheapest one is denied, and print checks of what the provider invoices for the others."""
    reporter.step(f"A budget of ${BUDGET / 1_000_000:.2f} a month for a model that streams")
    reporter.note(f"Money is counted in micros, millionths of a dollar, so the budget is {BUDGET:,} micros.")
    token = await _prepare(demo, reporter)
    first = await demo.clients.ask(0, token.secret, _question(0))
    cheapest = BUDGET - _remaining(first)
    reporter.note(f"The cheapest request may cost {cheapest:,} micros. They are charged before it is sent,")
    reporter.note("and when its answer has ended, it has cost what the provider reports. The rest is given back.")
    waves = [Replies([first], first.ms)]
    invoice, used = await _settled(demo, token)
    while used == invoice.micros and BUDGET - used >= cheapest and len(waves) < MOST_WAVES:
        waves.append(await demo.clients.ask_at_once(token.secret, _wave()))
        invoice, used = await _settled(demo, token)
    _report(reporter, waves, invoice, used)
    # On a busy machine so many requests at once may take a proxy's time for the store. It then denies with 503.
    await demo.clients.when_ready(lambda readiness: readiness["state"] == "ok")
    last = await demo.clients.ask_at_once(token.secret, [_question(0)])
    reporter.check(
        BUDGET - used < cheapest and last.count(429) == len(last.all),
        f"{BUDGET - used:,} micros are left, and the cheapest request may cost {cheapest:,}: "
        f"{last.count(429)} of {len(last.all)} proxies deny it with 429",
    )


async def _prepare(demo: DemoEnvironment, reporter: Reporter) -> DemoToken:
    """Create the price, the budget and a token over REST, print a check that all proxies have them, and return it."""
    await demo.call("PUT", "prices", {"model": MODEL, **PRICES})
    limit = {"name": LIMIT, "unit": "micros", "quota": BUDGET, "algorithm": "fixed_window", "calendar": "month"}
    # Without the store, each proxy would have a share of the budget. Here all of it has to be spent.
    limits = [{**limit, "on_store_failure": "deny"}]
    policy = {"slug": POLICY, "name": "Demo budget", "metering": {"estimate": "bound"}, "limits": limits}
    revision = (await demo.call("POST", "policies", policy)).headers["Sluicegate-Revision"]
    instants = await demo.clients.when_ready(runs(revision))
    reporter.check(max(instants) < NEVER, "the price of the model and the budget are published to all three proxies")
    return await new_token(demo, "budget", POLICY)


def _remaining(reply: DemoReply) -> int:
    """Return the micros that were left when a request was admitted, as its answer says, or all of them."""
    return int(reply.headers.get("RateLimit", f";r={BUDGET}").split(";r=")[1].split(";")[0])


async def _settled(demo: DemoEnvironment, token: DemoToken) -> tuple[Invoice, int]:
    """
    Wait until the counter has what the provider invoices.

    Returns:
        The invoice, and the micros on the counter. They differ if they still do after SETTLED_SECONDS.
    """
    deadline = time.monotonic() + SETTLED_SECONDS
    while True:
        answer = await demo.call("GET", f"counters?token={token.id}")
        used = next(c["used"] for c in answer.json()["results"] if c["limit"] == f"{POLICY}/{LIMIT}")
        invoice = demo.invoice(PRICES)
        if used == invoice.micros or time.monotonic() > deadline:
            return invoice, used
        await asyncio.sleep(POLL_SECONDS)


def _report(reporter: Reporter, waves: list[Replies], invoice: Invoice, used: int) -> None:
    """Print how the requests were decided, and checks of the invoice against the budget and the counter."""
    sent = sum(len(wave.all) for wave in waves)
    passed = sum(wave.count(200) for wave in waves)
    most = max(len(wave.all) for wave in waves)
    reporter.check(
        passed == invoice.requests,
        f"{passed} of {sent} requests pass, sent up to {most} at once, and the provider invoices {invoice.requests}",
    )
    reporter.check(invoice.micros <= BUDGET, f"the invoice is {invoice.micros:,} micros, and the budget {BUDGET:,}")
    reporter.check(used == invoice.micros, f"the counter of the budget has the same: {used:,} micros")


def _wave() -> list[dict[str, object]]:
    return [_question(index) for index in range(len(QUESTIONS))] * EACH


def _question(index: int) -> dict[str, object]:
    text, cap = QUESTIONS[index]
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_completion_tokens": cap, "stream": True}
