"""A name that nobody knows is compared with those that are known."""

from enforcement.model.spelling import closest


def test_the_closest_name_comes_first():
    """One is enough for a hint, unless more are asked for, and nothing is better than a wild guess."""
    known = ("quota", "quotas", "burst")

    assert closest("qouta", known) == ["quota"]
    assert closest("qouta", known, most=2) == ["quota", "quotas"]
    assert closest("qouta", known, similar=0.95) == []
    assert closest("zzz", known) == []
