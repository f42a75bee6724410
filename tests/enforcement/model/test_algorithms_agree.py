"""The store's functions and the reference are two writings of one arithmetic; a state machine drives both."""

import itertools
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from enforcement.embedded import ValkeyServer
from enforcement.model.algorithms import Reference, Spec
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import DECIDE, RESET, SETTLE
from enforcement.store.client import connect, load_library
from enforcement.store.resp import numbers
from tests.scale import scale

# A rule that one side lacks shows within the first dozens of examples. A bucket whose level is rounded down where its
# quota changes showed after 200, so that fewer than 300 are too few.
STEPS, EXAMPLES = 100, scale(300, 6_000)
# How many steps an example has is Hypothesis' choice, so they are counted: at least so many for each algorithm.
AT_LEAST = scale(5_000, 100_000)
START_US = 1_767_225_600_000_000
CALENDAR = {"calendar": "hour", "time_zone": "Australia/Lord_Howe"}
CALENDARS = {"calendar": CALENDAR, "rollover": CALENDAR}
SET_BACK_US = 1_775_314_200_000_000  # ten minutes before the clocks of Lord Howe are set back, by half an hour
KEEPING = ("sliding_log", "token_bucket", "concurrency")  # what they hold outlives a change of their window
SECOND = 1_000_000
names = itertools.count()

quotas = st.one_of(st.integers(0, 12), st.sampled_from([100, 1_000, 2_000, 999_983, 10**6]))
windows = st.sampled_from([1, 2, 7, 10, 60, 3_600])
costs = st.one_of(st.integers(0, 4), st.integers(0, 1_500), st.sampled_from([10**6, 999_999]))
strides = st.one_of(
    st.integers(0, 3),
    st.integers(-2 * SECOND, 20 * SECOND),
    st.sampled_from([SECOND, SECOND - 1, 30 * SECOND, 60 * SECOND, 60 * SECOND + 1, 7_200 * SECOND]),
    st.sampled_from([-SECOND - 1, -61 * SECOND, -600 * SECOND, -7_200 * SECOND]),
)


@pytest.fixture(scope="module")
def client():
    """Give a store that has the function library."""
    with ValkeyServer(persistent=False) as server:
        client = connect(server.url)
        load_library(client)
        yield client


class Agreement(RuleBasedStateMachine):
    """One counter here and there; every call must have the same reply."""

    client: ClassVar = None
    algorithm: ClassVar[str] = ""
    steps: ClassVar[int] = 0

    @initialize(quota=quotas, window=windows, burst=st.one_of(st.none(), st.integers(1, 50)))
    def begin(self, quota, window, burst):
        self.key = f"agree:{next(names)}"
        self.now = SET_BACK_US if self.algorithm in CALENDARS else START_US
        self.reference = Reference()
        self.charged = []
        self.idents = itertools.count()
        self.burst = burst if self.algorithm == "token_bucket" else None
        self.rollover = 5
        self.spec = self.compile(quota, window)

    @classmethod
    def count(cls):
        cls.steps += 1

    def compile(self, quota, window, rollover=None) -> Spec:
        self.quota, self.window = quota, window
        if rollover is not None:
            self.rollover = rollover
        calendar = CALENDARS.get(self.algorithm, {})
        if self.algorithm == "rollover" and self.rollover:
            calendar = {**calendar, "rollover": self.rollover}
        algorithm = "fixed_window" if calendar else self.algorithm
        shape = calendar or {"window_seconds": window}
        limit = Limit(name="x", algorithm=algorithm, quota=quota, burst=self.burst, **shape)
        return BoundLimit(limit, self.key, "key").spec(self.now)

    @rule(stride=strides)
    def pass_time(self, stride):
        self.count()
        self.now += stride

    @rule(quota=quotas)
    def change_quota(self, quota):
        self.count()
        self.spec = self.compile(quota, self.window)

    @precondition(lambda self: self.algorithm == "rollover")
    @rule(rollover=st.one_of(st.integers(0, 30), st.sampled_from([10_000, 2**53 - 1])))
    def change_rollover(self, rollover):
        """A rollover of 0 stands for none, with which the counter is that of a plain window."""
        self.count()
        self.spec = self.compile(self.quota, self.window, rollover)

    @precondition(lambda self: self.algorithm == "rollover")
    @rule(hours=st.integers(1, 400))
    def pass_windows(self, hours):
        self.count()
        self.now += hours * 3_600 * SECOND

    @precondition(lambda self: self.algorithm in KEEPING)
    @rule(window=windows)
    def change_window(self, window):
        self.count()
        self.spec = self.compile(self.quota, window)

    @rule()
    def forget(self):
        self.count()
        self.client.fcall(RESET, 1, self.key)
        self.reference.forget([self.key])

    @rule(cost=costs, charge=st.booleans())
    def decide(self, cost, charge):
        self.count()
        if self.algorithm == "concurrency":
            cost = min(cost, 20)
        if self.algorithm in CALENDARS:
            self.spec = self.compile(self.quota, self.window)
        ident = f"i{next(self.idents)}"
        arguments = [self.spec.text, cost]
        call = ("FCALL", DECIDE, 1, self.key, self.now, int(charge), ident, *arguments)
        theirs = list(numbers(self.client.execute_command(*call, NEVER_DECODE=True)))
        ours = self.reference.decide(self.now, [(self.key, self.spec, cost)], charge=charge, ident=ident)
        assert theirs == ours
        if charge and ours[0] == 1 and cost:
            self.charged.append((ours[6], cost, ident))

    @rule(data=st.data())
    def amend(self, data):
        if not self.charged:
            return
        self.count()
        mark, cost, ident = self.charged.pop(data.draw(st.integers(0, len(self.charged) - 1)))
        if self.algorithm in CALENDARS:
            self.spec = self.compile(self.quota, self.window)
        delta = data.draw(st.integers(-cost, 50))
        if self.algorithm == "concurrency":
            # All are given back, or as many are taken that were given elsewhere.
            delta, ident = data.draw(st.sampled_from([(-cost, ident), (cost, f"e{next(self.idents)}")]))
        if delta == 0:
            return
        arguments = [self.spec.text, delta, mark]
        theirs = self.client.fcall(SETTLE, 2, f"{self.key}:m", self.key, self.now, "", ident, *arguments)
        assert bool(theirs) == self.reference.amend(self.now, self.key, self.spec, delta, mark, ident)


ALGORITHMS = ["fixed_window", "calendar", "rollover", "sliding_window", "sliding_log", "token_bucket", "concurrency"]


@pytest.mark.proof
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_store_and_the_reference_answer_alike(client, algorithm):
    """Same decision, remaining, reset, wait and mark for any sequence of calls, changes, refunds and clocks."""
    machine = type(algorithm, (Agreement,), {"client": client, "algorithm": algorithm})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    profile = settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=checks, derandomize=True
    )
    run_state_machine_as_test(machine, settings=profile)
    assert machine.steps >= AT_LEAST, machine.steps


def test_a_release_keeps_slots_that_have_ended_for_a_clock_that_goes_back(client):
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
