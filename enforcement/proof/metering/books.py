"""Read the ledgers of the proof, and compare what was invoiced, what was settled, and what the store has counted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis import Redis

from enforcement.control.inspection import look
from enforcement.control.reservations import OpenReservation, open_reservations
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.proof.evidence import Claim
from enforcement.proof.metering.clients import Outcome, by_status
from enforcement.proof.metering.documents import PROJECTS, Budgets

REPORTED: Final = frozenset({"exact", "drained"})
"""How requests are settled whose answer says what they cost."""
_IN_FLIGHT_US: Final = 5_000_000
"""How long a settlement may take to reach the store, which may be away."""

Row = Mapping[str, Any]
CounterName = tuple[str, str]
"""The id of a token and the name of a limit."""


@dataclass(slots=True)
class Books:
    """
    All ledgers of a run.

    Attributes:
        invoice: The lines of the provider.
        admitted, settled: Those of the proxies.
        open: The reservations that the store still has.
        used: What the counters of the store say.
        outcomes: What the clients saw.
        killed: The instances that were killed.
    """

    invoice: list[Row]
    admitted: list[Row]
    settled: list[Row]
    open: list[OpenReservation]
    used: dict[CounterName, int]
    outcomes: Sequence[Outcome]
    budgets: Budgets
    killed: frozenset[str]
    slots: int = 0
    settlements: dict[str, Row] = field(default_factory=dict)
    admissions: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settlements = {row["id"]: row for row in self.settled}
        self.admissions = {row["id"]: row for row in self.admitted}

    def kind_of(self, token: str) -> str:
        """Return the slug of the policy of a token, by its id."""
        return list(self.budgets.tokens.values())[int(token.removeprefix("tok_"))]


def read_lines(paths: Iterable[Path]) -> list[Row]:
    """Return the lines of files of JSON lines."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def read_books(
    client: Redis,
    keys: Keys,
    budgets: Budgets,
    invoice: Path,
    ledgers: Iterable[Path],
    outcomes: Sequence[Outcome],
    killed: Iterable[str],
) -> Books:
    """Return the ledgers, and the counters and open reservations of the store."""
    lines = read_lines(ledgers)
    admitted = [row for row in lines if row["is"] == "admitted"]
    waiting = [it for tag in PROJECTS for it in open_reservations(client, keys, tag, at_most=100_000)]
    books = Books(
        read_lines([invoice]),
        admitted,
        [row for row in lines if row["is"] == "settled"],
        waiting,
        {},
        outcomes,
        budgets,
        frozenset(killed),
    )
    for (token, name), (limit, key) in _counters(books).items():
        _, [(_, used)] = look(client, [BoundLimit(limit, key, "token")], 0)
        if limit.algorithm == "concurrency":
            books.slots += used
        else:
            books.used[token, name] = used
    return books


def _counters(books: Books) -> dict[CounterName, tuple[Limit, str]]:
    found = {}
    for row in books.admitted:
        kind = books.budgets.kinds[books.kind_of(row["token"])]
        limits = {limit["name"]: limit for limit in kind.limits}
        for name, key in row["counters"].items():
            found[row["token"], name] = Limit.from_json(limits[name]), key
    return found


def judge(books: Books) -> list[Claim]:
    """Check every claim, and return all of them, held or broken."""
    return [
        *_each_once(books),
        *_to_the_token(books),
        *_nothing_left(books),
        _counted(books),
        *_within_budgets(books),
        *_figures(books),
    ]


def _none(what: str, wrong: Sequence[object], of: int) -> Claim:
    """Return a claim that nothing is wrong, with the first that is."""
    first = f", such as {wrong[0]}" if wrong else ""
    return Claim(what, "0", f"{len(wrong)} of {of}{first}", not wrong)


def _each_once(books: Books) -> Iterator[Claim]:
    invoiced = Counter(row["id"] for row in books.invoice)
    uncharged = [ident for ident in invoiced if ident not in books.admissions]
    yield _none("invoiced, and admitted by no proxy", uncharged, len(invoiced))
    yield _none("sent to the provider twice", [ident for ident, n in invoiced.items() if n > 1], len(invoiced))
    settled = Counter(row["id"] for row in books.settled)
    yield _none("settled twice", [ident for ident, n in settled.items() if n > 1], len(settled))
    failed = [it.id for it in books.outcomes if it.status == 500]
    yield _none("answered with an internal error", failed, len(books.outcomes))
    yield _none(
        "streams that were not asked for their usage", [r["id"] for r in books.invoice if not r["told"]], len(invoiced)
    )


def _to_the_token(books: Books) -> Iterator[Claim]:
    invoices = {row["id"]: row for row in books.invoice}
    exact = [row for row in books.settled if row["as"] in REPORTED]
    yield Claim("settled as reported", "some", str(len(exact)), 2 * len(exact) > len(invoices) > 0)
    wrong = [(row["id"], row["counts"], _counts(invoices.get(row["id"]))) for row in exact]
    differing = [(ident, ours, theirs) for ident, ours, theirs in wrong if ours != theirs]
    yield _none("settled as reported, and not as invoiced", differing, len(exact))
    vain = [row["id"] for row in exact if not invoices.get(row["id"], {}).get("reports")]
    yield _none("settled as reported, and nothing was reported", vain, len(exact))
    left_open = {row["id"] for row in books.admitted} - books.settlements.keys()
    whole = [it.id for it in books.outcomes if it.complete and it.status == 200 and it.id not in left_open]
    due = [ident for ident in whole if invoices.get(ident, {}).get("reports")]
    missed = [
        (ident, books.settlements[ident]["as"]) for ident in due if books.settlements[ident]["as"] not in REPORTED
    ]
    yield _none("reported to a client that stayed, and not settled so", missed, len(due))
    free = [r["id"] for r in books.settled if r["as"] == "nothing" and r["id"] in invoices]
    yield _none("invoiced, and settled for nothing", free, len(invoices))


def _counts(row: Row | None) -> list[int] | None:
    return None if row is None else [row[name] for name in ("input", "cached_input", "cache_write", "output")]


def _nothing_left(books: Books) -> Iterator[Claim]:
    alive = [(it.id, it.instance) for it in books.open if it.instance not in books.killed]
    yield _none("open, and their process was not killed", alive, len(books.open))
    yield _none("open, and not listed as lost", [it.id for it in books.open if not it.lost], len(books.open))
    waiting = {it.id for it in books.open}
    gone = [
        row["id"]
        for ident, row in books.admissions.items()
        if ident not in books.settlements and row["reservation"] not in waiting
    ]
    yield _none("neither settled nor open", gone, len(books.admissions))
    yield Claim("slots that are still held", "0", str(books.slots), books.slots == 0)


def charges(books: Books) -> dict[CounterName, int]:
    """Return what every counter should have, by the settlements, and by the reservations that are open."""
    found: dict[CounterName, int] = defaultdict(int)
    waiting = {it.id for it in books.open}
    for ident, row in books.admissions.items():
        settled = books.settlements.get(ident)
        if settled is None or row["reservation"] in waiting:
            continue
        for name, cost in zip(row["counters"], settled["costs"], strict=True):
            found[row["token"], name] += cost or 0
    for it in books.open:
        for amount in it.amounts:
            found[it.token, amount.limit] += amount.permits
    return found


def _counted(books: Books) -> Claim:
    due = charges(books)
    wrong = [(name, used, due.get(name, 0)) for name, used in books.used.items() if used != due.get(name, 0)]
    return _none("counters that differ from the sum of their charges", wrong, len(books.used))


def _within_budgets(books: Books) -> Iterator[Claim]:
    beyond: dict[bool, list[object]] = {True: [], False: []}
    judged: Counter[bool] = Counter()
    for token in {row["token"] for row in books.admitted}:
        kind = books.budgets.kinds[books.kind_of(token)]
        used, quota = books.used[token, kind.budget.name], kind.budget.quota
        excess = 0 if kind.is_bound else _excess_in_flight(books, token)
        judged[kind.is_bound] += 1
        if used > quota + excess:
            beyond[kind.is_bound].append((token, used, quota, excess))
    yield _none("budgets by a bound that were exceeded", beyond[True], judged[True])
    yield _none("typical budgets exceeded by more than what was in flight", beyond[False], judged[False])


def _excess_in_flight(books: Books, token: str) -> int:
    """Return how much more the requests in flight at the last admission did cost than was estimated."""
    rows = [row for row in books.admitted if row["token"] == token]
    last = max(row["at"] for row in rows) - _IN_FLIGHT_US
    total = 0
    for row in rows:
        settled = books.settlements.get(row["id"])
        if settled is not None and settled["at"] >= last:
            total += max(0, (settled["costs"][0] or 0) - (row["estimate"][0] or 0))
    return total


def _figures(books: Books) -> Iterator[Claim]:
    """Yield figures that have no bound."""
    words = Counter(row["as"] for row in books.settled)
    lost = len(books.open)
    yield Claim("settled as", "any", ", ".join(f"{word} {n}" for word, n in words.most_common()) + f", lost {lost}")
    answers = by_status(books.outcomes)
    yield Claim("answers", "any", ", ".join(f"{name} {n}" for name, n in answers.most_common()))
    formats = Counter(row["format"] for row in books.invoice)
    yield Claim("invoiced", "any", ", ".join(f"{name} {n}" for name, n in formats.most_common()))
    kinds = Counter(books.kind_of(it) for it, name in books.used if _is_used_up(books, it, name))
    yield Claim("budgets that were used up", "any", ", ".join(f"{name} {n}" for name, n in kinds.items()) or "none")


def _is_used_up(books: Books, token: str, name: str) -> bool:
    budget = books.budgets.kinds[books.kind_of(token)].budget
    return name == budget.name and 10 * books.used[token, name] > 9 * budget.quota


__all__ = ["Books", "charges", "judge", "read_books"]
