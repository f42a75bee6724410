"""The model of a proof, which counts by other means than the algorithms that it checks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement import Limit
from enforcement.model.algorithms import Reference
from enforcement.plan.binding import BoundLimit
from enforcement.proof.model import felt, peak, window_of
from tests.scale import scale

# A charge that is counted into a neighbouring window shows within a few histories of sixty calls.
EXAMPLES = scale(40, 2_000)
SECOND = 1_000_000
START = 1_767_225_600 * SECOND


def algorithms():
    """Return a limit of each algorithm that counts."""
    return [
        Limit(name="rate", quota=10, window_seconds=3_600),
        Limit(name="rate", quota=10, calendar="hour", time_zone="Europe/Berlin"),
        Limit(name="rate", algorithm="sliding_window", quota=10, window_seconds=60),
        Limit(name="rate", algorithm="sliding_log", quota=10, window_seconds=60),
        Limit(name="rate", algorithm="token_bucket", quota=7, window_seconds=60, burst=10),
    ]


def test_a_permit_of_a_leased_log_that_was_handed_out_late_leaves_each_window_its_quota():
    """
    Ten permits are charged at 0, which the store counts for 63 s, and are handed out 2 s later. At 63 s it charges
    another one. No 60 s hold more than ten requests, but 63 s do.
    """
    limit = Limit(name="rate", algorithm="sliding_log", quota=10, window_seconds=60, consistency="leased")
    held_us, late = limit.held_us, limit.held_us - SECOND // 2
    reference, spec = Reference(), BoundLimit(limit, "k", "key").spec(START)

    assert reference.decide(START, [("k", spec, 10)])[0]
    assert not reference.decide(START + 60 * SECOND + held_us - 1, [("k", spec, 1)])[0]
    assert reference.decide(START + 60 * SECOND + held_us, [("k", spec, 1)])[0]
    assert peak(limit, [(START + late, 10), (START + 60 * SECOND + held_us, 1)]) == 10
    assert peak(limit, [(START + late, 10), (START + late + 60 * SECOND - 1, 1)]) == 11


@pytest.mark.proof
@pytest.mark.parametrize("limit", algorithms(), ids=lambda limit: limit.calendar or limit.algorithm)
@settings(max_examples=EXAMPLES, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(0, 40 * SECOND), st.integers(1, 4)), max_size=60))
def test_sums_agree_with_the_algorithms(limit, calls):
    """Counted by other means, no history of the reference exceeds its limit, and what is felt is what it has used."""
    reference, bound, now, charges = Reference(), BoundLimit(limit, "k", "key"), START, []
    for stride, cost in calls:
        now += stride
        if reference.decide(now, [("k", bound.spec(now), cost)])[0]:
            charges.append((now, cost))
    remaining = reference.decide(now, [("k", bound.spec(now), 0)])[2]

    windows = {window_of(limit, at) for at, _ in charges}
    parts = [[charge for charge in charges if window_of(limit, charge[0]) == window] for window in windows]
    assert all(peak(limit, part) <= limit.capacity for part in parts)
    assert felt(limit, charges, now) == limit.capacity - remaining
