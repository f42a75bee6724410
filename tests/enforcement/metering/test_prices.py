"""Price documents are read strictly, and prices are found and summed exactly."""

import json
import math
import pickle
import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcement.metering.amounts import CLASSES, MAX_TOKENS, Usage
from enforcement.metering.price_documents import MAX_PRICES_BYTES, parse_prices, prices_to_json
from enforcement.metering.prices import MAX_CACHED, NO_PRICES, Price, Prices, Rates
from enforcement.metering.typical import Learned, Numbers
from enforcement.model.documents import InvalidDocument
from enforcement.model.metered import FrozenMapping
from enforcement.model.sizes import MAX_NUMBER
from tests.enforcement.metering.fleet import examples
from tests.repository import ROOT
from tests.scale import scale

COUNT = st.integers(0, MAX_TOKENS)
USAGE = st.builds(Usage, COUNT, COUNT, COUNT, COUNT)
RATE = st.integers(0, 10**12)
RATES = st.builds(Rates, RATE, RATE, *[st.none() | RATE] * (len(Rates._fields) - 2))
MULTIPLIERS = st.dictionaries(st.sampled_from(["speed=fast", "service_tier=flex"]), st.integers(0, 10**6))
MULTIPLIERS = MULTIPLIERS.map(FrozenMapping)
NAME = st.text("ab*", min_size=1, max_size=6)
INSTANT = st.none() | st.integers(-3, 3)


def document(**fields):
    return json.dumps({"schema": 1, "revision": 1, **fields})


def entry(**fields):
    return {"model": "m", "input": 1, "output": 2, **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"revision": 0}, "revision: must be an integer from 1 to"),
        ({"revision": True}, "revision: must be an integer"),
        ({"schema": True}, "schema: must be 1, got True"),
        ({"schema": None}, "schema: must be 1, got None"),
        ({"prises": []}, "prises: unknown field"),
        ({"prices": None}, "prices: must be a list"),
        ({"prices": {}}, "prices: must be a list"),
        ({"overrides": None}, "overrides: must be a list"),
        ({"currency": "dollar"}, "currency: must be three capital letters such as USD, got 'dollar'"),
        ({"currency": None}, "currency: must be three capital letters"),
        ({"learned": []}, "learned: must be an object, got []"),
        ({"learned": {"groop": {}}}, "groop: unknown field"),
        ({"learned": {"groups": None}}, "learned.groups: must be an object of at most 1000, got None"),
        ({"learned": {"tools": {f"t{n}": 5 for n in range(1_001)}}}, "learned.tools: must be an object of at most"),
        ({"learned": {"tools": {"": 5}}}, "learned.tools: must have names of 1 to 320 characters, got ''"),
        ({"learned": {"groups": {"g" * 321: []}}}, "learned.groups: must have names of 1 to 320 characters"),
        ({"learned": {"groups": {"g": [1, 2, 3, 4]}}}, "learned.groups['g']: must be a list of 5 integers, got [1"),
        ({"learned": {"groups": {"g": [1, 2, 3, 4, True]}}}, "learned.groups['g']: must be an integer from -1000"),
        ({"learned": {"groups": {"g": [1, 2, 3, 4, 10**12 + 1]}}}, "learned.groups['g']: must be an integer from"),
        ({"learned": {"tools": {"t": -1}}}, "learned.tools['t']: must be an integer from 0 to 10000000, got -1"),
        ({"learned": {"tools": {"t": None}}}, "learned.tools['t']: must be an integer from 0 to 10000000, got None"),
        ({"reported_costs": "openrouter.ai"}, "reported_costs: must be a list of at most 32 hosts"),
        ({"reported_costs": ["https://x"]}, "reported_costs: must have names of hosts such as openrouter.ai, got"),
        ({"prices": [entry(multipliers=[])]}, "prices[0].multipliers: must be an object with at most 32 multipliers"),
        ({"prices": [entry(multipliers={"fast": 1})]}, "prices[0].multipliers: must have names such as service_tier="),
        ({"prices": [entry(multipliers={"a=b": "2"})]}, "prices[0].multipliers['a=b']: must be an integer from 0"),
        ({"prices": [entry(output_sound=1)]}, "prices[0].output_sound: unknown field"),
        ({"prices": [entry(output_audio=True)]}, "prices[0].output_audio: must be an integer"),
        ({"prices": [5]}, "prices[0]: must be an object, got 5"),
        ({"prices": [entry(), entry()]}, "prices[1].model: must not have the model and from of prices[0]"),
        ({"prices": [entry(model="")]}, "prices[0].model: must be a string of 1 to 256 characters"),
        ({"prices": [entry(model="m" * 257)]}, "prices[0].model: must be a string of 1 to 256 characters"),
        ({"prices": [entry(model=None)]}, "prices[0].model: must be a string"),
        ({"prices": [entry(input=None)]}, "prices[0].input: must be an integer from 0 to 1000000000000, got None"),
        ({"prices": [entry(input="1")]}, "prices[0].input: must be an integer"),
        ({"prices": [entry(output=-1)]}, "prices[0].output: must be an integer"),
        ({"overrides": [entry(cached_input=10**12 + 1)]}, "overrides[0].cached_input: must be an integer"),
        ({"prices": [entry(**{"from": None})]}, "prices[0].from: must be an instant in UTC"),
        ({"prices": [entry(**{"from": 0})]}, "prices[0].from: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-30T00:00:00Z")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00:00+00:00")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00:00z")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00Z")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00:00.Z")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00:00.0000001Z")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00:60Z")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="2026-02-03T00:00:00Z\n")]}, "prices[0].until: must be an instant in UTC"),
        ({"prices": [entry(until="٢٠٢٦-02-03T00:00:00Z")]}, "prices[0].until: must be an instant in UTC"),
        (
            {"prices": [entry(**{"from": "2026-02-03T00:00:00.1Z"}, until="2026-02-03T00:00:00.1Z")]},
            "prices[0].until: must be after from",
        ),
        ({"prices": [entry(tiers=None)]}, "prices[0].tiers: must be a list"),
        ({"prices": [entry(tiers=[None])]}, "prices[0].tiers[0]: must be an object, got None"),
        ({"prices": [entry(tiers=[{"input": 1, "output": 1}])]}, "prices[0].tiers[0].above_input: is required"),
        ({"prices": [entry(tiers=[{"above_input": 5, "input": 1}])]}, "prices[0].tiers[0].output: is required"),
        (
            {"prices": [entry(tiers=[{"above_input": n, "input": 1, "output": 1} for n in (5, 5)])]},
            "prices[0].tiers[1].above_input: must be an integer from 6 to",
        ),
        (
            {"prices": [entry(tiers=[{"above_input": 5, "input": 1, "output": 1, "tiers": []}])]},
            "prices[0].tiers[0].tiers: unknown field",
        ),
    ],
)
def test_a_wrong_document_is_refused_by_its_field(fields, message):
    """The sentence names the list, the entry, the field and the rule."""
    with pytest.raises(InvalidDocument, match=re.escape(message)):
        parse_prices(document(**fields))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "",
        '{"schema": 1, "revision": 1, "revision": 2}',
        '{"schema": 1, "revision": 1.0}',
        '{"schema": 1, "revision": 1e0}',
        '{"schema": 1, "revision": NaN}',
        '{"schema": 1, "revision": 1} x',
        '{"schema": 1, "revision": 1, "learned": {"tools": {"m": 500, "m": 600}}}',
        '{"schema": 1, "revision": 1, "learned": {"tools": {"m": 1000.0}}}',
        '{"schema": 1, "revision": 1, "prices": [{"model": "m", "input": 1, "input": 1, "output": 1}]}',
        '{"schema": 1, "revision": 1, "prices": [{"model": "\\ud800", "input": 1, "output": 1}]}',
        b'{"schema": 1, "revision": 1, "prices": [{"model": "\xff", "input": 1, "output": 1}]}',
        '{"schema": 1, "revision": 1' + " " * MAX_PRICES_BYTES + "}",
    ],
    ids=range(14),
)
def test_ambiguous_json_is_refused(text):
    """What two readers could understand differently prices nothing."""
    with pytest.raises(InvalidDocument):
        parse_prices(text)


def test_factors_of_a_development_version_are_read_over():
    assert parse_prices(document(factors={"m": 1_500})) == Prices(1)


def test_lists_that_are_missing_are_empty():
    """The least document prices nothing, and two lists may name the same model."""
    assert parse_prices(document()) == Prices(1)
    both = parse_prices(document(overrides=[entry()], prices=[entry(input=9)]))
    assert both.find("m", 0).rates.input == 1


@examples(50)
@given(
    st.builds(
        Prices,
        st.integers(1, 9),
        st.lists(st.builds(Price, NAME, RATES, multipliers=MULTIPLIERS, file_searches=st.none() | RATE)).map(tuple),
        learned=st.builds(
            Learned,
            st.dictionaries(NAME, st.builds(Numbers, *[st.integers(-9, 10**6)] * 5)).map(FrozenMapping),
            st.dictionaries(NAME, st.integers(0, 2_000)).map(FrozenMapping),
        ),
        reported_costs=st.frozensets(st.sampled_from(["openrouter.ai", "a.example"])),
    )
)
def test_a_document_is_read_back_as_it_was_written(prices):
    """Nothing is lost between two programs, nor between two processes."""
    assert pickle.loads(pickle.dumps(prices)) == prices
    unique = {price.pattern: price for price in prices.overrides}
    prices = replace(prices, overrides=tuple(unique.values()))
    assert parse_prices(json.dumps(prices_to_json(prices))) == prices


@examples(50)
@given(USAGE, RATES)
def test_money_is_summed_exactly_and_rounded_up_once(usage, rates):
    """The oracle computes with fractions."""
    dearest = max(rate or 0 for name, rate in rates._asdict().items() if not name.startswith("output"))
    own = [dearest if rate is None else rate for rate in (rates.cached_input, rates.cache_write)]
    counts = (usage.input, usage.output, usage.cached_input, usage.cache_write)
    exact = sum(Fraction(n * rate, 1_000_000) for n, rate in zip(counts, [*rates[:2], *own], strict=True))
    assert Price("*", rates).micros(usage) == min(math.ceil(exact), MAX_NUMBER)
    assert rates.approximates(usage) == any(
        n > 0 and rate is None for n, rate in zip(counts[2:], rates[2:4], strict=True)
    )


@examples(50)
@given(USAGE, RATES, st.sampled_from(["input", "cached_input", "cache_write", "output"]), st.integers(0, 1000))
def test_one_more_token_never_costs_less(usage, rates, name, more):
    """Within one tier, money rises with each class."""
    counts = {each: getattr(usage, each) for each in CLASSES}
    counts[name] = min(counts[name] + more, MAX_TOKENS)
    assert 0 <= Price("*", rates).micros(usage) <= Price("*", rates).micros(Usage(**counts)) <= MAX_NUMBER


@examples(50)
@given(NAME, st.text("ab*", max_size=8))
def test_a_star_stands_for_any_characters(pattern, model):
    """The oracle is a regular expression."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    matches = re.fullmatch(expression, model, re.DOTALL) is not None
    assert Price(pattern, Rates(1, 1)).matches(model) is matches
    assert (Prices(1, prices=(Price(pattern, Rates(1, 1)),)).find(model, 0) is not None) is matches


def test_a_pattern_of_many_stars_is_matched_in_time():
    """A hostile pair of pattern and name takes no longer than their lengths."""
    assert not Price("*a" * 128, Rates(1, 1)).matches("a" * 127 + "b" * 100_000)


PRICES = st.lists(
    st.builds(Price, NAME, st.just(Rates(1, 1)), INSTANT, INSTANT), unique_by=lambda p: (p.pattern, p.from_us)
).map(tuple)


@pytest.mark.proof
@examples(scale(50, 2_000))
@given(PRICES, PRICES, st.lists(st.tuples(st.text("ab", max_size=4), st.integers(-4, 4)), min_size=1, max_size=8))
def test_the_first_choice_is_found_whatever_was_asked_before(overrides, listed, questions):
    """The oracle compares every entry by the rules, one after the other, and remembers nothing."""
    prices = Prices(1, overrides, listed)
    for model, at_us in questions:
        ranked = [
            (0 if entries is overrides else 1, -len(p.pattern.replace("*", "")), p.pattern.count("*"), p.pattern, p)
            for entries in (overrides, listed)
            for p in sorted(entries, key=lambda p: -math.inf if p.from_us is None else p.from_us, reverse=True)
            if p.matches(model) and p.holds_at(at_us)
        ]
        expected = min(ranked, key=lambda row: row[:4])[4] if ranked else None
        assert prices.find(model, at_us) is expected or prices.find(model, at_us) == expected


def test_names_from_clients_do_not_fill_the_memory():
    """The number of remembered models has a bound, and long names are not remembered."""
    prices = Prices(1, prices=(Price("*", Rates(1, 1)),))
    for i in range(2 * MAX_CACHED + 5):
        assert prices.find(f"model-{i}", 0)
    assert prices.find("m" * 100_000, 0)
    assert len(prices._spans) <= MAX_CACHED
    assert all(len(name) <= 256 for name in prices._spans)


def test_without_a_document_no_model_has_a_price():
    """The rule of the limit decides."""
    assert NO_PRICES.quote("m", 0, "deny").word == "denied"
    assert NO_PRICES.quote("m", 0, {"charge_as": "m"}).word == "denied"
    assert NO_PRICES.quote("m", 0, "count_only").word == "counted"


def test_a_price_that_begins_later_does_not_hold_yet_although_it_was_asked_for():
    """An answer is remembered until the next price begins or ends."""
    later = Price("m", Rates(2, 2), from_us=10, until_us=20)
    prices = Prices(1, prices=(Price("m*", Rates(1, 1)), later))
    found = [prices.find("m", at_us).rates.input for at_us in (9, 10, 19, 20, 9, 19)]
    assert found == [1, 2, 2, 1, 1, 2]


def test_the_tier_of_the_whole_input_decides_and_takes_nothing_from_the_base():
    """Cached and written tokens count for the threshold, and the tier's missing price is its own input's."""
    tiers = ((10, Rates(3_000_000, 4_000_000)), (20, Rates(5_000_000, 6_000_000, 7_000_000, 8_000_000)))
    price = Price("m", Rates(1_000_000, 2_000_000, 100_000, 200_000), tiers=tiers)

    assert price.micros(Usage(4, 3, 3, 1)) == 4 + 1 + 2  # 4 + 0.3 + 0.6 + 2 = 6.9
    assert price.micros(Usage(4, 4, 3, 1)) == 11 * 3 + 4
    assert price.micros(Usage(10, 10, 1, 1)) == 50 + 70 + 8 + 6
    assert not price.approximates(Usage(4, 3, 3, 1))
    assert price.approximates(Usage(4, 4, 3, 1))
    assert not price.approximates(Usage(11, 0, 0, 1))
    assert not price.approximates(Usage(10, 10, 1, 1))


def test_the_document_that_the_documentation_shows_is_read():
    """A reader may begin with it."""
    page = (ROOT / "templates" / "docs" / "tokens-and-money.md").read_text()
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)

    prices = parse_prices(shown)

    assert [prices.find(model, 0).pattern for model in ("gpt-4o", "gpt-4o-mini", "gemini-2.5-pro")] == [
        "gpt-4o",
        "gpt-4o*",
        "gemini-2.5-pro*",
    ]
