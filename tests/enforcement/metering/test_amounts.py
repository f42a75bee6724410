"""Classes that few answers have are data, and cost nothing where they are not used."""

from dataclasses import fields

import pytest

from enforcement.metering.amounts import (
    CLASSES,
    FURTHER,
    FURTHER_NAMES,
    MAX_TOKENS,
    USES,
    DetailedUsage,
    Usage,
    UsageStep,
    count_of,
    input_of,
    total_of,
)
from enforcement.metering.charges import weighed
from enforcement.metering.rates import Rates
from enforcement.model.limits import Limit

DETAILED = DetailedUsage(
    1, 2, 4, 8, input_audio=16, input_image=32, cached_audio=64, cache_write_1h=128, output_image=256, output_audio=512
)


def test_the_table_names_what_usage_and_rates_have():
    names = [one.name for one in fields(DetailedUsage)]
    assert names[:6] == [*CLASSES, "other_rates"]
    assert names[6 : 6 + len(FURTHER)] == list(FURTHER_NAMES)
    assert Rates._fields[4:] == FURTHER_NAMES
    assert {*USES} < {*names}
    assert {one.within for one in FURTHER} <= {*CLASSES}


def test_every_token_counts_once_within_its_class():
    wholes = [count_of(DETAILED, name) for name in CLASSES[:-1]]
    assert wholes == [1 + 16 + 32, 2 + 64, 4 + 128, 8 + 256 + 512]
    assert (input_of(DETAILED), DETAILED.all_output) == (sum(wholes[:3]), wholes[3])


@pytest.mark.parametrize(
    ("unit", "weights", "cost"),
    [
        ("tokens", {}, 1023),
        ("input_tokens", {}, 247),
        ("output_tokens", {}, 776),
        ("tokens", {"input": 0, "cache_write": 0, "output": 0}, 66),
        ("tokens", {"cached_input": 0, "output": 2_000}, 49 + 132 + 2 * 776),
    ],
)
def test_limits_of_tokens_count_a_class_by_the_weight_of_that_which_it_is_within(unit, weights, cost):
    limit = Limit(name="x", unit=unit, quota=10, calendar="day", weights=weights)
    assert weighed(limit, DETAILED) == cost


@pytest.mark.parametrize("value", [-1, MAX_TOKENS + 1, 1.0, True, None])
@pytest.mark.parametrize("name", [*FURTHER_NAMES, *USES])
def test_a_count_that_is_none_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: must be an integer from 0 to {MAX_TOKENS}"):
        DetailedUsage(**{name: value})


def test_what_was_seen_raises_a_report_and_never_lowers_it():
    assert Usage(5, output=3).at_least(2, 0) == Usage(5, output=3)
    assert Usage(5, output=3).at_least(9, 1) == Usage(5, output=9, calls=1)
    more = DETAILED.at_least(1_000, 2)
    assert (more.all_output, more.output_image, more.calls) == (1_000, 256, 2)


def test_steps_are_taken_from_the_whole():
    step = UsageStep(Usage(1, output=3), "other")
    left = DETAILED.with_more({"steps": (step,)}).beside_steps()
    assert (left.input, left.output, left.input_audio, left.steps) == (0, 5, 16, ())
    beyond = Usage(1).with_more({"steps": (UsageStep(Usage(7)),)})
    assert beyond.beside_steps().input == 0  # a report that contradicts itself gives nothing back


def test_sums_are_plain_where_all_parts_are():
    assert total_of([Usage(1, 2, 3, 4, 5), Usage(1)]) == Usage(2, 2, 3, 4, 5)
    assert total_of([Usage(MAX_TOKENS), Usage(1)]) == Usage(MAX_TOKENS)
    assert total_of([Usage(1), DETAILED]).output_image == 256
    assert type(total_of([Usage()])) is Usage
