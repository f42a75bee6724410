"""Strict limits over real processes: admitted = quota, whatever the number of processes and limits."""

import pytest

from tests.enforcement.fleet import fleet
from tests.scale import scale

# Two processes that read before either writes admit too many; three leave one waiting on a machine with two cores.
PROCESSES = scale(3, 8)
CALLS = scale(100, 1_000)
QUOTA = PROCESSES * CALLS // 2
DAY = 86_400


def limits(algorithm, **more):
    """Return a limit that gives nothing back while a test lasts."""
    return [{"name": "rate", "algorithm": algorithm, "quota": QUOTA, "window_seconds": DAY, **more}]


CALENDAR = [{"name": "rate", "algorithm": "fixed_window", "quota": QUOTA, "calendar": "year"}]
LIFETIME = [{"name": "rate", "algorithm": "fixed_window", "quota": QUOTA, "calendar": "lifetime"}]
BUCKET = [{"name": "rate", "algorithm": "token_bucket", "quota": 1, "window_seconds": DAY, "burst": QUOTA}]


@pytest.mark.proof
@pytest.mark.parametrize(
    "limit",
    [limits("fixed_window"), limits("sliding_window"), limits("sliding_log"), BUCKET, CALENDAR, LIFETIME],
    ids=["fixed_window", "sliding_window", "sliding_log", "token_bucket", "calendar", "lifetime"],
)
def test_processes_admit_the_quota_exactly(server, world, limit):
    """Together they ask for twice the quota: the quota passes, and no decision was made elsewhere."""
    with fleet(server.url, limit, PROCESSES, "--calls", str(CALLS)) as hammers:
        hammers.go()
        ledger = hammers.ledger()

    assert len(ledger) == PROCESSES * CALLS
    assert sum(line.allowed for line in ledger) == QUOTA
    assert {line.source for line in ledger} <= {"store", "denial_cache"}


@pytest.mark.proof
def test_the_tighter_limit_decides_and_denials_charge_nothing(server, world):
    """100 of the tighter; the wider has exactly those 100, though the processes asked more often."""
    both = [
        {"name": "tight", "quota": 100, "window_seconds": DAY},
        {"name": "wide", "quota": 10_000, "window_seconds": DAY},
    ]
    with fleet(server.url, both, PROCESSES, "--calls", str(CALLS // 2)) as hammers:
        hammers.go()
        ledger = hammers.ledger()
    with fleet(server.url, both[1:], 1, "--calls", "1", "--costs", "9901") as last:
        last.go()
        left = last.ledger()

    assert sum(line.allowed for line in ledger) == 100
    assert [line.reason for line in left] == ["limited"]
