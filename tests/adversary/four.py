"""
The four runs of the review of metering, which measured what leaves cost:

- ``drain``: typical estimates, a third of the clients leaves, and all answers are read on
- ``cancel``: the same, but answers are cancelled, and the provider stops when nobody listens
- ``bound``: a hard budget, with kills, leaves and refusals
- ``thinking``: the same, with a model that thinks before it speaks
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from tests.adversary import consumers, market
from tests.adversary.scripts import CAP, Call, Script, in_any

PLENTY = 10**10
AS_SHIPPED = {"UPSTREAM_TIMEOUT": "10", "ANSWER_DRAIN_SECONDS": "600", "ANSWER_DRAINS": "256"}


class Sums(NamedTuple):
    """What a run did cost, in micros. *budget* is 0 if there was none to use up."""

    name: str
    requests: int
    budget: int
    invoice: float
    charged: int

    @property
    def line(self) -> str:
        by_budget = f"{self.invoice / self.budget:.3f}" if self.budget else "-"
        return f"| {self.name} | {self.requests} | {by_budget} | {self.invoice / self.charged:.4f} |"


def _drains(dice: Random) -> Call:
    play = {"hidden": 0, "output": dice.randint(50, CAP), "pause": 0.1}
    return Call(*in_any(dice, stream=True), play, dice.choice(("text", "", "")))


def _cancels(dice: Random) -> Call:
    play = {"hidden": 0, "output": 20 * dice.randint(5, CAP // 20), "stops": True}
    return Call(*in_any(dice, stream=True), play, dice.choice(("text", "", "")))


def _bounds(dice: Random) -> Call:
    return _bound_call(dice, 0)


def _thinks(dice: Random) -> Call:
    return _bound_call(dice, 95)


def _bound_call(dice: Random, hidden: int) -> Call:
    if dice.random() < 0.05:
        return Call(*in_any(dice), {"refuse": dice.choice((429, 500, 503, 529))})
    play = {"hidden": hidden, "output": dice.randint(CAP // 2, CAP), "pause": 0.2, "end": "usage"}
    return Call(*in_any(dice), play, dice.choice(("", "", "text", "soon")))


_RUNS: dict[str, tuple[Callable[[Random], Call], dict[str, Any], int]] = {
    "drain": (_drains, {"on_disconnect": "drain"}, 0),
    "cancel": (_cancels, {"on_disconnect": "free"}, 0),
    "bound": (_bounds, {"estimate": "bound"}, 60),
    "bound, free": (_bounds, {"estimate": "bound", "on_disconnect": "free"}, 60),
    "thinking": (_thinks, {"estimate": "bound"}, 60),
    "thinking, free": (_thinks, {"estimate": "bound", "on_disconnect": "free"}, 60),
}


def run(name: str, seed: str) -> Sums:
    """Play one of the runs, and return what it did cost."""
    make, rules, size = _RUNS[name]
    trick = Script("four", "", make, crowd=30)
    # A request of the usual length costs some 12,000 micros.
    quota = size * 12_000 if size else PLENTY
    with market.market(**AS_SHIPPED) as place:
        secret = place.open({trick.name: (quota, rules)})[trick.name]
        asyncio.run(_play(place, trick, secret, seed, 10 * size or 400, kills=2 if size else 0))
        place.proxies.stop()
        said = place.invoice()[trick.name]
        return Sums(name, said["requests"], quota if size else 0, said["micros"], place.charged()[trick.name])


async def _play(place: market.Market, trick: Script, secret: str, seed: str, most: int, kills: int) -> None:
    slots = asyncio.Semaphore(market.CLIENTS)
    async with market.killed(place.proxies, Random(f"{seed} kills"), kills):
        await consumers.play(trick, secret, place.proxies.ports, Random(seed), slots, most, untold=0)


NAMES = tuple(_RUNS)
