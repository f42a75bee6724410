"""The clock of leases, for tests that let time pass by themselves."""

import time

from tests.enforcement.world import eventually


class LeaseClock:
    """The clock of leases, which a test sets. The store fills a lease before the next request, on any machine."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    @staticmethod
    def settle(limiter):
        """Wait until the leases are filled that the limiter has asked for."""
        plans = [*limiter._in_code.values(), *limiter._documents.derived.plans.values()]
        leases = [one for plan in plans if plan.lease is not None for one in leases_of(plan)]
        assert eventually(lambda: not any(one.asking for one in leases), every=0.000_1)


def leases_of(plan):
    """Return the leases of a plan or of its parts."""
    return [lease for _, _, lease in plan.lease.parts or ()] or [plan.lease]


def calls(world):
    """Return how often functions of the store were called."""
    return world.client.info("commandstats")["cmdstat_fcall"]["calls"]
