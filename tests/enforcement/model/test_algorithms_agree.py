"""
The store's functions and the reference are two writings of one arithmetic; a state machine drives both.

Hypothesis makes a failure short. ``test_algorithms_walk.py`` makes many more calls in the same time.
"""

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from enforcement.model.algorithms import Reference
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import DECIDE, SETTLE
from enforcement.store.resp import numbers
from tests.enforcement.model.agreement import (
    ALGORITHMS,
    BURSTS,
    COSTS,
    HOURS,
    KEEPING,
    MOST_ADDED,
    QUOTAS,
    ROLLOVERS,
    SECOND,
    START_US,
    STRIDES,
    WINDOWS,
    Pair,
    agrees,
    client,  # noqa: F401 (a fixture)
)
from tests.scale import scale

# A rule that one side lacks shows within the first dozen of examples, and in the walks, which make more calls.
STEPS, EXAMPLES = 100, scale(15, 600)
# How many steps an example has is Hypothesis' choice, so they are counted: at least so many for each algorithm.
AT_LEAST = scale(150, 10_000)


def any_of(ranges):
    """Return a strategy that draws from each of these ranges and lists."""
    return st.one_of(*(st.integers(*it) if isinstance(it, tuple) else st.sampled_from(it) for it in ranges))


quotas, costs, strides = map(any_of, (QUOTAS, COSTS, STRIDES))
rollovers, many_hours = map(any_of, (ROLLOVERS, HOURS))
windows = st.sampled_from(WINDOWS)


class Agreement(RuleBasedStateMachine):
    """One counter here and there; every call must have the same reply."""

    client: ClassVar = None
    algorithm: ClassVar[str] = ""
    steps: ClassVar[int] = 0

    @initialize(quota=quotas, window=windows, burst=st.one_of(st.none(), st.integers(*BURSTS)))
    def begin(self, quota, window, burst):
        self.pair = Pair(self.algorithm, quota, window, burst)

    @classmethod
    def count(cls):
        cls.steps += 1

    def ask(self, call):
        if call is not None:
            assert agrees(call, self.client.execute_command(*call[0], NEVER_DECODE=True))

    @rule(stride=strides)
    def pass_time(self, stride):
        self.count()
        self.pair.now += stride

    @rule(quota=quotas)
    def change_quota(self, quota):
        self.count()
        self.pair.change(quota=quota)

    @precondition(lambda self: self.algorithm == "rollover")
    @rule(rollover=rollovers)
    def change_rollover(self, rollover):
        """A rollover of 0 stands for none, with which the counter is that of a plain window."""
        self.count()
        self.pair.change(rollover=rollover)

    @precondition(lambda self: self.algorithm == "rollover")
    @rule(hours=many_hours)
    def pass_windows(self, hours):
        self.count()
        self.pair.now += hours * 3_600 * SECOND

    @precondition(lambda self: self.algorithm in KEEPING)
    @rule(window=windows)
    def change_window(self, window):
        self.count()
        self.pair.change(window=window)

    @rule()
    def forget(self):
        self.count()
        self.ask(self.pair.forget())

    @rule(cost=costs, charge=st.booleans())
    def decide(self, cost, charge):
        self.count()
        self.ask(self.pair.decide(cost, charge=charge))

    @rule(data=st.data())
    def amend(self, data):
        charged = self.pair.charged
        if not charged:
            return
        self.count()
        mark, cost, ident = charged.pop(data.draw(st.integers(0, len(charged) - 1)))
        delta, elsewhere = data.draw(st.integers(-cost, MOST_ADDED)), data.draw(st.booleans())
        self.ask(self.pair.amend(mark, cost, ident, delta, elsewhere=elsewhere))


@pytest.mark.proof
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_store_and_the_reference_answer_alike(client, algorithm):  # noqa: F811
    """Same decision, remaining, reset, wait and mark for any sequence of calls, changes, refunds and clocks."""
    machine = type(algorithm, (Agreement,), {"client": client, "algorithm": algorithm})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    profile = settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=checks, derandomize=True
    )
    run_state_machine_as_test(machine, settings=profile)
    assert machine.steps >= AT_LEAST, machine.steps


def test_a_release_keeps_slots_that_have_ended_for_a_clock_that_goes_back(client):  # noqa: F811
    """The release of a slot of other numbers removes no ended one. If the clock goes back, both hold it again."""
    key, reference = "agree:ended", Reference()

    def spec(window):
        limit = Limit(name="x", algorithm="concurrency", quota=1, window_seconds=window)
        return BoundLimit(limit, key, "key").spec(START_US)

    def decide(now, spec, *, charge):
        call = ("FCALL", DECIDE, 1, key, now, int(charge), "i0", spec.text, 1)
        theirs = list(numbers(client.execute_command(*call, NEVER_DECODE=True)))
        assert theirs == reference.decide(now, [(key, spec, 1)], charge=charge, ident="i0")
        return theirs[0] == 1

    assert decide(START_US, spec(1), charge=True)
    ended = START_US + SECOND
    assert client.fcall(SETTLE, 2, f"{key}:m", key, ended, "", "i0", spec(2).text, -1, 0) == 1
    assert reference.amend(ended, key, spec(2), -1, 0, "i0")

    assert not decide(ended - 1, spec(2), charge=False)
    assert decide(ended, spec(2), charge=False)
