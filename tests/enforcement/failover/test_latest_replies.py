"""What a process admits alone begins from the latest reply about each counter, whichever request it answered."""

import itertools
import os
import threading
import time
from types import SimpleNamespace

import pytest

from enforcement import Denied, Limit, Limiter
from enforcement.failover import latest_replies
from enforcement.failover.latest_replies import LatestReplies
from enforcement.plan.binding import BoundLimit
from enforcement.plan.reply import Reply
from enforcement.state.live_plan import LivePlan
from enforcement.testing import Published

pytestmark = pytest.mark.usefixtures("documents")

FIVE = Limit(name="five", quota=5, window_seconds=3_600)
ALONE = 12
"""Requests that a process decides alone, more than any limit here has left."""


@pytest.fixture
def limiter(own_server):
    with Limiter(own_server.url, timeout=0.5) as limiter:
        yield limiter


@pytest.fixture
def published(own_server, limiter):
    published = Published(own_server.url)
    published.followers.append(limiter)
    yield published
    published.client.close()


def admitted(decisions, source):
    decisions = list(decisions)
    assert {decision.source for decision in decisions} == {source}
    return sum(decision.allowed for decision in decisions)


def test_the_first_of_thousands_of_plans_comes_without_a_copy_of_all():
    """The first decision of an outage looks at some of them, however many there are."""
    planner = Limiter("redis://127.0.0.1:1/0")._engine.planner
    for number in range(10_000):
        planner.in_code["user:42", number] = SimpleNamespace(parts=None, lease=None)

    def spent(look):
        began = time.thread_time()
        look()
        return time.thread_time() - began

    first = min(spent(lambda: next(planner.plans())) for _ in range(5))
    every = min(spent(lambda: all(True for _ in planner.plans())) for _ in range(5))
    assert first < every / 10


def test_tokens_that_share_a_limit(own_server, limiter, published):
    """The first token is told that 4 are left, the second that 3 are. So 3 are left for both."""
    published.policy("team", FIVE)
    published.project(policy="team")
    tokens = [published.token(), published.token()]
    assert admitted((limiter.check(token) for token in tokens), "store") == 2
    own_server.kill()

    assert admitted((limiter.check(tokens[at % 2]) for at in range(ALONE)), "fallback") == 3


def test_a_token_whose_requests_have_different_attributes(own_server, limiter, published):
    """Requests for a new model are told nothing of the store, but others were."""
    per_model = Limit(name="model", quota=50, window_seconds=3_600, partition_by=("model",))
    published.policy("team", FIVE, per_model)
    published.project(policy="team")
    token = published.token()
    asked = [{"model": name} for name in "abcd"]
    assert admitted((limiter.check(token, attributes=it) for it in asked[:3]), "store") == 3
    own_server.kill()

    assert admitted((limiter.check(token, attributes=asked[at % 4]) for at in range(ALONE)), "fallback") == 2


def test_lists_of_limits_in_code_that_share_one(own_server, limiter):
    """One list has a limit alone, another has it beside a second one."""
    both = [FIVE, Limit(name="more", quota=50, window_seconds=3_600)]
    assert admitted([limiter.hit(FIVE, "k"), limiter.hit(both, "k"), limiter.hit(both, "k")], "store") == 3
    own_server.kill()

    assert admitted((limiter.hit(both if at % 2 else FIVE, "k") for at in range(ALONE)), "fallback") == 2


@pytest.mark.parametrize(("quota", "left"), [(5, 1), (8, 4), (3, 0)])
def test_a_policy_that_changed_since(own_server, limiter, published, quota, left):
    """What was used stays used, by the quota that holds now."""
    published.policy("team", FIVE)
    published.project(policy="team")
    token = published.token()
    assert admitted((limiter.check(token) for _ in range(4)), "store") == 4
    published.policy("team", Limit(name="five", quota=quota, window_seconds=3_600))
    own_server.kill()

    assert admitted((limiter.check(token) for _ in range(ALONE)), "fallback") == left


def test_permits_that_were_leased(own_server, limiter, published):
    """The store was hardly asked, but it has said what it had left when it granted the leases."""
    published.policy("team", Limit(name="many", quota=1_000, window_seconds=3_600, consistency="leased"))
    published.project(policy="team")
    token = published.token()
    got, deadline = 0, time.monotonic() + 10
    while limiter.stats().lease_permits_used <= 30 and time.monotonic() < deadline:  # however late the leases come
        got += limiter.check(token).allowed
        time.sleep(0.005)
    assert limiter.stats().lease_permits_used > 30
    own_server.kill()

    assert got + sum(limiter.check(token).allowed for _ in range(1_000)) <= 1_000


def test_a_grant_whose_reply_is_read_after_later_ones(own_server, limiter, published):
    """The thread that leases permits was not scheduled, while the store decided more requests."""
    published.policy("team", Limit(name="many", quota=1_000, window_seconds=3_600, consistency="leased"))
    published.project(policy="team")
    token = published.token()
    keeper, granted, scheduled = limiter._engine.leases, threading.Event(), threading.Event()
    call, deadline = keeper._pipe.call, time.monotonic() + 10

    def late(command):
        reply = call(command)
        if threading.current_thread() is keeper._thread:
            granted.set()
            assert scheduled.wait(10)
        return reply

    keeper._pipe.call, got = late, 0
    while not granted.is_set() and time.monotonic() < deadline:
        got += limiter.check(token).allowed
    got += sum(limiter.check(token).allowed for _ in range(3))
    scheduled.set()
    while not limiter.stats().lease_permits_used and time.monotonic() < deadline:
        got += limiter.check(token).allowed
    own_server.kill()

    assert limiter.stats().lease_permits_used
    assert got + sum(limiter.check(token).allowed for _ in range(1_000)) <= 1_000


@pytest.mark.parametrize(
    ("later_by_us", "left"), [(1, 6), (-1, 7), (-999_999, 7), (-1_000_000, 6)], ids=["later", "earlier", "much", "back"]
)
def test_a_reply_that_is_read_after_a_later_one_is_not_the_last(later_by_us, left):
    """Unless it is so much earlier that the store's clock must have been set back."""
    plan = LivePlan((BoundLimit(FIVE, "{k}:0", "k"),))
    plan.heard(Reply((1, 5_000_000, 7, 0, 0, 0)))
    plan.heard(Reply((1, 5_000_000 + later_by_us, 6, 0, 0, 0)))

    assert plan.last.remaining(0) == left


def test_a_reservation_of_a_longer_life(own_server, limiter):
    """Its slots live as long as it does, so it is charged by a plan of its own."""
    limits = [FIVE, Limit(name="slots", algorithm="concurrency", quota=50, window_seconds=60)]
    for _ in range(4):
        limiter.reserve(limits, "k", life=100)
    own_server.kill()

    with limiter.admit(limits, "k"), pytest.raises(Denied, match="five"):
        limiter.open_admission(limits, "k")


def test_a_counter_that_was_reset(own_server, limiter):
    """What other requests were told before says nothing about it any more."""
    both = [FIVE, Limit(name="more", quota=50, window_seconds=3_600)]
    assert admitted([limiter.hit(FIVE, "k"), limiter.hit(both, "k"), limiter.hit(FIVE, "k")], "store") == 3
    limiter.reset(FIVE, "k")
    own_server.kill()

    assert admitted((limiter.hit(FIVE, "k") for _ in range(ALONE)), "fallback") == 5


def test_a_child_process(own_server, limiter):
    """It has plans of its own, which the store has said nothing about."""
    assert limiter.hit(FIVE, "k").source == "store"
    own_server.kill()
    assert limiter.hit(FIVE, "k").source == "fallback"
    child = os.fork()
    if not child:
        os._exit(0 if admitted((limiter.hit(FIVE, "k") for _ in range(ALONE)), "fallback") == 5 else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_decision_looks_at_all_plans(monkeypatch):
    """Ten thousand would hold up everybody for a tenth of a second: a decision sees some, the background the rest."""
    seconds = itertools.count(step=latest_replies.SLICE_SECONDS / 4)
    monkeypatch.setattr(latest_replies, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(latest_replies, "sleep", lambda seconds: None)
    bounds = [BoundLimit(FIVE, f"{{k}}:{number}", "k") for number in range(10_000)]
    looked = []

    def answered(bound, last):
        looked.append(bound)
        return SimpleNamespace(keys=[bound.key], bounds=(bound,), last=last)

    found = LatestReplies(lambda: (answered(bound, Reply((1, 7, 5, 0, 0, 0))) for bound in bounds))
    assert found.about(answered(bounds[0], None))[0].remaining == 5
    first = len(looked) - 1
    assert found.about(answered(bounds[-1], None)) == [None]
    found.look_at_rest()

    assert 0 < first <= 100
    assert len(looked) == len(bounds) + 2
    assert found.about(answered(bounds[-1], None))[0].remaining == 5
