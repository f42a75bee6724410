"""A client that keeps the pace of a limit, or waits as it is told, gets what the limit says."""

import itertools

import pytest

from enforcement import Limit, Limiter
from enforcement.store.client import connect

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
START_US = 1_767_225_600 * SECOND
KEYS = itertools.count()
NOW = [START_US]
ALGORITHMS = ["fixed_window", "sliding_window", "sliding_log", "token_bucket"]


@pytest.fixture(scope="module")
def limiter(server):
    """Give a limiter whose clock only the clients set."""
    limiter = Limiter(server.url, clock=lambda: NOW[0], timeout=1.0)  # starts with the first call
    yield limiter
    limiter.close()


class Client:
    """Asks one limit at instants of its own."""

    def __init__(self, limiter, limit, begins_us):
        self.limiter, self.limit, self.key = limiter, limit, f"pace:{next(KEYS)}"
        self.now = self.begins = begins_us

    @property
    def now(self):
        return NOW[0]

    @now.setter
    def now(self, instant_us):
        NOW[0] = instant_us

    def ask(self):
        return self.limiter.hit(self.limit, self.key)

    def paced(self, count):
        """Yield the decisions on so many requests, one each time that the limit has another permit."""
        length = self.limit.window_seconds * SECOND
        for number in range(count):
            self.now = self.begins + -(-number * length // self.limit.quota)
            yield self.ask()

    def patient(self, until_us):
        """Yield the decisions on requests without a pause, except that each denial is waited for as it says."""
        while self.now < until_us:
            decision = self.ask()
            yield decision
            if not decision.allowed:
                self.now += decision.retry_after_ms * 1_000


@pytest.mark.parametrize(
    ("text", "count"), [("1/hour", 4), ("3/minute", 9), ("10/minute", 30), ("100/minute", 250), ("60/hour", 150)]
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_who_keeps_the_pace_is_never_denied(limiter, algorithm, text, count):
    """Whatever the algorithm, and wherever in a window the first request falls."""
    denied = []
    for offset_us in (0, 1, 7_500_000):
        client = Client(limiter, Limit.parse(text, algorithm=algorithm), START_US + offset_us)
        denied += [(offset_us, client.now) for decision in client.paced(count) if not decision.allowed]

    assert denied == []


@pytest.mark.parametrize(("quota", "most"), [(1, 49), (5, 245)])
def test_who_tries_each_minute_gets_the_quota_of_each_hour(limiter, quota, most):
    """Two days from 10:01 on are at least 48 times the quota, and at most that of the 49 hours that they touch."""
    limit = Limit.parse(f"{quota}/hour")
    client, admitted = Client(limiter, limit, START_US + 10 * HOUR + MINUTE), 0
    for _ in range(48 * 60):
        admitted += client.ask().allowed
        client.now += MINUTE

    assert 48 * quota <= admitted <= most


@pytest.mark.parametrize("quota", [1, 2, 5])
def test_who_waits_as_told_gets_the_quota(limiter, quota):
    """Retry-After leads to a request that passes, and all of them together to what the limit says."""
    client = Client(limiter, Limit.parse(f"{quota}/hour"), START_US + 10 * HOUR + MINUTE)
    decisions = [decision.allowed for decision in client.patient(START_US + 58 * HOUR + MINUTE)]

    assert sum(decisions) >= 48 * quota
    assert all(now or then for now, then in itertools.pairwise(decisions))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_counter_that_lost_its_time_to_live_has_one_again(limiter, server, algorithm):
    """After the next charge of a later second."""
    client = Client(limiter, Limit.parse("100/hour", algorithm=algorithm), START_US)
    key = client.ask().explain()["limits"][0]["counter"]
    with connect(server.url) as store:
        assert store.persist(key)
        client.now += SECOND
        client.ask()
        assert 0 < store.pttl(key) <= 27 * 3_600_000  # by a frozen clock counters live a day longer


def test_a_first_wait_is_no_longer_than_the_window(limiter):
    """One request at 10:01 of one in an hour: the next passes at 11:00."""
    client = Client(limiter, Limit.parse("1/hour"), START_US + 10 * HOUR + MINUTE)
    assert client.ask().allowed
    assert client.ask().retry_after_ms == 59 * 60 * 1_000
