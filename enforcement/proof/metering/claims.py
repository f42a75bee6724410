"""The claims of the proof: what was invoiced, what was settled, and what the store has counted must be the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from enforcement.metering.settlement import DRAINED, EXACT
from enforcement.proof.evidence import Claim
from enforcement.proof.metering.books import CALL_US, Books, Row, charges
from enforcement.proof.metering.clients import by_status
from enforcement.proof.metering.invoiced import CLASSES, invoiced_cost

REPORTED: Final = frozenset({"exact", "drained"})
"""How requests are settled whose answer says what they cost."""
_DRAIN_US: Final = 7_000_000
"""How long an answer may be read on after its client left, and settled after that."""
_REFUSED: Final = frozenset({400, 401, 429, 529})
"""The statuses with which only the provider answers."""


def judge(books: Books) -> list[Claim]:
    """Check every claim, and return all of them, held or broken."""
    return [
        *_each_once(books),
        *_to_the_token(books),
        *_nothing_for_nothing(books),
        *_nothing_left(books),
        _counted(books),
        *_within_budgets(books),
        *_figures(books),
    ]


def _none(what: str, wrong: Sequence[object], of: int) -> Claim:
    """Return a claim that nothing is wrong, with the first that is."""
    first = f", such as {wrong[0]}" if wrong else ""
    return Claim(what, "0", f"{len(wrong)} of {of}{first}", not wrong)


def _repeated(rows: Sequence[Row]) -> list[str]:
    return [ident for ident, n in Counter(row["id"] for row in rows).items() if n > 1]


def _each_once(books: Books) -> Iterator[Claim]:
    invoiced = {row["id"] for row in books.invoice}
    uncharged = [ident for ident in invoiced if ident not in books.admissions]
    yield _none("invoiced, and admitted by no proxy", uncharged, len(invoiced))
    yield _none("sent to the provider twice", _repeated(books.invoice), len(invoiced))
    twice = _repeated(books.admitted) + _repeated(books.settling) + _repeated(books.settled)
    yield _none("admitted or settled twice", twice, len(books.admissions))
    failed = [it.id for it in books.outcomes if it.status == 500]
    yield _none("answered with an internal error", failed, len(books.outcomes))
    yield _none(
        "streams that were not asked for their usage", [r["id"] for r in books.invoice if not r["told"]], len(invoiced)
    )


def _to_the_token(books: Books) -> Iterator[Claim]:
    invoices = {row["id"]: row for row in books.invoice}
    exact = [row for row in books.settlements.values() if row["as"] in REPORTED]
    yield Claim("settled as reported", "some", str(len(exact)), 2 * len(exact) > len(invoices) > 0)
    vain = [row["id"] for row in exact if not invoices.get(row["id"], {}).get("reports")]
    yield _none("settled as reported, and nothing was reported", vain, len(exact))
    pairs = [(row, invoices[row["id"]]) for row in exact if row["id"] in invoices]
    tokens = [(row["id"], row["counts"], _counts(line)) for row, line in pairs if "counts" in row]
    differing = [(ident, ours, theirs) for ident, ours, theirs in tokens if ours != theirs]
    yield _none("settled as reported, and not as invoiced", differing, len(tokens))
    costs = [(row["id"], row["costs"], _costs(books, line)) for row, line in pairs]
    dearer = [(ident, ours, theirs) for ident, ours, theirs in costs if ours != theirs]
    yield _none("settled as reported, and charged otherwise than invoiced", dearer, len(costs))
    whole = [it.id for it in books.outcomes if it.complete and it.status == 200 and it.id in books.settlements]
    due = [ident for ident in whole if invoices.get(ident, {}).get("reports")]
    settled_as = [(ident, books.settlements[ident]["as"]) for ident in due]
    missed = [(ident, word) for ident, word in settled_as if word not in REPORTED]
    yield _none("reported to a client that stayed, and not settled so", missed, len(due))


def _counts(line: Row) -> list[int]:
    return [line[name] for name in CLASSES]


def _costs(books: Books, line: Row) -> list[int]:
    """Return what a line of the invoice costs each limit of its request."""
    row = books.admissions[line["id"]]
    limits = {limit["name"]: limit for limit in books.kind_of(row["token"]).limits}
    return [invoiced_cost(limits[name], line) for name in row["counters"]]


def _nothing_for_nothing(books: Books) -> Iterator[Claim]:
    invoiced = {row["id"] for row in books.invoice}
    free = [ident for ident, row in books.settlements.items() if row["as"] == "nothing" and ident in invoiced]
    yield _none("invoiced, and settled for nothing", free, len(invoiced))
    refused = [it.id for it in books.outcomes if it.status in _REFUSED and not it.denied]
    settled = [ident for ident in refused if ident in books.settlements]
    charged = [(ident, books.settlements[ident]["costs"]) for ident in settled if _is_charged(books, ident)]
    yield _none("refused by the provider, and charged", charged, len(settled))


def _is_charged(books: Books, ident: str) -> bool:
    """Return whether tokens or money were charged for a request."""
    row = books.admissions[ident]
    units = {limit["name"]: limit.get("unit", "requests") for limit in books.kind_of(row["token"]).limits}
    costs = zip(row["counters"], books.settlements[ident]["costs"], strict=True)
    return any(cost and units[name] != "requests" for name, cost in costs)


def _nothing_left(books: Books) -> Iterator[Claim]:
    # A process that could not prolong one in time leaves it lost, unless its provider has said what it did cost.
    observed = {
        books.admissions[row["id"]]["reservation"] for row in books.settling if row["as"] not in (EXACT, DRAINED)
    }
    ours = [it for it in books.open if not (it.lost and it.id in observed)]
    alive = [(it.id, it.instance) for it in ours if it.instance not in books.killed]
    yield _none("open, and their process was not killed", alive, len(books.open))
    yield _none("open, and not listed as lost", [it.id for it in books.open if not it.lost], len(books.open))
    waiting = books.waiting
    gone = [
        ident
        for ident, row in books.admissions.items()
        if ident not in books.settlements and row["reservation"] not in waiting
    ]
    yield _none("neither settled nor open", gone, len(books.admissions))
    records, entries = books.kept
    known = records == entries == len(waiting)
    yield Claim("records in the store", f"{len(waiting)}, as are open", f"{records}, {entries} in indexes", known)
    yield from _lost(books)
    lost = Counter((it.token, amount.limit) for it in books.open for amount in it.amounts)
    held = [(name, used, lost[name]) for name, used in books.slots.items() if used > lost[name]]
    yield _none("slots that are held for no open reservation", held, len(books.slots))


def _lost(books: Books) -> Iterator[Claim]:
    """Check the reservations of killed processes."""
    outcomes = {it.id: it for it in books.outcomes}
    requests = {row["reservation"]: row for row in books.admitted}
    late, otherwise = [], []
    for it in books.open:
        row = requests.get(it.id)
        if row is None:  # its process was killed before it could write that it had admitted the request
            continue
        outcome = outcomes[row["id"]]
        settling_us = CALL_US if outcome.complete else _DRAIN_US
        if books.reached_us(outcome.ended_us) + settling_us < books.killed.get(it.instance, 0):
            late.append((row["id"], it.instance))
        reserved = {amount.limit: amount.permits for amount in it.amounts}
        estimate = dict(zip(row["counters"], row["estimate"], strict=True))
        if any(reserved.get(name, 0) != (cost or 0) for name, cost in estimate.items()):
            otherwise.append((row["id"], reserved, estimate))
    yield _none("lost, and over long before their process was killed", late, len(books.open))
    yield _none("lost, and charged otherwise than estimated", otherwise, len(books.open))


def _counted(books: Books) -> Claim:
    due = charges(books)
    wrong = [(name, used, due.get(name, 0)) for name, used in books.used.items() if used != due.get(name, 0)]
    return _none("counters that differ from the sum of their charges", wrong, len(books.used))


def _within_budgets(books: Books) -> Iterator[Claim]:
    beyond: dict[bool, list[object]] = {True: [], False: []}
    judged: Counter[bool] = Counter()
    for token in {row["token"] for row in books.admitted}:
        kind = books.kind_of(token)
        used, quota = books.used[token, kind.budget.name], kind.budget.quota
        excess = 0 if kind.is_bound else _excess_in_flight(books, token)
        judged[kind.is_bound] += 1
        if used > quota + excess:
            beyond[kind.is_bound].append((token, used, quota, excess))
    yield _none("budgets by a bound that were exceeded", beyond[True], judged[True])
    yield _none("typical budgets exceeded by more than what was in flight", beyond[False], judged[False])
    rows = [(row, books.settlements.get(ident)) for ident, row in books.admissions.items()]
    bound = [(row, settled) for row, settled in rows if settled and books.kind_of(row["token"]).is_bound]
    dearer = [
        (row["id"], row["estimate"], settled["costs"])
        for row, settled in bound
        if any((cost or 0) > (estimate or 0) for cost, estimate in zip(settled["costs"], row["estimate"], strict=True))
    ]
    yield _none("requests by a bound that cost more than was reserved", dearer, len(bound))


def _excess_in_flight(books: Books, token: str) -> int:
    """Return how much more the requests in flight at the last admission did cost than was estimated."""
    rows = [row for row in books.admitted if row["token"] == token]
    last_us = max(row["decided"] for row in rows)
    total = 0
    for row in rows:
        settled = books.settlements.get(row["id"])
        if settled is not None and books.settled_us(settled) >= last_us:
            total += max(0, (settled["costs"][0] or 0) - (row["estimate"][0] or 0))
    return total


def _figures(books: Books) -> Iterator[Claim]:
    """Yield figures that have no bound."""
    words = Counter(row["as"] for row in books.settlements.values())
    lost = len(books.open)
    yield Claim("settled as", "any", ", ".join(f"{word} {n}" for word, n in words.most_common()) + f", lost {lost}")
    answers = by_status(books.outcomes)
    yield Claim("answers", "any", ", ".join(f"{name} {n}" for name, n in answers.most_common()))
    formats = Counter(row["format"] for row in books.invoice)
    yield Claim("invoiced", "any", ", ".join(f"{name} {n}" for name, n in formats.most_common()))
    kinds = Counter(books.slug_of(it) for it, name in books.used if _is_used_up(books, it, name))
    yield Claim("budgets that were used up", "any", ", ".join(f"{name} {n}" for name, n in kinds.items()) or "none")


def _is_used_up(books: Books, token: str, name: str) -> bool:
    budget = books.kind_of(token).budget
    return name == budget.name and 10 * books.used[token, name] > 9 * budget.quota
