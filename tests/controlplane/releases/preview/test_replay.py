"""What a replay says, held against the reference algorithms on the true instants of every request."""

import random
from functools import cache

import numpy as np
import pytest

from controlplane.releases.preview.replay import Case, bins_of, replay
from controlplane.traffic.callers.chunks import Chunk
from enforcement.model.limits import Limit
from tests.controlplane.traffic.callers.traffic import BEGINS, callers, recorded, truly_denied
from tests.scale import scale

HOURS = 3
CALLERS = callers(9, HOURS, seed=7)
DAYS = [recorded(instants) for instants in CALLERS]


def case(limit: Limit, number: int = len(CALLERS)) -> Case:
    return Case(limit, [limit.quota] * number, [limit.capacity] * number)


def replayed(*limits: Limit, first: int = 0, last: int = HOURS):
    """What is denied from the start of the hour *first* to that of the hour *last*."""
    begins, ends = BEGINS + first * 3600, BEGINS + last * 3600
    return replay(DAYS, [case(limit) for limit in limits], begins, ends)[0]


def truth(*limits: Limit, first: int = 0, last: int = HOURS) -> np.ndarray:
    return np.array([sum(of_caller[hour] for hour in range(first, last)) for of_caller in denied_to_all(limits)])


@cache
def denied_to_all(limits: tuple[Limit, ...]) -> list[list[int]]:
    """Return what is denied in each hour, by caller."""
    return [truly_denied(instants, limits) for instants in CALLERS]


EXACT = [
    Limit(quota=10, window_seconds=10),
    Limit(quota=20, window_seconds=60),
    Limit(quota=90, window_seconds=300),
    Limit(quota=400, calendar="hour", time_zone="Asia/Kolkata"),
    Limit(quota=700, calendar="day"),
    Limit(quota=700, calendar="lifetime"),
    Limit(quota=0, window_seconds=60),
]


@pytest.mark.parametrize("limit", EXACT, ids=lambda limit: limit.name)
def test_fixed_windows_of_whole_bins_are_exact(limit):
    """Where in its window a request came makes no difference, so each hour of each caller is right."""
    hours = [{"first": hour, "last": hour + 1} for hour in range(HOURS)]
    outcomes = [replayed(limit, **hour) for hour in hours]

    assert all((one.low == truth(limit, **hour)).all() for one, hour in zip(outcomes, hours, strict=True))
    assert all((one.high == one.low).all() for one in outcomes)
    assert truth(limit).any()


NEAR = [
    (Limit(quota=20, window_seconds=60, algorithm="sliding_window"), 0.02),
    (Limit(quota=20, window_seconds=60, algorithm="sliding_log"), 0.02),
    (Limit(quota=20, window_seconds=60, algorithm="token_bucket"), 0.02),
    (Limit(quota=20, window_seconds=60, algorithm="token_bucket", burst=5), 0.02),
    (Limit(quota=20, window_seconds=15, algorithm="sliding_window"), 0.05),
    (Limit(quota=20, window_seconds=15), 0.05),
    (Limit(quota=200, window_seconds=3600, algorithm="sliding_window"), 0.01),
    (Limit(quota=200, window_seconds=3600, algorithm="sliding_log"), 0.02),
    (Limit(quota=2, window_seconds=1), 0.35),
]


@pytest.mark.parametrize(("limit", "error"), NEAR, ids=lambda one: getattr(one, "algorithm", ""))
def test_other_limits_lie_within_the_stated_range(limit, error):
    """The range holds what is true of each caller, and the likely number is near it in total."""
    outcome, true = replayed(limit), truth(limit)

    assert (outcome.low <= true).all()
    assert (outcome.high >= true).all()
    assert abs(outcome.likely.sum() - true.sum()) <= error * true.sum()
    assert true.any()


def test_limits_are_judged_together():
    """What one limit denies is not charged to the other, as in one atomic decision."""
    limits = Limit(name="minute", quota=20, window_seconds=60), Limit(name="day", quota=300, calendar="day")

    outcome = replayed(*limits)

    assert (outcome.low == truth(*limits)).all()
    assert outcome.low.sum() < sum(replayed(limit).low.sum() for limit in limits)


def test_each_caller_has_its_own_quota():
    """An override is the quota of one caller."""
    limit = Limit(quota=20, window_seconds=60)
    quotas = [*[20] * (len(CALLERS) - 1), 10**6]

    outcome, _ = replay(DAYS, [Case(limit, quotas, quotas)], BEGINS, BEGINS + HOURS * 3600)

    assert outcome.low[-1] == 0
    assert (outcome.low[:-1] == truth(limit)[:-1]).all()


def test_requests_before_the_span_fill_the_counters():
    """A window that is full when the span begins denies its first requests."""
    limit = Limit(quota=700, calendar="day")

    assert (replayed(limit, first=1).low == truth(limit, first=1)).all()


@pytest.mark.parametrize("seconds", [601, 3599])
def test_a_window_that_begins_within_a_bin_has_its_whole_quota(seconds):
    """Also where every caller has used up the window before."""
    limit = Limit(quota=20, window_seconds=seconds)

    outcome, _ = replay(DAYS[-1:], [case(limit, 1)], BEGINS, BEGINS + HOURS * 3600)

    assert outcome.low[0] <= truth(limit)[-1] <= outcome.high[0]
    assert outcome.high.sum() - outcome.low.sum() <= 20


def test_what_is_denied_before_the_span_leaves_room_within_it():
    """Of two limits, the shorter one has denied an unknown number before, so the longer one may have more left."""
    limits = Limit(name="a", quota=5, window_seconds=9), Limit(name="b", quota=400, calendar="day")
    outcome, true = replayed(*limits, first=1), truth(*limits, first=1)

    assert (outcome.low <= true).all()
    assert (outcome.high >= true).all()


def any_limit(rng: random.Random, name: str) -> Limit:
    """A limit of any algorithm, which some of the callers exceed."""
    algorithm = rng.choice(("fixed_window", "sliding_window", "sliding_log", "token_bucket"))
    window = rng.choice((1, 7, 10, 15, 60, 61, 300, 601, 3600))
    quota = max(1, int(window * rng.choice((0.02, 0.05, 0.1, 0.3, 1))))
    burst = {"burst": max(1, quota * rng.choice((1, 2, 10, 15)) // 5)} if algorithm == "token_bucket" else {}
    return Limit(name=name, quota=quota, window_seconds=window, algorithm=algorithm, **burst)


def any_limits(seed: int) -> list[Limit]:
    rng = random.Random(seed)
    return [any_limit(rng, f"limit-{number}") for number in range(rng.choice((1, 2, 2, 3)))]


def bucket(quota: int, window_seconds: int, burst: int) -> Limit:
    return Limit(name=f"of-{quota}", quota=quota, window_seconds=window_seconds, algorithm="token_bucket", burst=burst)


# A pass that takes the bounds bin by bin denies more of these than is true, or less.
TOGETHER = [
    [bucket(60, 601, 24), bucket(72, 3600, 144)],
    [bucket(72, 3600, 216), Limit(name="second", quota=1, window_seconds=1)],
    [bucket(72, 3600, 144), Limit(name="sliding", quota=4, window_seconds=15, algorithm="sliding_window")],
    [Limit(name=str(length), quota=1, window_seconds=length, algorithm="sliding_window") for length in (61, 60)],
    *map(any_limits, range(scale(4, 2_000))),
]


@pytest.mark.proof
def test_the_range_of_any_limits_together_holds_the_truth():
    """What one limit denies leaves room in the others, so that none of them has the least or the most used alone."""
    wrong, begins, ends = [], BEGINS + 2 * 3600, BEGINS + HOURS * 3600
    for limits in TOGETHER:
        true = truth(*limits, first=2)
        for coarse in (False, True):
            # Without steps, no caller is replayed, so that the range is that of the bins alone.
            outcome, _ = replay(DAYS, [case(limit) for limit in limits], begins, ends, steps=0, coarse=coarse)
            if (outcome.low > true).any() or (outcome.high < true).any():
                wrong.append((coarse, limits, outcome.low, true, outcome.high))

    assert wrong == []


def test_a_sliding_window_is_followed_from_long_before_the_span():
    """What it denies in an hour depends on the hour before, and so on all the hours before that."""
    limit = Limit(quota=400, window_seconds=3600, algorithm="sliding_window")
    instants = callers(5, 8, seed=8)[-1]

    outcome, _ = replay([recorded(instants)], [case(limit, 1)], BEGINS + 3 * 3600, BEGINS + 4 * 3600)

    assert outcome.low[0] <= truly_denied(instants, [limit])[3] <= outcome.high[0]


def test_requests_at_an_unknown_second_are_judged_by_the_minute():
    """Without the seconds a minute is one bin, and the range is wider."""
    blurred = [
        [(start, Chunk(c.minutes, c.demand, c.allowed, c.seconds * 0, c.parts * 0)) for start, c in d] for d in DAYS
    ]
    limit = Limit(quota=20, window_seconds=60, algorithm="sliding_log")

    outcome, _ = replay(blurred, [case(limit)], BEGINS, BEGINS + HOURS * 3600)

    assert outcome.step == 60
    assert (outcome.low <= truth(limit)).all()
    assert (outcome.high >= truth(limit)).all()


def test_a_replay_that_would_take_too_long_says_so():
    """The bins still give the range, and the middle of it stands for the likely number."""
    limit = Limit(quota=20, window_seconds=60, algorithm="sliding_log")

    outcome, left = replay(DAYS, [case(limit)], BEGINS, BEGINS + HOURS * 3600, steps=10)

    assert (outcome.is_whole, left) == (False, 0)
    assert (outcome.low <= outcome.likely).all()
    assert (outcome.likely <= outcome.high).all()


def test_bins_hold_every_request():
    """No request of the span is lost or counted twice."""
    assert bins_of(DAYS, BEGINS, BEGINS + HOURS * 3600, 10).sum(axis=0).tolist() == [len(one) for one in CALLERS]
