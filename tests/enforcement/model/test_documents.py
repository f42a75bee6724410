"""What a published document may say of a policy and its limits."""

import pickle
import re

import pytest

from enforcement.model.documents import InvalidDocument, OverrideDocument, parse_policy
from enforcement.model.metered import Metering
from enforcement.model.strict_json import dumps

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
    ("written", "drains", "kept"),
    [
        ({}, False, {}),
        ({"on_disconnect": "free"}, False, {}),
        ({"on_disconnect": "drain"}, True, {"on_disconnect": "drain"}),
        ({"estimate": "bound"}, True, {"estimate": "bound", "on_disconnect": "drain"}),
        ({"estimate": "bound", "on_disconnect": "drain"}, True, {"estimate": "bound", "on_disconnect": "drain"}),
        ({"estimate": "bound", "on_disconnect": "free"}, False, {"estimate": "bound", "on_disconnect": "free"}),
        ({"estimate": "typical", "lost_after": 3_600}, False, {}),
        ({"lost_after": 0}, False, {"lost_after": 0}),
    ],
)
def test_a_bound_implies_reading_on(written, drains, kept):
    """An explicit free is kept. With a bound the rule is written, as other releases have another default."""
    rules = Metering.from_json(written)
    assert ((rules.on_disconnect == "drain"), rules.to_json()) == (drains, kept)
    assert Metering.from_json(rules.to_json()) == rules


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
        ({"on_disconnect": ""}, "metering on_disconnect: Must be one of free, drain, got ''."),
        ({"on_disconnect": None}, "metering on_disconnect: Must be one of free, drain, got None."),
        ({"lost_after": -1}, "metering lost_after: Must be an integer from 0 to 604800, got -1."),
        ({"lost_after": 604_801}, "metering lost_after: Must be an integer from 0 to 604800, got 604801."),
        ({"lost_after": None}, "metering lost_after: Must be an integer from 0 to 604800, got None."),
    ],
)
def test_a_wrong_section_refuses_the_policy(metering, message):
    """The sentence names the section, the field and the rule."""
    with pytest.raises(InvalidDocument, match=re.escape(message)):
        parse_policy(dumps({**POLICY, "metering": metering}))


def test_a_published_document_keeps_a_time_zone_of_the_host():
    """0.2.0 accepted it, also with an override."""
    limit = {"name": "x", "algorithm": "fixed_window", "quota": 5, "calendar": "day", "time_zone": "Factory"}
    text = dumps({"schema": 1, "id": "pol_1", "slug": "free", "name": "Free", "version": 1, "limits": [limit]})

    (read,) = parse_policy(text).limits

    assert read.to_json() == limit
    assert pickle.loads(pickle.dumps(read)) == read
    assert OverrideDocument("ovr_1", "pol_1", "x", 9).apply(read).quota == 9


def test_a_published_document_keeps_a_path_that_matches_nothing():
    """0.2.0 accepted it. The other limits of its policy must go on."""
    limit = {"name": "x", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60, "match": {"path": "v1/*"}}
    text = dumps({"schema": 1, "id": "pol_1", "slug": "free", "name": "Free", "version": 1, "limits": [limit]})

    (read,) = parse_policy(text).limits

    assert read.to_json() == limit
    assert pickle.loads(pickle.dumps(read)) == read
