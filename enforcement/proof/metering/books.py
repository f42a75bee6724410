"""Read the ledgers of the proof: what was invoiced, what was settled, and what the store has counted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis import Redis

from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.proof.metering.clients import ClientOutcome
from enforcement.proof.metering.documents import PROJECTS, Budgets, DocumentKind
from enforcement.proof.metering.fleet import MeteringFleet
from enforcement.store_calls.inspection import look
from enforcement.store_calls.reservations import OpenReservation, open_reservations

_RETURN_US: Final = 5_000_000
"""How long after an outage of the store a process may send what it could not send before."""
CALL_US: Final = 1_000_000
"""How long a call of a killed process may have been on its way."""

Row = Mapping[str, Any]
CounterName = tuple[str, str]
"""The id of a token and the name of a limit."""


@dataclass(slots=True)
class Books:
    """
    All ledgers of a run.

    Attributes:
        invoice: The lines of the provider.
        admitted, settling, settled: Those of the proxies.
        open: The reservations that the store still lists.
        kept: How many records of reservations it has, and how many entries their indexes have.
        used: What the counters of the store say.
        slots: For each limit of slots what its counter says.
        outcomes: What the clients saw.
        killed: When each instance was killed, by its name, in microseconds since the epoch.
        outages: When the store was away, from and until, in microseconds since the epoch.
        admissions: The lines of admissions by the id of the request.
        settlements: The lines of settlements by the id of the request. A request whose process was killed before it
            could write that it has settled, is settled if the store has no reservation of it any more.
    """

    invoice: list[Row]
    admitted: list[Row]
    settling: list[Row]
    settled: list[Row]
    open: list[OpenReservation]
    kept: tuple[int, int]
    outcomes: Sequence[ClientOutcome]
    budgets: Budgets
    killed: Mapping[str, int]
    outages: Sequence[tuple[int, int]]
    used: dict[CounterName, int] = field(default_factory=dict)
    slots: dict[CounterName, int] = field(default_factory=dict)
    admissions: dict[str, Row] = field(init=False)
    settlements: dict[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        self.admissions = {row["id"]: row for row in self.admitted}
        waiting = self.waiting
        begun = [row for row in self.settling if self.admissions[row["id"]]["reservation"] not in waiting]
        self.settlements = {row["id"]: row for row in (*begun, *self.settled)}

    @property
    def waiting(self) -> set[str]:
        """The ids of the reservations that are open."""
        return {it.id for it in self.open}

    def slug_of(self, token: str) -> str:
        """Return the slug of the policy of a token, by its id."""
        return list(self.budgets.tokens.values())[int(token.removeprefix("tok_"))]

    def kind_of(self, token: str) -> DocumentKind:
        """Return what kind of budget a token has, by its id."""
        return self.budgets.kinds[self.slug_of(token)]

    def settled_us(self, settlement: Row) -> int:
        """Return when at the latest a settlement reached the store, in microseconds since the epoch."""
        return self.reached_us(settlement["at"] + (CALL_US if settlement["is"] == "settling" else 0))

    def reached_us(self, at_us: int) -> int:
        """Return when at the latest something reached the store that was sent at an instant."""
        ends = (until_us + _RETURN_US for from_us, until_us in self.outages if from_us - CALL_US <= at_us <= until_us)
        return max(ends, default=at_us)


def read_lines(paths: Iterable[Path]) -> list[Row]:
    """Return the lines of files of JSON lines."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def read_books(
    client: Redis, keys: Keys, budgets: Budgets, fleet: MeteringFleet, outcomes: Sequence[ClientOutcome]
) -> Books:
    """Return the ledgers, and the counters and open reservations of the store."""
    lines = read_lines(fleet.ledgers())
    admitted, settling, settled = (
        [it for it in lines if it["is"] == kind] for kind in ("admitted", "settling", "settled")
    )
    books = Books(
        read_lines([fleet.invoice]),
        admitted,
        settling,
        settled,
        [it for tag in PROJECTS for it in open_reservations(client, keys, tag, at_most=100_000)],
        _kept(client, keys),
        outcomes,
        budgets,
        fleet.killed,
        fleet.outages,
    )
    for name, (limit, key) in _counters(books).items():
        _, [(_, used)] = look(client, [BoundLimit(limit, key, "token")], 0)
        (books.slots if limit.algorithm == "concurrency" else books.used)[name] = used
    return books


def _kept(client: Redis, keys: Keys) -> tuple[int, int]:
    """Return how many records the store has, and how many entries the indexes have. This is not the code that lists."""
    patterns = [_literal(keys.reservation(tag, "")) + "*" for tag in PROJECTS]
    records = sum(1 for pattern in patterns for _ in client.scan_iter(pattern, count=1_000))
    return records, sum(int(client.zcard(keys.reservations(tag))) for tag in PROJECTS)


def _literal(key: str) -> str:
    """Return a pattern that matches only this key."""
    return key.translate({ord(sign): f"\\{sign}" for sign in "[]*?\\"})


def _counters(books: Books) -> dict[CounterName, tuple[Limit, str]]:
    result = {}
    for row in books.admitted:
        limits = {limit["name"]: limit for limit in books.kind_of(row["token"]).limits}
        for name, key in row["counters"].items():
            result[row["token"], name] = Limit.from_json(limits[name]), key
    return result


def charges(books: Books) -> dict[CounterName, int]:
    """Return what every counter should have, by the settlements, and by the reservations that are open."""
    result: dict[CounterName, int] = defaultdict(int)
    waiting = books.waiting
    for ident, settled in books.settlements.items():
        row = books.admissions[ident]
        if row["reservation"] in waiting:
            continue
        for name, cost in zip(row["counters"], settled["costs"], strict=True):
            result[row["token"], name] += cost or 0
    for it in books.open:
        for amount in it.amounts:
            result[it.token, amount.limit] += amount.permits
    return result
