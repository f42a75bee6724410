"""Refusals are counted by field, with a bounded number of names, for seven days."""

from enforcement.metering.refusals import DAYS, MAX_FIELDS, OTHER, SAMPLE, FieldRefusals

DAY_US = 86_400_000_000


def test_refusals_are_counted_by_field_and_the_most_frequent_comes_first():
    counted = FieldRefusals()
    for field in ("turbo", "speed=fast", "turbo"):
        counted.refused(field, 0)

    assert counted.total == {"turbo": 2, "speed=fast": 1}
    assert counted.recent(0) == {"refused": [("turbo", 2), ("speed=fast", 1)]}


def test_only_so_many_names_are_told_apart():
    """Clients choose them, so they may be long and hold anything."""
    counted = FieldRefusals()
    for i in range(MAX_FIELDS + 50):
        counted.refused(f"f{i}", 0)
    assert len(counted.total) == MAX_FIELDS + 1
    assert counted.total[OTHER] == 50

    named = FieldRefusals()
    named.refused("a\n" * 1_000, 0)
    assert [*named.total] == ["a?" * 50]


def test_after_seven_days_a_refusal_is_forgotten():
    counted = FieldRefusals()
    counted.refused("turbo", 0)
    assert counted.recent((DAYS - 1) * DAY_US)
    assert counted.recent(DAYS * DAY_US) == {}
    assert counted.total == {"turbo": 1}


def test_a_sample_of_the_requests_under_typical_estimates_is_looked_at():
    """The first ones of a day, then one of so many, which stands for all of them."""
    counted = FieldRefusals()
    looked = 0
    for _ in range(SAMPLE * 10):
        if counted.is_next(0):
            looked += 1
            counted.would_refuse("turbo", 0)

    assert looked == SAMPLE + 9
    assert counted.recent(0) == {"would_refuse": [("turbo", SAMPLE * 10)]}
