"""The JSON Schema of a limit refuses what the value refuses, at both doors."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import jsonschema_rs
import pytest

from enforcement.model.limit_fields import FIELDS, NULLABLE
from enforcement.model.limit_schema import limit_schema
from enforcement.model.limits import InvalidLimit, Limit
from tests.scale import scale

FILE = jsonschema_rs.Draft202012Validator(limit_schema())
REST = jsonschema_rs.Draft202012Validator(limit_schema(rest=True))
LENGTH = {"name": "m", "quota": 5, "window_seconds": 60}
VALUES: dict[str, list[Any]] = {
    "algorithm": ["fixed_window", "sliding_window", "token_bucket", "concurrency"],
    "window_seconds": [None, 60, 0],
    "calendar": [None, "minute", "day", "week", "month", "year", "lifetime"],
    "time_zone": ["UTC", "Europe/Berlin"],
    "anchor": [None, "", 3, 31, "08:00", "24:00", "02-29", "13-01", "05"],
    "burst": [None, 9, 0],
    "rollover": [None, 7],
    "unit": ["requests", "tokens", "output_tokens", "micros"],
    "consistency": ["strict", "leased"],
    "weights": [{}, {"input": 5}, {"output": 5}, {"image": 5}],
    "unpriced": ["deny", "count_only", {"charge_as": "gpt"}, {"charge_as": ""}],
    "unmetered": ["deny", "count_only"],
    "mode": ["enforce", "shadow", "half"],
}


@pytest.mark.parametrize(
    "limit",
    [
        {"name": "m", "quota": 5},
        {**LENGTH, "burst": 5},
        {**LENGTH, "calendar": "day"},
        {"name": "m", "quota": 5, "calendar": "day", "anchor": "25:99"},
        {"name": "m", "quota": 5, "calendar": "day", "algorithm": "token_bucket"},
        {"name": "m", "quota": 5, "calendar": "lifetime", "rollover": 5},
        {**LENGTH, "time_zone": "Europe/Berlin"},
        {**LENGTH, "weights": {"input": 5}},
        {**LENGTH, "unit": "output_tokens", "weights": {"input": 5}},
        {**LENGTH, "unpriced": "count_only"},
        {**LENGTH, "unmetered": "count_only"},
        {**LENGTH, "algorithm": "concurrency", "consistency": "leased"},
    ],
)
def test_rules_between_fields_are_in_both_schemas(limit):
    """A client or an editor finds the mistake before the control plane does."""
    assert not FILE.is_valid(limit)
    assert not REST.is_valid(limit)
    with pytest.raises(InvalidLimit):
        Limit.from_json({"algorithm": "fixed_window", **limit})


@pytest.mark.proof
def test_the_schemas_agree_with_the_value():
    """On limits drawn at random, of which many break rules. Only REST wants a number for a week or month."""
    draw, valid, count = Random(26), 0, scale(2_000, 20_000)
    for _ in range(count):
        names = draw.sample(sorted(VALUES), draw.randint(1, 5))
        limit = {**LENGTH, **{name: draw.choice(VALUES[name]) for name in names}}
        if limit.get("calendar") and draw.random() < 0.8:
            del limit["window_seconds"]
        accepted = is_accepted(limit)
        valid += accepted

        assert FILE.is_valid(limit) == accepted, limit
        is_number_as_text = limit.get("calendar") in ("week", "month") and isinstance(limit.get("anchor"), str)
        assert REST.is_valid(limit) == (accepted and not is_number_as_text), limit
    assert count / 10 < valid < count / 2


def is_accepted(limit: dict[str, Any]) -> bool:
    given = {name: value for name, value in limit.items() if value is not None or name not in NULLABLE}
    try:
        Limit.from_json({"algorithm": "fixed_window", **given})
    except InvalidLimit:
        return False
    return True


def test_each_field_is_described():
    """The description is the help of the table."""
    properties = limit_schema()["properties"]
    assert {name: rules["description"] for name, rules in properties.items()} == {f.name: f.help for f in FIELDS}


def test_each_part_of_a_rule_says_that_it_is_open():
    """Redocly takes one that does not for closed, and finds each example of a limit wrong."""
    parts = [part for rule in limit_schema(rest=True)["allOf"] for part in parts_of(rule)]

    assert len(parts) > len(FIELDS)
    assert [part for part in parts if "properties" in part and part.get("additionalProperties") is not True] == []


def parts_of(rule: Any) -> Iterator[dict[str, Any]]:
    """Yield a rule and what it is made of, but for the rules of values."""
    yield rule
    for name in ("if", "then", "else"):
        if name in rule:
            yield from parts_of(rule[name])
    for one in rule.get("anyOf", ()):
        yield from parts_of(one)
