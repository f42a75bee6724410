"""The only rules of a valid limit: what is refused, by which field, and that JSON is read back as it was."""

import json
import pickle

import pytest

from enforcement import InvalidLimit, Limit, Match
from enforcement.model.strict_json import dumps


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"quota": -1}, "quota"),
        ({"quota": True}, "quota"),
        ({"quota": 1.5}, "quota"),
        ({"quota": "5"}, "quota"),
        ({"quota": 2**53}, "quota"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"window_seconds": 40_000_000}, "window_seconds"),
        ({"window_seconds": None}, "window_seconds"),
        ({"calendar": "month"}, "window_seconds"),
        ({"calendar": "fortnight", "window_seconds": None}, "calendar"),
        ({"calendar": "month", "window_seconds": None, "anchor": 32}, "anchor"),
        ({"calendar": "day", "window_seconds": None, "anchor": "25:00"}, "anchor"),
        ({"calendar": "month", "window_seconds": None, "time_zone": "Mars/Olympus"}, "time_zone"),
        ({"calendar": "month", "window_seconds": None, "algorithm": "token_bucket"}, "calendar"),
        ({"time_zone": "Europe/Berlin"}, "time_zone"),
        ({"anchor": 3}, "anchor"),
        ({"burst": 5}, "burst"),
        ({"algorithm": "token_bucket", "burst": 0}, "burst"),
        ({"algorithm": "leaky"}, "algorithm"),
        ({"name": 'say "no"'}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"unit": "Requests"}, "unit"),
        ({"mode": "off"}, "mode"),
        ({"consistency": "eventual"}, "consistency"),
        ({"algorithm": "concurrency", "consistency": "leased"}, "consistency"),
        ({"on_store_failure": "open"}, "on_store_failure"),
        ({"partition_by": ("a", "a")}, "partition_by"),
        ({"partition_by": "ip"}, "partition_by"),
        ({"charge_on": ("6xx",)}, "charge_on"),
        ({"weights": {"input": 5}}, "weights"),
        ({"unit": "micros", "weights": {"input": 5}}, "weights"),
        ({"unit": "tokens", "weights": {"calls": 5}}, "weights"),
        ({"unit": "input_tokens", "weights": {"output": 5}}, "weights"),
        ({"unit": "tokens", "weights": {"input": -1}}, "weights"),
        ({"unit": "tokens", "weights": {"input": True}}, "weights"),
        ({"unit": "tokens", "weights": {"input": 0.5}}, "weights"),
        ({"unit": "tokens", "weights": {"input": 1_000_001}}, "weights"),
        ({"unit": "tokens", "weights": ["input"]}, "weights"),
        ({"unit": "tokens", "weights": None}, "weights"),
        ({"unpriced": "count_only"}, "unpriced"),
        ({"unit": "tokens", "unpriced": {"charge_as": "m"}}, "unpriced"),
        ({"unit": "micros", "unpriced": "allow"}, "unpriced"),
        ({"unit": "micros", "unpriced": None}, "unpriced"),
        ({"unit": "micros", "unpriced": {}}, "unpriced"),
        ({"unit": "micros", "unpriced": {"charge_as": ""}}, "unpriced"),
        ({"unit": "micros", "unpriced": {"charge_as": "m" * 257}}, "unpriced"),
        ({"unit": "micros", "unpriced": {"charge_as": "m", "at": 1}}, "unpriced"),
        ({"unmetered": "count_only"}, "unmetered"),
        ({"unit": "tokens", "unmetered": "allow"}, "unmetered"),
        ({"unit": "tokens", "unmetered": None}, "unmetered"),
    ],
)
def test_what_no_enforcer_could_enforce_is_refused_by_its_field(keywords, field):
    """The error names the field and the rule."""
    with pytest.raises(InvalidLimit) as caught:
        Limit(**{"name": "rpm", "quota": 5, "window_seconds": 60, **keywords})
    assert caught.value.field == field
    assert caught.value.reason


@pytest.mark.parametrize(
    "limit",
    [
        Limit(name="plain", quota=5, window_seconds=60),
        Limit(name="month", quota=5, calendar="month", time_zone="Europe/Zurich", anchor=15),
        Limit(name="bucket", algorithm="token_bucket", quota=5, window_seconds=60, burst=9, unit="tokens"),
        Limit(
            name="all",
            quota=5,
            window_seconds=60,
            partition_by=("ip", "model"),
            match=Match(("POST",), "/v1/*", {"model": ("a", "b"), "team": "x*"}),
            mode="shadow",
            consistency="leased",
            on_store_failure="deny",
            charge_on=("2xx", "404"),
        ),
        Limit(name="weighed", quota=5, window_seconds=60, unit="tokens", weights={"input": 0}, unmetered="count_only"),
        Limit(name="free", quota=5, window_seconds=60, unit="micros", unpriced="count_only"),
        Limit(name="as", quota=5, window_seconds=60, unit="micros", unpriced={"charge_as": "gpt-4o"}),
    ],
    ids=lambda limit: limit.name,
)
def test_json_is_read_back_as_it_was(limit):
    """Nothing is lost and nothing is added, neither by JSON nor between processes."""
    assert Limit.from_json(json.loads(dumps(limit.to_json()))) == limit
    assert pickle.loads(pickle.dumps(limit)) == limit
    assert len({limit, Limit.from_json(limit.to_json())}) == 1


def test_rules_for_metered_requests_are_written_only_where_they_are_set():
    """Earlier enforcers refuse a document with a field that they do not know."""
    for unit in ("requests", "tokens", "micros"):
        plain = Limit(name="plain", quota=5, window_seconds=60, unit=unit, weights={}, unpriced="deny")
        assert plain.to_json().keys() <= {"name", "algorithm", "quota", "window_seconds", "unit"}


def test_a_limit_keeps_its_weights_when_the_callers_change():
    """The value is frozen, down to its mappings."""
    weights = {"input": 5}
    limit = Limit(name="tokens", quota=5, window_seconds=60, unit="tokens", weights=weights)
    weights["input"] = 9
    assert limit.weights == {"input": 5}
    with pytest.raises(TypeError):
        limit.weights["input"] = 9


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"quota": 5, "window_seconds": 60}, "name"),
        ({"name": "x", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60, "windw": 1}, "windw"),
        (
            {"name": "x", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60, "match": {"host": "x"}},
            "match.match",
        ),
        ([], "limit"),
    ],
)
def test_json_that_says_something_else_is_refused(data, field):
    """A missing or an unknown field is an error that names it."""
    with pytest.raises(InvalidLimit) as caught:
        Limit.from_json(data)
    assert caught.value.field == field


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "Factory", "right/Europe/Berlin"])
def test_a_time_zone_of_the_host_is_refused(zone):
    """A fleet would disagree on its windows. Not every host has all of them, and each is refused everywhere."""
    data = {"name": "x", "algorithm": "fixed_window", "quota": 5, "calendar": "day", "time_zone": zone}

    with pytest.raises(InvalidLimit) as caught:
        Limit.from_json(data)
    assert caught.value.field == "time_zone"
    assert caught.value.reason.startswith("Must be the IANA name of a time zone, like Europe/Berlin")
