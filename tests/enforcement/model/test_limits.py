"""The only rules of a valid limit: what is refused, by which field, and that JSON is read back as it was."""

import json
import pickle
import re

import pytest

from enforcement import InvalidLimit, Limit, Match
from enforcement.model.documents import InvalidDocument, Override, parse_policy
from enforcement.model.matching import InvalidMatch
from enforcement.model.metered import Metering
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
    ("text", "algorithm", "quota", "window", "calendar"),
    [
        ("100/minute", "sliding_window", 100, 60, None),
        ("10 per 2 seconds", "sliding_window", 10, 2, None),
        ("1000/day", "sliding_window", 1000, 86_400, None),
        ("5/2 hours", "sliding_window", 5, 7_200, None),
        ("7 per week", "sliding_window", 7, 604_800, None),
        ("5/month", "fixed_window", 5, None, "month"),
        ("5/s", "sliding_window", 5, 1, None),
        ("100/5m", "sliding_window", 100, 300, None),
        ("10/hrs", "sliding_window", 10, 3_600, None),
        ("10/d", "sliding_window", 10, 86_400, None),
        ("10per minute", "sliding_window", 10, 60, None),
        ("1 / Second", "sliding_window", 1, 1, None),
        ("1 per 3 hour", "sliding_window", 1, 10_800, None),
        ("400/10m", "sliding_window", 400, 600, None),
        ("3/sec", "sliding_window", 3, 1, None),
        ("0/m", "sliding_window", 0, 60, None),
    ],
)
def test_the_notation_of_other_libraries_is_understood(text, algorithm, quota, window, calendar):
    """A month is a month of the calendar; everything else slides."""
    limit = Limit.parse(text)
    assert (limit.algorithm, limit.quota, limit.window_seconds, limit.calendar) == (algorithm, quota, window, calendar)


def test_several_limits_may_stand_in_one_text():
    """As limits, slowapi and flask-limiter write them; one part that is none spoils all."""
    assert [limit.name for limit in Limit.parse_many("10/minute; 5 per hour|1/day,7/s")] == [
        "10-per-minute",
        "5-per-hour",
        "1-per-day",
        "7-per-second",
    ]
    with pytest.raises(InvalidLimit, match="got ' '"):
        Limit.parse_many("10/minute; ")


@pytest.mark.parametrize(
    "text",
    ["", "100", "100/fortnight", "-1/minute", "1.5/minute", "10/3 months", "10/ms", "10/ss", "1/s;2/m", None, 5],
)
def test_other_notations_are_refused(text):
    """Never a limit that means something else."""
    with pytest.raises(InvalidLimit):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("100/10", 'For seconds, write "100/10s"'),
        ("100/", 'For seconds, write "100/s"'),
        ("10/2 months", 'Write "10/60 days"'),
        ("10 per 3 month", 'Write "10/90 days"'),
        ("10/2 years", 'Write "10/366 days"'),
        ("10/minute; 5/hour", "Limit.parse_many() reads several"),
    ],
)
def test_a_notation_that_others_read_is_refused_with_what_to_write(text, write):
    """What the sentence says can be read."""
    with pytest.raises(InvalidLimit, match=re.escape(write)):
        Limit.parse(text)
    if '"' in write:
        assert Limit.parse(write.split('"')[1]).quota in (10, 100)


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


POLICY = {"schema": 1, "id": "pol_1", "slug": "p", "name": "P", "version": 1, "limits": []}


def test_a_policy_may_say_how_its_requests_are_metered():
    """The section is read back as it was written. A policy without it has the default rules."""
    rules = Metering("bound", 500, {"image": 1_000}, "drain", 16)
    assert parse_policy(dumps({**POLICY, "metering": rules.to_json()})).metering == rules
    assert parse_policy(dumps({**POLICY, "metering": {}})).metering == Metering()
    assert parse_policy(dumps(POLICY)).metering == Metering()
    assert Metering().to_json() == {}
    assert pickle.loads(pickle.dumps(rules)) == rules


@pytest.mark.parametrize(
    ("metering", "message"),
    [
        (None, "metering metering: Must be an object."),
        ({"estimates": "bound"}, "metering estimates: Unknown field."),
        ({"estimate": "exact"}, "metering estimate: Must be one of typical, bound, got 'exact'."),
        ({"estimate": None}, "metering estimate: Must be one of"),
        ({"default_cap": 0}, "metering default_cap: Must be an integer from 1 to 2147483647, got 0."),
        ({"default_cap": True}, "metering default_cap: Must be an integer"),
        ({"clamp_at_least": 2**31}, "metering clamp_at_least: Must be an integer"),
        ({"part_tokens": []}, "metering part_tokens: Must be an object of integers, got []."),
        ({"part_tokens": {"text": 1}}, "metering part_tokens: Must name only image, audio, video, file, other"),
        ({"part_tokens": {"image": -1}}, "metering part_tokens: image must be an integer from 0 to"),
        ({"on_disconnect": "wait"}, "metering on_disconnect: Must be one of free, drain, got 'wait'."),
    ],
)
def test_a_wrong_section_refuses_the_policy(metering, message):
    """The sentence names the section, the field and the rule."""
    with pytest.raises(InvalidDocument, match=re.escape(message)):
        parse_policy(dumps({**POLICY, "metering": metering}))


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


@pytest.mark.parametrize(
    ("match", "attributes", "expected"),
    [
        (Match(), {}, True),
        (Match(methods=("GET", "HEAD")), {"method": "HEAD"}, True),
        (Match(methods=("GET",)), {"method": "POST"}, False),
        (Match(methods=("GET",)), {}, False),
        (Match(path="/v1/*"), {"path": "/v1/chat/completions"}, True),
        (Match(path="/v1/*"), {"path": "/v2/chat"}, False),
        (Match(attributes={"model": ("a", "b")}), {"model": "b"}, True),
        (Match(attributes={"model": ("a*",)}), {"model": "ab"}, False),
        (Match(attributes={"model": "gpt-*"}), {"model": "gpt-5"}, True),
        (Match(attributes={"model": "gpt"}), {"model": "gpt-5"}, False),
    ],
)
def test_a_match_is_exact_a_list_or_a_glob(match, attributes, expected):
    """A request that lacks what a rule names does not match."""
    test = match.compile()
    assert (test is None or test(attributes)) is expected


@pytest.mark.parametrize("path", ["/", "/v1/*", "*/chat", "?v1", "[/]v1", ""])
def test_a_path_begins_with_a_slash_or_a_wildcard(path):
    """Each of these may match the path of a request."""
    assert Match(path=path).path == path


def test_a_path_that_matches_no_request_is_refused():
    """The error names the field, as JSON does, the rule and the value."""
    rule = "Must begin with / or a wildcard, because every path of a request begins with /, got 'v1/*'."
    data = {"name": "x", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60, "match": {"path": "v1/*"}}

    with pytest.raises(InvalidMatch, match=re.escape(rule)):
        Match(path="v1/*")
    with pytest.raises(InvalidLimit) as caught:
        Limit.from_json(data)
    assert (caught.value.field, caught.value.reason) == ("match.path", rule)


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "Factory", "right/Europe/Berlin"])
def test_a_time_zone_of_the_host_is_refused(zone):
    """A fleet would disagree on its windows. Not every host has all of them, and each is refused everywhere."""
    data = {"name": "x", "algorithm": "fixed_window", "quota": 5, "calendar": "day", "time_zone": zone}

    with pytest.raises(InvalidLimit) as caught:
        Limit.from_json(data)
    assert caught.value.field == "time_zone"
    assert caught.value.reason.startswith("Must be the IANA name of a time zone, like Europe/Berlin")


def test_a_published_document_keeps_a_time_zone_of_the_host():
    """0.2.0 accepted it, also with an override."""
    limit = {"name": "x", "algorithm": "fixed_window", "quota": 5, "calendar": "day", "time_zone": "Factory"}
    text = dumps({"schema": 1, "id": "pol_1", "slug": "free", "name": "Free", "version": 1, "limits": [limit]})

    (read,) = parse_policy(text).limits

    assert read.to_json() == limit
    assert pickle.loads(pickle.dumps(read)) == read
    assert Override("ovr_1", "pol_1", "x", 9).apply(read).quota == 9


def test_a_published_document_keeps_a_path_that_matches_nothing():
    """0.2.0 accepted it. The other limits of its policy must go on."""
    limit = {"name": "x", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60, "match": {"path": "v1/*"}}
    text = dumps({"schema": 1, "id": "pol_1", "slug": "free", "name": "Free", "version": 1, "limits": [limit]})

    (read,) = parse_policy(text).limits

    assert read.to_json() == limit
    assert pickle.loads(pickle.dumps(read)) == read
