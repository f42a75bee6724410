"""What a comparison says of known measurements."""

import pytest

from benchmarks.compare.ratios import Interval, bootstrap, counted, paired
from benchmarks.compare.table import modules, table


def test_a_constant_ratio_has_an_interval_without_width() -> None:
    """Where every pair says the same there is no doubt."""
    assert bootstrap([1.05] * 31) == Interval(1.05, 1.05, 1.05)


def test_the_interval_of_known_ratios() -> None:
    """The median of 1.00 to 1.30 is 1.15; its 95 % interval is that of order statistics 10 to 22."""
    found = bootstrap([1 + i / 100 for i in range(31)])

    assert found.ratio == pytest.approx(1.15)
    assert found.low == pytest.approx(1.10, abs=0.011)
    assert found.high == pytest.approx(1.20, abs=0.011)


def test_the_same_ratios_give_the_same_interval() -> None:
    """The draws are seeded."""
    ratios = [0.9, 1.0, 1.1, 1.3, 0.8, 1.2, 1.0]

    assert bootstrap(ratios) == bootstrap(ratios)


def test_one_outlier_changes_nothing() -> None:
    """A block during which another process had the core does not count."""
    assert bootstrap([1.0] * 30 + [9.0]) == Interval(1.0, 1.0, 1.0)


def test_what_varies_together_is_drawn_together() -> None:
    """Many pairs of a few workers are no more than a few observations."""
    ratios = [0.95] * 60 + [1.05] * 150

    apart, together = bootstrap(ratios), bootstrap(ratios, together=30)

    assert (apart.low, apart.high) == (1.05, 1.05)
    assert (together.low, together.high) == (0.95, 1.05)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0300001, 1.2, "worse"),
        (1.03, 1.2, ""),
        (0.9, 1.2, ""),
        (0.8, 0.97, ""),
        (0.8, 0.9699999, "better"),
    ],
)
def test_only_a_whole_interval_beyond_the_bound_is_a_verdict(low: float, high: float, verdict: str) -> None:
    """An interval that touches 1.03 or 0.97 shows no change."""
    assert Interval(1.0, low, high).verdict == verdict


def test_ratios_are_taken_pair_by_pair() -> None:
    """A machine that slows down to a half in the middle of a run does not change a ratio."""
    row = paired("check", "us", [10.0, 10.0, 20.0, 20.0], [11.0, 11.0, 22.0, 22.0])

    assert row.interval == Interval(1.1, 1.1, 1.1)


def test_the_table_names_units_interval_and_verdict() -> None:
    """A row says what was measured, how sure that is, and what follows."""
    rows = [paired("check", "us", [10.0] * 3, [11.0] * 3), counted("counter", "bytes", 100, 90)]

    assert [line.split() for line in table(rows).splitlines()[1:]] == [
        ["check", "10.00", "us", "11.00", "us", "1.100", "1.100", "-", "1.100", "worse"],
        ["counter", "100.0", "bytes", "90.00", "bytes", "0.900", "exact", "better"],
    ]


def test_modules_that_came_and_went_are_listed() -> None:
    """An import that loads more than before shows what."""
    said = modules({"enforcement": {"old": ["a", "b"], "new": ["b", "c", "d"]}})

    assert said.splitlines() == ["import enforcement loads 2 modules in OLD and 3 in NEW.", "  + c", "  + d", "  - a"]
