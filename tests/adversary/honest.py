"""Recorded traffic under a budget: how much of it honest consumers can use, although it is a hard one."""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.adversary import consumers
from tests.adversary.market import BOUND, Market, market
from tests.adversary.scripts import Call
from tests.enforcement.metering.recorded_vectors import FAMILIES, body_of, chunks_of, prices, vectors_of
from tests.enforcement.metering.test_recorded_vectors import UNREAD, play

ACCOUNT = "honest"
GIVES_UP = 100
"""Denials in a row, of all clients together, after which nobody asks any more."""
AS_SHIPPED = {"UPSTREAM_TIMEOUT": "60", "ANSWER_DRAIN_SECONDS": "600", "ANSWER_DRAINS": "256"}


@dataclass
class Recorded:
    """
    A request that was recorded, with its answer.

    Attributes:
        answer: As the provider replays it, with ``micros``, what it did cost by the list of that provider.
        reserved: What a bound reserves for it, in micros.
    """

    call: Call
    answer: dict[str, Any]
    reserved: int


@dataclass
class Used:
    """
    What became of the budget, in micros.

    Attributes:
        lefts: How many clients left before the end of their answer.
    """

    budget: int
    invoice: float
    charged: int
    requests: int
    lefts: int

    @property
    def ratio(self) -> float:
        return self.invoice / self.budget


def traffic() -> tuple[list[Recorded], list[dict[str, Any]]]:
    """Return all recorded requests that a bound admits, and the prices of their models."""
    listed: dict[str, Mapping[str, Any]] = {}
    found = []
    for family in FAMILIES:
        for vector in vectors_of(family) if family not in UNREAD else ():
            found += _recorded(vector, listed)
    return found, [{"model": name, **entry} for name, entry in listed.items()]


def _recorded(vector: dict[str, Any], listed: dict[str, Mapping[str, Any]]) -> Iterator[Recorded]:
    played, expected = play(vector), vector["expected"]
    opening = played.openings["bound"]
    micros = expected.get("micros")
    if opening is None or opening.estimate is None or not micros or expected.get("approximate"):
        return
    row = vector.get("price", f"{vector['name'].partition('/')[0]}/{vector['model']}")
    entry, model = prices().get(row, prices()["generic"]), opening.asked.attributes["model"]
    is_cut = expected["usage"].get("output", 0) > opening.estimate.output
    if is_cut or listed.setdefault(model, entry) != entry:
        return  # the cap that the proxy writes shortens it, or two providers have one name for a model
    request, answer = vector["request"], vector["answer"]
    fields = {"content-type": "application/json", **request.get("headers", {})}
    replayed = {
        "status": answer.get("status", 200), "headers": answer.get("headers", {}), "micros": micros,
        "type": _type_of(answer), "chunks": [base64.b64encode(chunk).decode() for chunk in chunks_of(answer)],
    }  # fmt: skip
    yield Recorded(Call(request["path"], body_of(request), fields=fields), replayed, opening.estimated_costs[0])


def _type_of(answer: dict[str, Any]) -> str:
    if "events" in answer:
        return "text/event-stream"
    return "application/vnd.amazon.eventstream" if "frames" in answer else "application/json"


def use(seed: str, *, clients: int = 30, leaves: float = 0.05, medians: int = 30) -> Used:
    """
    Send recorded requests until the budget admits hardly any, and return what became of it.

    Args:
        clients: How many send at the same time.
        leaves: The share of them that leaves before the end of an answer.
        medians: The budget, in median reservations.
    """
    requests, entries = traffic()
    budget = medians * int(statistics.median(one.reserved for one in requests))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([one.answer for one in requests], file)
        file.flush()
        with market(answers=Path(file.name), prices=entries, **AS_SHIPPED) as place:
            secret = place.open({ACCOUNT: (budget, BOUND)})[ACCOUNT]
            lefts = asyncio.run(_send_all(place, secret, requests, Random(seed), clients, leaves))
            place.proxies.stop()
            said = place.invoice()[ACCOUNT]
            return Used(budget, said["micros"], place.charged()[ACCOUNT], said["requests"], lefts)


async def _send_all(
    place: Market, secret: str, requests: list[Recorded], dice: Random, clients: int, leaves: float
) -> int:
    outcome, lefts = consumers.Outcome(), 0

    async def consume() -> None:
        nonlocal lefts
        while outcome.in_a_row < GIVES_UP:
            number = dice.randrange(len(requests))
            recorded = requests[number].call
            goes = dice.choice(("head", "soon")) if dice.random() < leaves else ""
            behaves = {"replay": number, "pause": 0.2 if goes else dice.uniform(0, 0.05)}
            call = Call(recorded.path, recorded.body, behaves, goes, recorded.fields)
            status = await consumers.send(dice.choice(place.proxies.ports()), secret, ACCOUNT, call)
            outcome.note(status)
            lefts += bool(goes and status != 429)
            if status == 429:
                await asyncio.sleep(0.02)

    await asyncio.gather(*(consume() for _ in range(clients)))
    return lefts
