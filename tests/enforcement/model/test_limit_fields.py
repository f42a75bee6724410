"""The table of the fields of a limit says what the value does, and every value has words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from enforcement.model import limit_fields
from enforcement.model.limit_fields import BY_NAME, FIELDS, MORE, REQUIRED, amount, label_of, words_of
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.metered import CHARGE_AS
from enforcement.model.money import figure

PLAIN: Mapping[str, Any] = {"name": "m", "algorithm": "fixed_window", "quota": 10, "window_seconds": 60}
OTHER: Mapping[str, Any] = {
    "window_seconds": 60,
    "calendar": "month",
    "time_zone": "Europe/Berlin",
    "anchor": 3,
    "burst": 20,
    "rollover": 5,
    "consistency": "leased",
    "weights": {"input": 100},
    "unpriced": "count_only",
    "unmetered": "count_only",
}
"""A value other than the default of each field that other fields allow."""
RULES = [(field.name, condition) for field in FIELDS for condition in field.only_if]


def money(micros: int) -> str:
    return f"{figure(micros)} USD"


def meeting(conditions: Any, limit: dict[str, Any]) -> dict[str, Any]:
    """Return a limit whose fields meet conditions, and those that the conditions need."""
    for condition in conditions:
        if not condition.holds(limit):
            limit = meeting(BY_NAME[condition.field].only_if, {**limit, condition.field: condition.values[-1]})
    if limit.get("calendar"):
        limit.pop("window_seconds", None)
    anchor = {"day": "08:00", "year": "03-14"}.get(limit.get("calendar") or "")
    return {**limit, "anchor": anchor} if "anchor" in limit and anchor else limit


def test_the_table_has_the_fields_of_the_value_in_their_order():
    """So that nobody can add a field to one of the two only."""
    assert [field.name for field in FIELDS] == [spec.name for spec in fields(Limit)]
    assert len(RULES) == 11


def test_the_default_is_that_of_the_value():
    """As in JSON, of which a limit may leave out each."""
    limit = Limit(name="m", quota=10, window_seconds=60)
    for field in FIELDS:
        if field.default is not REQUIRED and field.name != "window_seconds":
            assert Limit.from_json({**PLAIN, field.name: field.default}) == limit
    assert [field.name for field in FIELDS if field.default is REQUIRED] == ["name", "quota"]
    assert limit_fields.NULLABLE == ("window_seconds", "calendar", "anchor", "burst", "rollover")


def test_a_field_with_choices_has_words_for_each():
    """A new choice of the value fails here."""
    for field in FIELDS:
        shape = field.schema.get("oneOf", [field.schema])[0]
        if "enum" in shape:
            named = {*shape["enum"]} - {None} | ({CHARGE_AS} if field.name == "unpriced" else set())
            assert {*(field.choices or ())} == named
        if field.order and field.order != MORE:
            assert {*field.order} == {*(field.choices or ())}


@pytest.mark.parametrize(("name", "condition"), RULES)
def test_the_value_has_the_rule(name, condition):
    """It refuses the field, or the other one of both, if the condition does not hold, and else accepts it."""
    start = {key: value for key, value in PLAIN.items() if key != name}
    good = meeting(BY_NAME[name].only_if, {**start, name: OTHER[name]})
    assert Limit.from_json(good)
    bad = next(value for value in values_of(condition.field) if value not in condition.values)
    broken = meeting((), {**PLAIN, **good, condition.field: bad} if bad is not None else without(good, condition.field))
    if name == "window_seconds":
        broken["window_seconds"] = 60
    assert not BY_NAME[name].may_be_set(broken)

    with pytest.raises(InvalidLimit) as refused:
        Limit.from_json(broken)

    assert refused.value.field in {name, condition.field}


def without(limit: dict[str, Any], name: str) -> dict[str, Any]:
    return {**{key: value for key, value in limit.items() if key != name}, "window_seconds": 60}


def values_of(name: str) -> list[Any]:
    field = BY_NAME[name]
    return [None, *(field.choices or [7, "requests"])] if field.is_nullable else [*(field.choices or ["requests"])]


@pytest.mark.parametrize(
    ("limit", "path", "default", "words"),
    [
        ({"name": "per-minute"}, "name", "", "per-minute"),
        ({"algorithm": "sliding_log"}, "algorithm", "fixed window", "sliding log"),
        ({"quota": 100}, "quota", "10 requests", "100 requests"),
        ({"quota": 1}, "quota", "10 requests", "1 request"),
        ({"quota": 0}, "quota", "10 requests", "0: every request denied"),
        ({"quota": 5_000_000, "unit": "micros"}, "quota", "10 requests", "5.00 USD"),
        ({"window_seconds": 5_400}, "window_seconds", "1 minute", "1 hour 30 minutes"),
        ({"calendar": "lifetime"}, "calendar", "none", "lifetime (never resets)"),
        ({"time_zone": "Europe/Berlin"}, "time_zone", "UTC", "Europe/Berlin"),
        ({"calendar": "day", "anchor": "06:00"}, "anchor", "with the calendar", "at 06:00"),
        ({"calendar": "day"}, "anchor", "with the calendar", "at midnight"),
        ({"calendar": "week"}, "anchor", "with the calendar", "on Monday"),
        ({"calendar": "month", "anchor": "15"}, "anchor", "with the calendar", "on day 15"),
        ({"calendar": "year", "anchor": "03-14"}, "anchor", "with the calendar", "on March 14"),
        ({"calendar": "year"}, "anchor", "with the calendar", "on January 1"),
        ({"burst": 1_050}, "burst", "same as the quota (10)", "1,050 requests"),
        ({"rollover": 500}, "rollover", "nothing", "up to 500 unused requests"),
        ({"rollover": 5_000_000, "unit": "micros"}, "rollover", "nothing", "up to 5.00 USD"),
        ({"unit": "input_tokens"}, "unit", "requests", "input tokens"),
        ({"unit": "micros"}, "unit", "requests", "money (USD)"),
        (
            {"partition_by": ["label.team"]},
            "partition_by",
            "token or project",
            "token or project and team of the token",
        ),
        ({"match": {"methods": ["POST", "PUT"]}}, "match.methods", "any", "POST or PUT"),
        ({"match": {"path": "/v1/*"}}, "match.path", "any", "/v1/*"),
        ({"match": {"attributes": {"model": "a or b"}}}, "match.attributes.model", "anything", '"a or b"'),
        ({"match": {"attributes": {"model": ["a", "b"]}}}, "match.attributes.model", "anything", 'one of "a", "b"'),
        ({"mode": "shadow"}, "mode", "enforced", "shadow (counted, never denied)"),
        (
            {"consistency": "leased"},
            "consistency",
            "exact (one call to the store per request)",
            "leased (permits taken in advance)",
        ),
        (
            {"on_store_failure": "deny"},
            "on_store_failure",
            "each process enforces its share",
            "every request is denied",
        ),
        ({"charge_on": ["2xx", "404"]}, "charge_on", "all, charged at once", "2xx and 404 only"),
        ({"weights": {"cached_input": 100}}, "weights.cached_input", "1", "0.1"),
        ({"unpriced": {"charge_as": "gpt-4o"}}, "unpriced", "request denied", "charged as gpt-4o"),
        ({"unpriced": "count_only"}, "unpriced", "request denied", "allowed and not charged"),
        ({"unmetered": "count_only"}, "unmetered", "denied", "allowed and not counted"),
    ],
)
def test_each_value_has_words(limit, path, default, words):
    """Those of the default, too, because a record leaves it out."""
    names, value = path.split("."), {**PLAIN, **limit}
    for name in names:
        value = value.get(name) if value else value

    assert words_of(names, value, {**PLAIN, **limit}, money) == words
    if default:
        assert words_of(names, PLAIN.get(path), PLAIN, money) == default


def test_words_of_a_record_that_no_longer_parses():
    """An earlier version or another program wrote it."""
    assert words_of(["mode"], "half_way", PLAIN, money) == "half way"
    assert words_of(["speed"], 9, PLAIN, money) == "9"
    assert words_of(["anchor"], "99", {"calendar": "week"}, money) == "99"
    assert label_of(["speed_limit"], PLAIN) == "Speed limit"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("quota", "Quota"),
        ("window_seconds", "Window"),
        ("match.path", "Path"),
        ("match.attributes.model", "Where model is"),
        ("match.attributes.label.tier", "Where tier of the token is"),
        ("weights.cached_input", "Weight of cached input tokens"),
    ],
)
def test_each_path_has_a_label(path, label):
    """A name with dots is one name."""
    assert label_of(path.split(".", 2), PLAIN) == label
    assert label_of(["window_seconds"], {"algorithm": "concurrency"}) == "Slot lifetime"


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({}, "10 requests per minute"),
        ({"quota": 1, "window_seconds": 90}, "1 request per 1 minute 30 seconds"),
        ({"quota": 0, "calendar": "lifetime"}, "No requests in total"),
        ({"quota": 5_000_000, "unit": "micros", "calendar": "month"}, "5.00 USD per calendar month"),
        ({"algorithm": "concurrency", "unit": "input_tokens"}, "10 input tokens at a time"),
    ],
)
def test_the_amount_of_a_limit(limit, words):
    """It is what most people read of a limit."""
    assert amount({**PLAIN, **limit}, money) == words
