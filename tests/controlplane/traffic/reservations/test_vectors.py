"""Plays the scenarios with settlements by hand through a metered door, the store and REST."""

import asyncio

import pytest

from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.keys import Keys
from enforcement.model.metered import METERED_UNITS
from enforcement.plan.records import RecordKeys
from enforcement.store_calls.reservations import open_reservations
from tests.controlplane.traffic.reservations.conftest import lose
from tests.enforcement.doors.metered.provider import Visit, whole
from tests.enforcement.metering.fleet import load
from tests.loops import StandingLoop

pytestmark = pytest.mark.django_db(transaction=True)

# Without a limit of tokens or money, there is no record that an operator could settle.
VECTORS = [
    vector
    for vector in load("settle")
    if "by_hand" in [step["op"] for step in vector["steps"]]
    and not METERED_UNITS.isdisjoint([limit["unit"] for limit in vector["limits"]])
]
WINDOW = {"algorithm": "fixed_window", "calendar": "lifetime", "quota": 10**12}
WORDS = {("settled", "nothing"): "released", ("settled", "exact"): "settled"}


class Play:
    """One reservation of a door whose process stands still between the steps."""

    def __init__(self, runner, api, client, url, vector):
        self.runner, self.api, self.client, self.seen = runner, api, client, asyncio.Event()
        self.usage = runner.run(self.future())
        limits = [{**WINDOW, **limit} for limit in vector["limits"]]
        assert api("POST", "policies", {"slug": "p", "name": "P", "limits": limits}).status_code == 201
        project = api("POST", "projects", {"slug": "chat", "name": "Chat"}).json()["id"]
        for price in vector["prices"]["prices"]:
            assert api("PUT", "prices", price).status_code == 201
        token = api("POST", "projects/chat/tokens", {"name": "ci", "policy": "p"}).json()
        self.project, self.token, self.secret = project, token["id"], token["secret"]
        self.limiter = aio.Limiter(url, timeout=5.0, lookup=5.0)

    async def future(self):
        return asyncio.get_running_loop().create_future()

    async def provider(self, scope, receive, send):
        await receive()
        self.seen.set()
        usage = await self.usage
        counts = {"prompt_tokens": usage["input"], "completion_tokens": usage["output"]}
        await whole(send, {"model": "m", "choices": [], "usage": counts})

    async def begin(self, request):
        text = {"role": "user", "content": "x" * request["text_bytes"]}
        body = {"model": request["model"], "max_tokens": request["cap"], "messages": [text]}
        self.visit = Visit(LimitMiddleware(self.provider, self.limiter, metered=True), self.secret, body)
        await self.seen.wait()

    async def close(self):
        """End the request, which settles it once more, and only then the limiter."""
        self.visit.task.cancel()
        await asyncio.wait({self.visit.task})
        await self.limiter.close()

    def play(self, step):
        if step["at_ms"] > 7 * DAY_SECONDS * 1_000:  # the store has forgotten it
            where = RecordKeys.from_id(Keys(), self.id)
            assert self.client.pttl(where.record) <= 7 * DAY_SECONDS * 1_000
            self.client.unlink(where.record, where.index)
        getattr(self, f"do_{step['op']}", lambda step: None)(step)
        self.compare(step.get("expect", {}))

    def do_reserve(self, step):
        self.runner.run(self.begin(step["request"]))
        (row,) = open_reservations(self.client, Keys(), self.project)
        self.id = row.id

    def do_expires(self, step):
        lose(self.client, self.id)

    def do_usage(self, step):
        self.usage.set_result(step["usage"])
        self.runner.run(self.ended())

    async def ended(self):
        await self.visit.task

    def do_by_hand(self, step):
        usage = {"usage": step["usage"]} if "usage" in step else {}
        verb = "settle" if usage else "release"
        assert self.api("POST", f"reservations/{self.id}/{verb}", {"reason": "x", **usage}).status_code < 500

    def compare(self, expect):
        rows = self.api("GET", f"counters?token={self.token}").json()["results"]
        used = {row["limit"].partition("/")[2]: row["used"] for row in rows}
        for wanted in (expect.get("charges", {}), expect.get("used", {})):
            assert {name: used[name] for name in wanted} == wanted
        if expect.get("state") == "settled":
            row = self.api("GET", f"reservations/{self.id}").json()
            assert (row["state"], row["settled_as"]) == (WORDS["settled", expect["settled_as"]], expect["settled_as"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_a_settlement_by_hand_charges_what_the_scenario_says(api, store, client_of_store, vector):
    with StandingLoop() as runner:
        play = Play(runner, api, client_of_store, store.url, vector)
        try:
            for step in vector["steps"]:
                play.play(step)
        finally:
            runner.run(play.close())
