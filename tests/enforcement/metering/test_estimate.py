"""What a request is expected to cost, the cost for each limit, and the cap that still fits."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcement.metering.amounts import CLASSES, Usage
from enforcement.metering.charges import Counts, ReservationDenial, terms_of, unmetered_terms, weighed
from enforcement.metering.estimate import (
    MESSAGE_TOKENS,
    Estimate,
    NoBound,
    clamp,
    estimate_request,
    strictest,
)
from enforcement.metering.prices import NO_PRICES, Price, Prices, Rates
from enforcement.model.limits import Limit
from enforcement.model.metered import TOKEN_UNITS, USUAL_OUTPUT_CAP, Metering
from enforcement.model.sizes import MAX_NUMBER
from tests.enforcement.metering.fleet import examples

COUNT = st.integers(0, 10**12)
COUNTS = st.builds(Counts, COUNT, COUNT, COUNT, COUNT)
PRICES = Prices(1, prices=(Price("m", Rates(2_000_000, 10_000_000)),))
BOUND = Metering(estimate="bound", part_tokens={"image": 1_500})


def limit(unit, quota=100, **keywords):
    return Limit(name=unit, unit=unit, quota=quota, calendar="month", **keywords)


def test_text_is_counted_by_its_bytes_and_parts_by_their_kind():
    """The factor corrects the text only, and the sum is rounded up once."""
    rules = Metering(part_tokens={"image": 765, "audio": 10})
    found = estimate_request(rules, text_bytes=10, parts={"image": 2, "file": 3}, cap=50, n=3, factor=1250)
    assert (found.input, found.output) == (4 + 2 * 765, 150)


@examples(50)
@given(st.integers(0, 10**9), st.integers(500, 2000))
def test_the_input_is_rounded_up_once(text_bytes, factor):
    """The oracle computes with fractions."""
    found = estimate_request(Metering(), text_bytes=text_bytes, factor=factor)
    assert found.input == math.ceil(Fraction(text_bytes * factor, 4_000))
    assert found.input >= (text_bytes > 0)


def test_a_request_without_a_cap_gets_the_policys_or_the_usual_one():
    """A cap of 0, as embeddings have it, is a cap."""
    assert estimate_request(Metering(), text_bytes=0).cap == USUAL_OUTPUT_CAP
    assert estimate_request(Metering(default_cap=200), text_bytes=0, n=2).output == 400
    assert estimate_request(Metering(default_cap=200), text_bytes=0, cap=0).output == 0


def test_a_bound_takes_one_token_a_byte_whatever_was_learned():
    """The input can be no more, and what was seen of the answer neither."""
    found = estimate_request(BOUND, text_bytes=10, parts={"image": 2, "file": 0}, cap=50, n=2, factor=500)
    assert found.input == 10 + 2 * 1_500
    assert [found.seen(n) for n in (0, 7, 100, 101)] == [0, 7, 100, 100]


def test_a_bound_counts_messages_without_text():
    """A provider puts tokens of its own around each message, so a thousand empty ones cost something."""
    assert estimate_request(BOUND, text_bytes=0, messages=1_000).input == 1_000 * MESSAGE_TOKENS
    assert estimate_request(Metering(), text_bytes=0, messages=1_000).input == 0


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        ({"parts": {"image": 1, "file": 1}}, "part_tokens: must have a number for file"),
        ({"parts": {"other": 1}}, "part_tokens: must have a number for other"),
    ],
)
def test_a_bound_refuses_what_has_none(request_of, message):
    """The sentence says which part it is; a typical estimate goes on."""
    with pytest.raises(NoBound, match=message):
        estimate_request(BOUND, text_bytes=1, **request_of)
    assert estimate_request(Metering(), text_bytes=1, **request_of).input == 1


@examples(50)
@given(COUNTS, st.sampled_from(sorted(TOKEN_UNITS)), st.data())
def test_weights_are_summed_exactly_and_rounded_up_once_a_limit(counts, unit, data):
    """The oracle computes with fractions, and a class without a weight counts as it is."""
    classes = TOKEN_UNITS[unit]
    weights = data.draw(st.dictionaries(st.sampled_from(classes), st.integers(0, 5_000)))
    exact = sum(Fraction(getattr(counts, name) * weights.get(name, 1_000), 1_000) for name in classes)
    assert weighed(limit(unit, weights=weights), counts) == min(math.ceil(exact), MAX_NUMBER)


def test_the_units_of_tokens_count_the_classes_of_usage():
    """The two lists of names agree."""
    assert TOKEN_UNITS["tokens"] == TOKEN_UNITS["input_tokens"] + TOKEN_UNITS["output_tokens"]
    assert (*TOKEN_UNITS["tokens"], "calls") == CLASSES


def test_costs_never_pass_what_the_store_can_count():
    """The greatest cap, choices and price cost the greatest number, and are not an error."""
    dear = Prices(1, prices=(Price("m", Rates(10**12, 10**12)),))
    terms = terms_of([limit("micros"), limit("tokens", weights={"output": 1_000_000})], dear, "m", 0)
    assert terms.costs(Estimate(10**9, 2**31 - 1, 10_000)) == (MAX_NUMBER, MAX_NUMBER)


def test_money_without_a_price_is_denied_by_each_limit_that_says_so():
    """A shadow never denies, and one that only counts gets no cost."""
    limits = [
        limit("requests"),
        limit("micros"),
        limit("micros", unpriced="count_only"),
        limit("micros", mode="shadow"),
        limit("micros", unpriced={"charge_as": "m"}),
        limit("micros", unpriced={"charge_as": "other"}),
    ]
    assert terms_of(limits, PRICES, "new", 0) == ReservationDenial("unpriced_model", (1, 5))
    terms = terms_of([limits[i] for i in (0, 2, 3, 4)], PRICES, "new", 0)
    assert terms.costs(Usage(3, output=1)) == (1, None, None, 16)
    assert terms.unmetered() == (1, 2)


def test_a_request_that_no_meter_reads_is_denied_only_where_tokens_or_money_are_limited():
    """Requests and slots are counted, all others are named."""
    free = limit("tokens", unmetered="count_only")
    assert unmetered_terms([free, limit("micros")]) == ReservationDenial("unmetered")
    for limits in ([free, limit("requests")], [limit("micros", mode="shadow"), limit("requests")]):
        terms = unmetered_terms(limits)
        assert terms.costs(Counts(5)) == (None, 1)
        assert terms.unmetered() == (0,)
    assert unmetered_terms([limit("requests"), limit("images")]).unmetered() == (1,)


def test_a_unit_that_no_meter_counts_is_left_to_the_caller():
    """It is named as unmetered."""
    terms = terms_of([limit("images")], NO_PRICES, "m", 0)
    assert (terms.costs(Usage(1)), terms.unmetered()) == ((None,), (0,))


@examples(50)
@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 4), st.integers(1, 30), st.lists(st.integers(0, 400)))
def test_the_clamped_cap_is_the_greatest_that_fits(text, cap, n, least, rooms):
    """The oracle tries every cap."""
    units = ["requests", "tokens", "micros", "output_tokens"][: len(rooms)]
    rooms = rooms[: len(units)]
    terms = terms_of([limit(unit) for unit in units], PRICES, "m", 0)
    estimate = Estimate(text, cap, n)
    fitting = [
        lower
        for lower in range(least, cap)
        if all(c <= room for c, room in zip(terms.costs(Estimate(text, lower, n)), rooms, strict=True))
    ]
    found = clamp(estimate, terms, rooms, least)
    assert (found and found.cap) == (max(fitting) if fitting else None)


def test_of_several_policies_the_strictest_rules_hold():
    """No rule of one policy is undone by another."""
    first = Metering(default_cap=500, part_tokens={"image": 10, "audio": 5}, clamp_at_least=10)
    second = Metering("bound", 200, {"image": 20}, "drain", 30)
    merged = Metering("bound", 200, {"image": 20, "audio": 5}, "drain", 30)
    assert strictest([first, second]) == strictest([second, first]) == merged
    assert strictest([first, Metering()]) == strictest([first]) == first
    assert strictest([]) == Metering()
    free = Metering("bound", on_disconnect="free", lost_after=60)
    assert [strictest([free, other]).on_disconnect for other in (Metering(), Metering("bound"))] == ["free", "drain"]
    assert strictest([free, Metering()]).lost_after == 3_600
