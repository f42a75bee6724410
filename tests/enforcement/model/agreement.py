"""One counter in the store and in the reference: what the store is asked, and what it must answer."""

import itertools
from typing import Final

import pytest

from enforcement.embedded import ValkeyServer
from enforcement.model.algorithms import Reference
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import DECIDE, RESET, SETTLE
from enforcement.store.client import connect, load_library
from enforcement.store.resp import numbers

ALGORITHMS = ["fixed_window", "calendar", "rollover", "sliding_window", "sliding_log", "token_bucket", "concurrency"]
SECOND = 1_000_000
START_US = 1_767_225_600_000_000
CALENDAR: Final = {"calendar": "hour", "time_zone": "Australia/Lord_Howe"}
CALENDARS: Final = {"calendar": CALENDAR, "rollover": CALENDAR}
SET_BACK_US = 1_775_314_200_000_000  # ten minutes before the clocks of Lord Howe are set back, by half an hour
KEEPING = ("sliding_log", "token_bucket", "concurrency")  # what they hold outlives a change of their window

# What both tests draw from. A range is given by its ends.
QUOTAS = ((0, 12), [100, 1_000, 2_000, 999_983, 10**6])
WINDOWS = [1, 2, 7, 10, 60, 3_600]
BURSTS = (1, 50)
COSTS = ((0, 4), (0, 1_500), [10**6, 999_999])
STRIDES = (
    (0, 3),
    (-2 * SECOND, 20 * SECOND),
    [SECOND, SECOND - 1, 30 * SECOND, 60 * SECOND, 60 * SECOND + 1, 7_200 * SECOND],
    [-SECOND - 1, -61 * SECOND, -600 * SECOND, -7_200 * SECOND],
)
ROLLOVERS = ((0, 30), [10_000, 2**53 - 1])
HOURS = ((1, 3), (1, 400))
MOST_ADDED = 50

names = itertools.count()
Call = tuple[tuple[str | int, ...], list[int] | bool | None]
"""A command, and the answer it must have: numbers, whether anything was changed, or None for any."""


@pytest.fixture(scope="module")
def client():
    """Give a store that has the function library."""
    with ValkeyServer(persistent=False) as server:
        client = connect(server.url)
        load_library(client)
        yield client


def agrees(call: Call, reply) -> bool:
    """Return whether the store gave the answer of the reference."""
    _, expected = call
    if isinstance(expected, bool):
        return bool(reply) == expected
    return expected is None or list(numbers(reply)) == expected


class Pair:
    """The reference, which has answered already, and the calls that must have the same answers."""

    def __init__(self, algorithm: str, quota: int, window: int, burst: int | None):
        self.algorithm = algorithm
        self.key = f"agree:{next(names)}"
        self.now = SET_BACK_US if algorithm in CALENDARS else START_US
        self.reference = Reference()
        self.charged: list[tuple[int, int, str]] = []
        """Mark, cost and ident of what was allowed."""
        self.idents = itertools.count()
        self.burst = burst if algorithm == "token_bucket" else None
        self.change(quota=quota, window=window, rollover=5)

    def change(self, **changes: int) -> None:
        """Change the quota, the window or the rollover. A rollover of 0 stands for none."""
        vars(self).update(changes)
        self.bound = self.bind()
        self.spec = self.bound.spec(self.now)

    def bind(self) -> BoundLimit:
        calendar = CALENDARS.get(self.algorithm, {})
        if self.algorithm == "rollover" and self.rollover:
            calendar = {**calendar, "rollover": self.rollover}
        algorithm = "fixed_window" if calendar else self.algorithm
        shape = calendar or {"window_seconds": self.window}
        limit = Limit(name="x", algorithm=algorithm, quota=self.quota, burst=self.burst, **shape)
        return BoundLimit(limit, self.key, "key")

    def forget(self) -> Call:
        self.reference.forget([self.key])
        return ("FCALL", RESET, 1, self.key), None

    def decide(self, cost: int, *, charge: bool) -> Call:
        if self.algorithm == "concurrency":
            cost = min(cost, 20)
        if self.algorithm in CALENDARS:
            self.spec = self.bound.spec(self.now)
        ident = f"i{next(self.idents)}"
        ours = self.reference.decide(self.now, [(self.key, self.spec, cost)], charge=charge, ident=ident)
        if charge and ours[0] == 1 and cost:
            self.charged.append((ours[6], cost, ident))
        return ("FCALL", DECIDE, 1, self.key, self.now, int(charge), ident, self.spec.text, cost), ours

    def amend(self, mark: int, cost: int, ident: str, delta: int, *, elsewhere: bool) -> Call | None:
        """Change what was charged. Slots are all given back, or as many are taken that were given elsewhere."""
        if self.algorithm in CALENDARS:
            self.spec = self.bound.spec(self.now)
        if self.algorithm == "concurrency":
            delta, ident = (cost, f"e{next(self.idents)}") if elsewhere else (-cost, ident)
        if delta == 0:
            return None
        changed = self.reference.amend(self.now, self.key, self.spec, delta, mark, ident)
        keys = (f"{self.key}:m", self.key)
        return ("FCALL", SETTLE, 2, *keys, self.now, "", ident, self.spec.text, delta, mark), bool(changed)
