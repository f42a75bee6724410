"""Permits of a sliding window that are used later than they were charged never make more than the limit admits."""

import math
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement.model.algorithms import Reference
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit

SECOND = 1_000_000
WINDOW = 10 * SECOND
START_US = 1_767_225_600 * SECOND
steps = st.lists(
    st.tuples(
        st.sampled_from(["lease", "lease", "use", "use", "return"]),
        st.integers(1, 12),
        st.one_of(st.integers(0, 3 * SECOND), st.sampled_from([0, SECOND, WINDOW, WINDOW - 1])),
    ),
    max_size=40,
)


def felt(used, now):
    """Return what counts of the permits that were used, by the equation of the documentation."""
    start = now - now % WINDOW
    current = sum(permits for at, permits in used if at >= start)
    previous = sum(permits for at, permits in used if start - WINDOW <= at < start)
    return current + max(0, math.ceil(Fraction(previous * (start + WINDOW - now), WINDOW)) - 1)


@given(quota=st.sampled_from([1, 2, 3, 10, 100]), steps=steps)
@settings(max_examples=200, deadline=None)
def test_permits_of_a_lease_are_within_the_limit_when_they_are_used(quota, steps):
    """Leased at one instant, used at later ones of the same window, and given back at any time after that."""
    limit = Limit(name="x", algorithm="sliding_window", quota=quota, window_seconds=10, consistency="leased")
    store, spec, now = Reference(), BoundLimit(limit, "k", "key").spec(START_US), START_US
    held, unused, used = 0, [], []
    mark = now - now % WINDOW
    for action, permits, pause in steps:
        now += pause
        if now - now % WINDOW != mark:  # a lease ends with its window
            unused.append((held, mark))
            held, mark = 0, now - now % WINDOW
        if action == "lease":
            held += permits * store.decide(now, [("k", spec, permits)])[0]
        elif action == "use" and held:
            taken = min(held, permits)
            held -= taken
            used.append((now, taken))
            assert felt(used, now) <= quota
        elif action == "return" and unused:
            left, of_window = unused.pop()
            store.amend(now, "k", spec, -left, of_window)
