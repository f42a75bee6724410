"""Whatever happens to requests in whatever order, each is settled once, and no charge is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcement.metering.amounts import CLASSES, Usage
from enforcement.metering.charges import Counts, terms_of
from enforcement.metering.estimate import Estimate
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.settlement import DrainBounds, MeteredReservation
from enforcement.model.limits import Limit
from tests.enforcement.metering.fleet import Fleet, examples
from tests.scale import scale

PRICES = Prices(1, prices=(Price("m", Rates(2_000_000, 10_000_000, 200_000)),))
UNITS = ("requests", "input_tokens", "output_tokens", "tokens", "micros")
LIMITS = [Limit(name=unit, unit=unit, quota=100, calendar="lifetime") for unit in UNITS]

VECTOR = {
    "start_at": "2026-06-01T00:00:00Z",
    "prices": {"schema": 1, "revision": 1, "prices": [{"model": "m", "input": 2_000_001, "output": 10_000_000}]},
    "policy": {"drain": {"at_once": 1, "ms": 50, "bytes": 500}, "clamp_at_least": 2},
    "limits": [
        *({"name": unit, "unit": unit} for unit in ("requests", "output_tokens", "tokens")),
        {"name": "usd", "unit": "micros", "quota": 60_000},
        {"name": "weighed", "unit": "tokens", "weights": {"input": 333, "cached_input": 0, "output": 1_500}},
        {"name": "good", "unit": "requests", "charge_on": ["2xx"]},
        {"name": "slots", "unit": "requests", "algorithm": "concurrency", "quota": 2},
    ],
}
SMALL = st.integers(0, 700)
USAGE = st.builds(lambda *n: dict(zip(CLASSES, n, strict=True)), SMALL, SMALL, SMALL, SMALL, SMALL)
STEP = st.one_of(
    st.fixed_dictionaries({"op": st.just("answer"), "status": st.sampled_from([200, 404, 500])}),
    st.fixed_dictionaries({"op": st.just("streamed"), "text_bytes": SMALL, "bytes": SMALL}),
    st.fixed_dictionaries({"op": st.just("usage"), "usage": USAGE, "final": st.booleans()}),
    st.fixed_dictionaries({"op": st.sampled_from(["ends", "breaks"]), "readable": st.booleans()}),
    st.fixed_dictionaries({"op": st.just("refused"), "status": st.sampled_from([None, 400, 529])}),
    st.fixed_dictionaries({"op": st.just("client_leaves"), "sent": st.booleans()}),
    st.fixed_dictionaries({"op": st.sampled_from(["expires", "by_hand", "look"])}),
    st.fixed_dictionaries({"op": st.just("by_hand"), "usage": USAGE}),
)
REF = st.sampled_from("abc")
WAIT = st.sampled_from([0, 0, 1, 30, 51, 604_800_001])


@pytest.mark.proof
@examples(scale(50, 3_000))
@given(st.lists(st.tuples(REF, WAIT, STEP), max_size=25), st.lists(st.tuples(SMALL, SMALL), min_size=3, max_size=3))
def test_the_counters_hold_what_the_reservations_are_charged(steps, sizes):
    """The player refuses a second settlement; here the sums of all counters are compared after each step."""
    fleet, at_ms = Fleet(VECTOR), 0
    for ref, (text_bytes, cap) in zip("abc", sizes, strict=True):
        request = {"model": "m", "text_bytes": text_bytes, "cap": cap}
        fleet.play([{"at_ms": 0, "op": "reserve", "ref": ref, "request": request}])
    for ref, wait, step in steps:
        settled = {name: (r.costs, r.settled_as) for name, r in fleet.open.items() if r.state == "settled"}
        at_ms += wait
        fleet.play([{**step, "at_ms": at_ms, "ref": ref}])
        assert all((fleet.open[name].costs, fleet.open[name].settled_as) == was for name, was in settled.items())
        _check_sums(fleet)


def _check_sums(fleet):
    charged = [fleet._charges(reservation) for reservation in fleet.open.values()]
    assert fleet.used == {name: sum(charges[name] for charges in charged) for name in fleet.names}
    for reservation in fleet.open.values():
        assert all(type(cost) is int and cost >= 0 for cost in reservation.costs)
        changes = zip(reservation.debt(), reservation.given_back(), reservation.estimated_costs, strict=True)
        assert [debt - back + cost for debt, back, cost in changes] == list(reservation.costs)
        assert (reservation.settled_as is None) is (reservation.state == "open")
        if reservation.state != "settled":
            assert reservation.costs == reservation.estimated_costs


@examples(50)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(500, 2000))
def test_pieces_of_a_stream_are_summed_before_they_are_rounded(pieces, factor):
    """However an answer is cut, the same text costs the same."""
    found = []
    for chunks in (pieces, [sum(pieces)]):
        reservation = MeteredReservation(terms_of(LIMITS, PRICES, "m", 0), Estimate(5, 100, factor=factor), 0)
        for chunk in chunks:
            reservation.streamed(chunk, chunk, 0)
        found.append(reservation.ended(0))
    assert found[0] == found[1]


@examples(50)
@given(st.integers(0, 10**6), st.integers(0, 500), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_with_a_bound_nothing_but_a_report_costs_more_than_the_estimate(text, cap, n, seen, reports):
    """A budget of bounds is never exceeded by what was only observed."""
    estimate = Estimate(text, cap, n, bound=True)
    reservation = MeteredReservation(terms_of(LIMITS, PRICES, "m", 0), estimate, 0)
    reservation.streamed(seen, seen, 0)
    if reports:
        reservation.reported(Usage(min(text, 3), output=min(1, cap)), 0, final=False)
    settlement = reservation.ended(0)
    assert all(cost <= most for cost, most in zip(settlement.costs, reservation.estimated_costs, strict=True))


def test_a_settlement_says_what_was_counted_and_whether_a_price_was_missing():
    """Written tokens have no price of their own here, cached ones have."""
    for usage, approximate in ((Usage(1, 2, 0, 3), False), (Usage(1, 0, 2, 3), True)):
        reservation = MeteredReservation(terms_of(LIMITS, PRICES, "m", 0), Estimate(5, 10), 0)
        assert reservation.reported(usage, 0, final=True) is None
        settlement = reservation.ended(0)
        assert (settlement.counts, settlement.approximate) == (usage, approximate)
    reservation = MeteredReservation(terms_of(LIMITS, PRICES, "m", 0), Estimate(5, 10), 0)
    settlement = reservation.ended(0)
    assert (settlement.counts, settlement.approximate) == (Counts(5), False)


def test_the_last_word_is_not_replaced_by_a_later_report_that_is_none():
    """What a provider says in passing is less than what it said last."""
    reservation = MeteredReservation(terms_of(LIMITS, PRICES, "m", 0), Estimate(5, 10), 0)
    reservation.reported(Usage(7, output=7), 0, final=True)
    reservation.reported(Usage(1, output=1), 0, final=False)
    assert reservation.ended(0).counts == Usage(7, output=7)


def test_a_client_that_leaves_twice_changes_nothing():
    """The time of the drain begins when it left first."""
    bounds = DrainBounds(ms=5_000)
    reservation = MeteredReservation(terms_of(LIMITS, PRICES, "m", 0), Estimate(5, 10), 0)
    assert reservation.client_left(0, drain=bounds) is None
    assert reservation.client_left(5_000_000, drain=bounds) is None
    assert reservation.draining
    assert not reservation.holds_slots
    assert reservation.passed(5_000_001).settled_as == "observed"
    assert not reservation.draining
