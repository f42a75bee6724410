"""Permits of which a reply was lost, or that a replaced server has granted: none too many, at most a tenth less."""

import os
import signal
import threading
import time

import pytest

from enforcement import Limit, Limiter
from enforcement.embedded import ValkeyServer
from enforcement.model.keys import Keys
from enforcement.model.lease_bounds import longest_charge
from enforcement.plan.binding import bind_in_code
from enforcement.plan.commands import LEASE
from enforcement.store.errors import StoreError
from tests.enforcement.topologies import Cluster, execute
from tests.enforcement.world import eventually
from tests.scale import scale

QUOTA = 2_000
SHARED = Limit(name="shared", quota=QUOTA, calendar="lifetime", consistency="leased")
OWN = Limit(name="own", quota=1_000_000, window_seconds=7_200)


class Losing:
    """A pipe of a real server that loses the first replies to some calls, which the server has executed."""

    def __init__(self, pipe, times, *, of_grants):
        self.pipe, self.left, self.of_grants = pipe, times, of_grants

    def call(self, command, deadline=0.0):
        reply = self.pipe.call(command, deadline)
        if self.left and (LEASE.encode() in command[:60]) == self.of_grants:
            self.left -= 1
            raise StoreError("connection", "the reply was lost")
        return reply

    def __getattr__(self, name):
        return getattr(self.pipe, name)


def admitted(limiter, pairs, pause):
    """Return how many requests are admitted until the quota is used up."""
    count = 0
    while limiter.hit(pairs):
        count += 1
        if count % 200 == 0:
            time.sleep(pause)
    return count


@pytest.mark.proof
@pytest.mark.parametrize("of_grants", [True, False], ids=["a grant", "a return"])
@pytest.mark.parametrize("times", scale([1, 20], [1, 3, 20, 100]))
def test_lost_replies_take_at_most_a_tenth(times, of_grants):
    """However many of them: what may be charged for nobody counts as held."""
    with ValkeyServer(persistent=False) as server:
        with Limiter(server.url, timeout=2.0) as limiter:
            limiter.start(3.0)
            leases = limiter._engine.leases
            leases._pipe = Losing(leases._pipe, times, of_grants=of_grants)
            found = admitted(limiter, [(SHARED, "all"), (OWN, "one")], 0.02 if of_grants else 0.4)
            lost = times - leases._pipe.left
        with Limiter(server.url, timeout=2.0) as other:
            found += admitted(other, [(SHARED, "all")], 0)

    assert lost >= 1
    assert QUOTA * 9 // 10 <= found <= QUOTA


def test_a_grant_of_a_server_that_was_replaced_is_not_handed_out():
    """It was held up with the call, decides it first of all, and only then learns of the other one."""
    limit = Limit(name="rate", quota=QUOTA, window_seconds=7_200, consistency="leased", on_store_failure="deny")
    key = bind_in_code((limit,), "all", Keys())[0].key
    with Cluster() as cluster, Limiter(cluster.url, timeout=0.3) as limiter:
        limiter.start(5.0)
        at = cluster.index_of(key)
        leases = limiter._engine.leases
        call, frozen, seen = leases._pipe.call, cluster.primaries[at].pid, threading.Event()
        late = []

        def calling(command, deadline=0.0):
            if LEASE.encode() not in command[:60] or count < 100 or seen.is_set():
                return call(command, deadline)
            seen.set()
            time.sleep(0.1)  # what was decided before is on the replica
            os.kill(frozen, signal.SIGSTOP)
            late.append(time.monotonic())
            return call(command, deadline)

        count = 0
        leases._pipe.call = calling
        while not seen.is_set():
            count += limiter.hit(limit, "all").allowed
        assert eventually(lambda: late, 5, 0.01)
        execute(cluster.replicas[at], "CLUSTER", "FAILOVER", "TAKEOVER")
        time.sleep(0.4)
        os.kill(frozen, signal.SIGCONT)
        assert eventually(lambda: cluster.promoted(at), 10, 0.02)
        while not (decision := limiter.hit(limit, "all")).source.startswith(("denial", "store")) or decision.allowed:
            count += decision.allowed

        assert QUOTA * 9 // 10 <= count <= QUOTA


def test_a_request_that_is_interrupted_gives_its_permit_back():
    """By a signal or a time limit of the program, while the store is asked about another limit."""

    class Interrupted(BaseException):
        """What a signal handler raises."""

    def interrupting(*args):
        raise Interrupted

    pairs = [(SHARED, "all"), (OWN, "one")]
    with ValkeyServer(persistent=False) as server:
        with Limiter(server.url, timeout=2.0) as limiter:
            limiter.start(3.0)
            leases, call, count = limiter._engine.leases, limiter._pipe.call, 0
            while leases.outstanding() < 20:
                count += limiter.hit(pairs).allowed
            limiter._pipe.call = interrupting
            for _ in range(10):
                with pytest.raises(Interrupted):
                    limiter.hit(pairs)
            limiter._pipe.call = call
        with Limiter(server.url, timeout=2.0) as other:
            assert count + admitted(other, [(SHARED, "all")], 0) == QUOTA


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (Limit(quota=10, window_seconds=60), 60),
        (Limit(quota=10, window_seconds=60, algorithm="sliding_window"), 120),
        (Limit(quota=10, burst=50, window_seconds=60, algorithm="token_bucket"), 300),
        (Limit(quota=10, calendar="hour"), 86_400),
        (Limit(quota=10, calendar="month"), 32 * 86_400),
        (Limit(quota=10, calendar="lifetime"), float("inf")),
    ],
)
def test_how_long_a_permit_may_stay_charged(limit, seconds):
    """So long it counts as held that nobody has."""
    assert longest_charge(limit) == seconds
