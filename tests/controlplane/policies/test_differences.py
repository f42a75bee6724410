"""The fields in which two records of an object differ."""

from controlplane.policies.differences import differences


def test_differences_are_told_field_by_field():
    """A limit is found by its name, wherever it stands in the list."""
    before = {"name": "A", "version": 1, "limits": [{"name": "m", "quota": 1}, {"name": "d", "quota": 2}]}
    after = {"name": "A", "version": 2, "limits": [{"name": "d", "quota": 3}, {"name": "m", "quota": 1}]}

    assert differences(before, after) == [("limits.d.quota", "2", "3")]


def test_what_is_new_was_nothing_before():
    """A creation is told as the values it brought, without those it left empty."""
    assert differences(None, {"active": True, "policy": None}) == [("active", "—", "yes")]
