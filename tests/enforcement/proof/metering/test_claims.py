"""The claims of ``sluicegate proof metering``, with ledgers that agree, and with one thing in them that is wrong."""

from typing import Any

import pytest

from enforcement.proof.metering.books import Books
from enforcement.proof.metering.claims import judge
from enforcement.proof.metering.clients import ClientOutcome
from enforcement.proof.metering.documents import Budgets, kinds
from enforcement.store_calls.reservations import Amount, OpenReservation

SECOND = 1_000_000
TOKEN = "tok_0"
COUNTERS = {"money": "key_1", "all": "key_2"}
LINE = {"format": "gemini", "model": "small", "cached_input": 0, "cache_write": 0, "reports": True, "told": True}


class Ledgers:
    """Two requests of a token: r1 is settled as reported, and the process of r2 was killed before it was sent."""

    def __init__(self, kind: str = "bound-money") -> None:
        self.kind = kind
        self.invoice = [{**LINE, "id": "r1", "input": 100, "output": 50}]
        self.admitted = [self.admission("r1", at=1), self.admission("r2", at=3)]
        settled = {"id": "r1", "as": "exact", "costs": [45, 150]}  # 100 x 0.15 + 50 x 0.6 micros
        self.settling: list[dict[str, Any]] = [{**settled, "is": "settling", "at": 2 * SECOND}]
        self.settled = [{**settled, "is": "settled", "at": 2 * SECOND, "counts": [100, 0, 0, 50]}]
        self.open = [self.lost("r2")]
        self.kept = (1, 1)
        self.outcomes = [
            ClientOutcome("r1", "s", 200, True, 2 * SECOND),
            ClientOutcome("r2", "s", 0, False, 4 * SECOND),
        ]
        self.used = {(TOKEN, "money"): 45 + 200, (TOKEN, "all"): 150 + 500}
        self.slots: dict[tuple[str, str], int] = {}

    def admission(self, ident: str, *, at: int, estimate: tuple[int, int] = (200, 500)) -> dict[str, Any]:
        row = {"is": "admitted", "id": ident, "token": TOKEN, "reservation": f"proj_1.{ident}", "counters": COUNTERS}
        return {**row, "estimate": list(estimate), "decided": at * SECOND, "at": at * SECOND}

    def lost(self, ident: str, **changes: Any) -> OpenReservation:
        amounts = (Amount("p", "money", "micros", 200), Amount("p", "all", "tokens", 500))
        row = {"lost": True, "at_us": 3 * SECOND, "expires_at_us": 6 * SECOND, "token": TOKEN, "instance": "proxy-0"}
        row |= {"amounts": amounts, "about": {}, "record": None}
        return OpenReservation(f"proj_1.{ident}", **{**row, **changes})

    def broken(self) -> set[str]:
        """Return the claims that do not hold."""
        budgets = Budgets(kinds(10), {"s": self.kind})
        rows = self.invoice, self.admitted, self.settling, self.settled, self.open, self.kept, self.outcomes
        books = Books(*rows, budgets, {"proxy-0": 4 * SECOND}, [], self.used, self.slots)
        return {claim.what for claim in judge(books) if claim.held is False}


def test_ledgers_that_agree():
    """A process may have settled a request in the store and have been killed before it could write that."""
    assert Ledgers().broken() == set()
    killed = Ledgers()
    killed.settled.clear()
    assert killed.broken() == set()


@pytest.mark.parametrize(
    ("word", "broken"), [("observed", set()), ("exact", {"open, and their process was not killed"})]
)
def test_a_process_that_lives_may_have_lost_what_it_only_observed(word, broken):
    """It could not prolong the reservation in time. The last word of the provider would have settled it."""
    late = Ledgers()
    late.open = [late.lost("r2", instance="proxy-1")]
    late.settling.append({"is": "settling", "id": "r2", "as": word, "costs": [30, 200], "at": 7 * SECOND})
    assert late.broken() == broken


def unadmitted(it):
    it.invoice.append({**LINE, "id": "r3", "input": 1, "output": 1})


def settled_twice(it):
    it.settled *= 2


def misread(it):
    it.settled[0]["counts"] = [100, 0, 0, 49]


def mispriced(it):
    for row in (*it.settling, *it.settled):
        row["costs"] = [90, 150]
    it.used[TOKEN, "money"] += 45


def free(it):
    for row in (*it.settling, *it.settled):
        row["as"], row["costs"] = "nothing", [0, 0]
    it.outcomes[0] = ClientOutcome("r1", "s", 200, False, 2 * SECOND)
    it.used = {(TOKEN, "money"): 200, (TOKEN, "all"): 500}


def refused(it):
    it.outcomes[0] = ClientOutcome("r1", "s", 429, True, 2 * SECOND)


def counted_twice(it):
    it.used[TOKEN, "all"] += 150


def left_behind(it):
    it.kept = (2, 1)


def unlisted(it):
    it.kept = (1, 2)


def open_and_alive(it):
    it.open[0] = it.lost("r2", instance="proxy-1")


def not_lost(it):
    it.open[0] = it.lost("r2", lost=False)


def never_settled(it):
    it.outcomes[1] = ClientOutcome("r2", "s", 200, True, 2 * SECOND)


def otherwise_reserved(it):
    it.admitted[1]["estimate"] = [100, 500]


def forgotten(it):
    it.open.clear()
    it.kept = (0, 0)
    it.used = {(TOKEN, "money"): 45, (TOKEN, "all"): 150}


def slot_kept(it):
    it.slots[TOKEN, "slots"] = 1


def underestimated(it):
    it.admitted[0]["estimate"] = [40, 500]


@pytest.mark.parametrize(
    ("spoil", "claim"),
    [
        (unadmitted, "invoiced, and admitted by no proxy"),
        (settled_twice, "admitted or settled twice"),
        (misread, "settled as reported, and not as invoiced"),
        (mispriced, "settled as reported, and charged otherwise than invoiced"),
        (free, "invoiced, and settled for nothing"),
        (refused, "refused by the provider, and charged"),
        (counted_twice, "counters that differ from the sum of their charges"),
        (left_behind, "records in the store"),
        (unlisted, "records in the store"),
        (open_and_alive, "open, and their process was not killed"),
        (not_lost, "open, and not listed as lost"),
        (never_settled, "lost, and over long before their process was killed"),
        (otherwise_reserved, "lost, and charged otherwise than estimated"),
        (forgotten, "neither settled nor open"),
        (slot_kept, "slots that are held for no open reservation"),
        (underestimated, "requests by a bound that cost more than was reserved"),
    ],
)
def test_a_claim_is_broken_by_what_it_is_about(spoil, claim):
    """Without that, the ledgers agree."""
    ledgers = Ledgers()
    spoil(ledgers)

    assert claim in ledgers.broken()


@pytest.mark.parametrize(("settled_at", "is_broken"), [(2, True), (3, False), (4, False)])
def test_a_typical_budget_may_exceed_by_what_was_in_flight_at_its_last_admission(settled_at, is_broken):
    """4 000 of 4 000 were reserved, and the first request cost 300 more than that; the last was admitted at 3 s."""
    ledgers = Ledgers("typical-money")
    for row in ledgers.admitted:
        row["counters"] = {"money": "key_1"}
    ledgers.admitted[0]["estimate"] = [3_800]
    ledgers.admitted[1]["estimate"] = [200]
    for row in (*ledgers.settling, *ledgers.settled):
        row["costs"], row["at"] = [4_100], settled_at * SECOND
    ledgers.used = {(TOKEN, "money"): 4_300}

    assert ("typical budgets exceeded by more than what was in flight" in ledgers.broken()) is is_broken
