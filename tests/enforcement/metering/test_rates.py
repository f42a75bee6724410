"""What classes cost that few answers have, and what is charged where nobody knows it."""

import pytest

from enforcement.metering.amounts import DetailedUsage, Usage, UsageStep
from enforcement.metering.charges import answered_by
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.model.metered import FrozenMapping

M = 1_000_000
RATES = Rates(2 * M, 8 * M, cached_input=M)


@pytest.mark.parametrize(
    ("more", "rates", "micros", "approximate"),
    [
        ({"output_image": 10}, {"output_image": 30 * M}, 300, False),
        ({"output_image": 10}, {}, 80, True),
        ({"output_image": 10}, {"output_audio": 20 * M}, 200, True),  # the dearest that is known of the output
        ({"input_audio": 10}, {"cache_write": 3 * M}, 30, True),
        ({"input_audio": 10}, {"input_audio": 0}, 0, False),
        ({"input_image": 10, "input_video": 10}, {"input_audio": 9 * M}, 40, False),  # priced as text
        ({"input_image": 10}, {"input_image": 5 * M}, 50, False),
        ({"cache_write_1h": 10}, {"cache_write": 3 * M, "cache_write_1h": 4 * M}, 40, False),
        ({"cache_write_1h": 10}, {"cache_write": 3 * M}, 40, True),  # twice the input, as providers have it
        ({"cached_audio": 10}, {"cached_audio": M // 2}, 5, False),
    ],
)
def test_a_class_costs_its_own_rate_or_the_dearest_of_its_side(more, rates, micros, approximate):
    price, usage = Price("*", RATES._replace(**rates)), DetailedUsage(**more)
    assert (price.micros(usage), price.approximates(usage)) == (micros, approximate)


def test_tokens_of_all_classes_decide_on_the_tier():
    price = Price("*", RATES, tiers=((100, Rates(9 * M, 9 * M, input_audio=M)),))
    assert price.micros(DetailedUsage(1, input_audio=99)) == 2 + 99 * 2
    assert price.micros(DetailedUsage(1, input_audio=100)) == 9 + 100


@pytest.mark.parametrize(
    ("modifiers", "micros", "approximate"),
    [
        ((), 100, False),
        (("service_tier=flex",), 50, False),
        (("service_tier=priority", "speed=fast"), 100 * 2 * 6, False),
        (("service_tier=unheard",), 200, True),  # the dearest that is known
        (("region=eu",), 100, True),
    ],
)
def test_modifiers_multiply_all_rates_and_no_fee(modifiers, micros, approximate):
    multipliers = FrozenMapping({"service_tier=flex": 500, "service_tier=priority": 2_000, "speed=fast": 6_000})
    price = Price("*", RATES, calls=7 * M, multipliers=multipliers)
    usage = DetailedUsage(10, output=10, calls=3, modifiers=modifiers)
    assert (price.micros(usage), price.approximates(usage)) == (micros + 21, approximate)


def test_a_multiplied_cost_is_rounded_once():
    price = Price("*", Rates(1, 0), multipliers=FrozenMapping({"a=b": 1_001}))
    assert price.micros(DetailedUsage(10**6, modifiers=("a=b",))) == 2
    assert price.micros(DetailedUsage(10**9, modifiers=("a=b",))) == 1_001


@pytest.mark.parametrize(
    ("fees", "uses", "micros", "approximate"),
    [
        ({"calls": 10 * M}, {"calls": 3, "file_searches": 2}, 30, False),
        ({"calls": 10 * M, "file_searches": 2 * M}, {"calls": 3, "file_searches": 2}, 14, False),
        ({"file_searches": 2 * M}, {"calls": 3, "file_searches": 2}, 4, True),
        ({"file_searches": 2 * M}, {"calls": 2, "file_searches": 2}, 4, False),
        ({"containers": 30 * M}, {"containers": 2}, 60, False),
        ({}, {"containers": 2}, 0, True),
    ],
)
def test_fees_are_those_of_their_tool(fees, uses, micros, approximate):
    price, usage = Price("*", RATES, **fees), DetailedUsage(**uses)
    assert (price.micros(usage), price.approximates(usage)) == (micros, approximate)


BOOK = Prices(
    1,
    prices=(
        Price("asked*", RATES, tiers=((100, Rates(20 * M, 80 * M)),)),
        Price("advisor", Rates(5 * M, 25 * M)),
        Price("images", Rates(M, 40 * M)),
        Price("*", Rates(0, 0)),
    ),
    overrides=(Price("contract", Rates(M, M)),),
    reported_costs=frozenset({"router.example"}),
)


def test_a_step_has_the_price_of_its_own_model_and_a_tier_of_its_own():
    price = BOOK.find("asked", 0)
    steps = UsageStep(Usage(60, output=1), "advisor"), UsageStep(Usage(90)), UsageStep(Usage(90), "asked-2026")
    usage = DetailedUsage(250, output=2, steps=steps)
    assert price.micros(usage) == 60 * 5 + 25 + (90 + 90 + 10) * 2 + 8
    assert not price.approximates(usage)
    assert price.micros(Usage(250, output=2)) == 250 * 20 + 160  # as one step


@pytest.mark.parametrize("step", [UsageStep(Usage(10), "unheard"), UsageStep(Usage(10), tool="image_generation")])
def test_a_step_of_an_unknown_model_costs_as_the_model_that_was_asked(step):
    """A pattern for any model says nothing of this one."""
    price, usage = BOOK.find("asked", 0), DetailedUsage(10, steps=(step,))
    assert (price.micros(usage), price.approximates(usage)) == (20, True)
    assert (
        price.with_tools({"image_generation": "images"}).micros(
            DetailedUsage(10, steps=(UsageStep(Usage(10), tool="image_generation"),))
        )
        == 10
    )


@pytest.mark.parametrize(
    ("model", "host", "micros", "approximate"),
    [
        ("asked", "router.example", 77, False),
        ("asked", "other.example", 20, True),
        ("asked", "", 20, True),
        ("contract", "router.example", 10, True),
    ],
)
def test_a_reported_cost_is_charged_only_where_the_list_names_the_upstream(model, host, micros, approximate):
    price, usage = BOOK.find(model, 0).at_upstream(host), DetailedUsage(10, cost=77)
    assert (price.micros(usage), price.approximates(usage)) == (micros, approximate)


def test_a_reported_cost_that_is_that_of_the_list_is_exact():
    price = BOOK.find("asked", 0)
    assert [price.approximates(DetailedUsage(10, cost=cost)) for cost in (18, 19, 20, 21, 22)] == [
        *(True, False, False, False, True)
    ]


@pytest.mark.parametrize(
    ("model", "pattern"),
    [("advisor", "advisor"), ("asked-mini", "asked*"), ("unheard", "asked*"), ("contract", "asked*")],
)
def test_an_answer_is_charged_by_the_model_that_it_names_if_that_is_dearer(model, pattern):
    assert answered_by(BOOK.find("asked", 0), model, Usage(10, output=10)).pattern == pattern


def test_another_price_is_that_of_the_same_instant():
    dated = Prices(1, prices=(Price("a", RATES), Price("b", RATES), Price("b", Rates(9 * M, 0), from_us=50)))
    assert dated.find("a", 49).other("b").rates == RATES
    assert dated.find("a", 50).other("b").rates == Rates(9 * M, 0)
    assert Price("a", RATES).other("b") is None


def test_priority_has_one_multiplier_under_two_names():
    """Gemini says it as a type of traffic, as a tier, or both."""
    names = ("traffic_type=ON_DEMAND_PRIORITY", "service_tier=priority")
    for multipliers, factor in (({}, 2.5), ({names[1]: 1_800}, 1.8), ({names[0]: 1_500, names[1]: 1_000}, 1.5)):
        price = Price("m", Rates(1_000_000, 2_000_000), multipliers=FrozenMapping(multipliers))
        for said in (names[:1], names):
            assert price.micros(DetailedUsage(100, modifiers=said)) == 100 * factor
