"""The fields in which two records of an object differ."""

import pytest

from controlplane.changes.words.differences import differences


def told(kind, before, after):
    return [(one.name, one.before, one.after) for one in differences(kind, before, after)]


def with_limits(*limits, **fields):
    return {"name": "A", "limits": list(limits), **fields}


M, D = {"name": "m", "quota": 1, "algorithm": "fixed_window"}, {"name": "d", "quota": 2, "algorithm": "fixed_window"}


def test_differences_are_told_field_by_field():
    """A limit is found by its name, wherever it stands in the list. The order is a field of the policy."""
    before, after = with_limits(M, D, version=1), with_limits({**D, "quota": 3}, M, version=2)

    assert told("policy", before, after) == [("limits.d.quota", 2, 3), ("limits", ["m", "d"], ["d", "m"])]
    assert told("policy", before, {**before, "version": 2}) == []


def test_what_is_new_was_nothing_before():
    """A creation is told as the values it brought, without those it left empty, as is the first limit of a policy."""
    assert told("project", None, {"active": False, "policy": None}) == [("active", None, False)]
    assert told("policy", with_limits(), with_limits(M)) == [
        ("limits.m.name", None, "m"),
        ("limits.m.quota", None, 1),
        ("limits.m.algorithm", None, "fixed_window"),
    ]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("on_store_failure", "deny", ("on_store_failure", "local", "deny")),
        ("unpriced", {"charge_as": "m"}, ("unpriced", "deny", {"charge_as": "m"})),
        ("match", {"attributes": {"label.tier": "a"}}, ("match.attributes.label.tier", None, "a")),
        ("weights", {"input": 100}, ("weights.input", None, 100)),
    ],
)
def test_defaults_are_filled_in(field, value, expected):
    """A record leaves them out, and what somebody changes is not nothing. A name may have dots."""
    name, before, after = expected

    assert told("policy", with_limits(M), with_limits({**M, field: value})) == [(f"limits.m.{name}", before, after)]


def test_rules_for_metered_requests_have_defaults_too():
    """What is refused by enforcers counts as the defaults, which they have then."""
    assert told("policy", with_limits(), with_limits(metering={"estimate": "bound"})) == [
        ("metering.estimate", "typical", "bound"),
        ("metering.on_disconnect", "free", "drain"),
    ]
    assert told("policy", with_limits(metering={"estimate": "?"}), with_limits()) == []
