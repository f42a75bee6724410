"""Slots of ``concurrency`` limits without the store: freed when they are left, kept while held, and handed over."""

import contextlib
import time

import pytest

from enforcement import Denied, Limit, Limiter, aio
from enforcement.engine.slot_renewal import SlotKeeper
from enforcement.failover.slots import UnreportedSlots
from enforcement.store.client import connect
from tests.enforcement.faults import FaultyPath
from tests.enforcement.stalls import Stalls
from tests.enforcement.world import eventually

# Whether the background or a caller finds the store again is chance, so that a proof does it more than once.
pytestmark = [pytest.mark.proof(times=5), pytest.mark.usefixtures("no_documents")]

SLOTS = Limit(name="slots", algorithm="concurrency", quota=2, window_seconds=60)


@pytest.fixture
def limiter(own_server):
    """Give a limiter that has met its store."""
    limiter = Limiter(own_server.url, timeout=0.1)
    # The first call loads the functions, for which a busy machine needs longer than a decision may take.
    assert eventually(lambda: limiter.peek(SLOTS, "k").source == "store")
    yield limiter
    own_server.thaw()  # to close a limiter takes seconds while its store is frozen
    limiter.close()


def lose(server, limiter):
    """Freeze the store, and see it found away."""
    server.freeze()
    other = Limit(name="other", quota=100, window_seconds=60)
    assert eventually(lambda: limiter.hit(other, "x") and limiter.stats().servers_away == 1)


def held(server):
    """Return how many slots the store knows of."""
    with connect(server.url) as client:
        return sum(client.zcard(key) for key in client.scan_iter("sg:*:c:*", _type="zset"))


def is_back(limiter):
    return eventually(lambda: limiter.peek(SLOTS, "other").source == "store")


def test_a_slot_that_is_left_during_an_outage_is_free_at_once(own_server, limiter):
    """One after the other any number pass, each in its slot; three at once do not."""
    lose(own_server, limiter)
    for _ in range(10):
        with limiter.admit(SLOTS, "k") as admission:
            assert admission.decision.source == "fallback"
    with limiter.admit(SLOTS, "k"), limiter.admit(SLOTS, "k"), pytest.raises(Denied), limiter.admit(SLOTS, "k"):
        pytest.fail("a third was let in")


def test_what_is_held_when_the_store_goes_counts_until_it_is_left(own_server, limiter):
    """Slots that the store gave are counted here, those that were left before are not, and the store hears of it."""
    with limiter.admit(SLOTS, "k"):
        pass  # its reply said that one remains, which is not so any more
    with limiter.admit(SLOTS, "k"):
        lose(own_server, limiter)
        with limiter.admit(SLOTS, "k") as second:
            assert (second.decision.source, second.decision.remaining) == ("fallback", 0)
            assert not limiter.peek(SLOTS, "k").allowed
        assert limiter.peek(SLOTS, "k").remaining == 1
    assert limiter.peek(SLOTS, "k").remaining == 2
    own_server.thaw()
    assert is_back(limiter)
    assert held(own_server) == 0


def test_control_a_process_that_does_not_count_what_it_holds_gives_it_once_more(own_server, limiter, monkeypatch):
    """Both slots are free to it, though one is held."""
    monkeypatch.setattr(SlotKeeper, "held", lambda keeper, key: {})
    with limiter.admit(SLOTS, "k"):
        lose(own_server, limiter)
        assert limiter.peek(SLOTS, "k").remaining == 2


def test_slots_taken_between_two_outages_count_in_the_second(own_server, limiter):
    """A count that was begun in the first is not trusted: the store gave slots since."""
    for _ in range(2):
        lose(own_server, limiter)
        with limiter.admit(SLOTS, "k") as admission:
            assert admission.decision.source == "fallback"
        own_server.thaw()
        assert is_back(limiter)
        with limiter.admit(SLOTS, "k") as admission:
            assert admission.decision.source == "store"
            limiter._engine.health.breaker.trip("test")
            assert limiter.peek(SLOTS, "k").remaining == 1
        assert is_back(limiter)


def test_slots_held_when_the_store_returns_are_reported_to_it(own_server, limiter):
    """Nobody else is given them; leaving frees them there."""
    lose(own_server, limiter)
    with limiter.admit(SLOTS, "k"), limiter.admit(SLOTS, "k"):
        own_server.thaw()
        assert is_back(limiter)
        assert held(own_server) == 2
        with Limiter(own_server.url, timeout=1.0) as other, pytest.raises(Denied), other.admit(SLOTS, "k"):
            pytest.fail("the quota was exceeded")
    assert held(own_server) == 0
    with limiter.admit(SLOTS, "k") as admission:
        assert admission.decision.source == "store"


def test_control_a_store_without_a_report_gives_them_away_again(own_server, limiter, monkeypatch):
    """If nothing is reported, four slots of two are held."""
    monkeypatch.setattr(UnreportedSlots, "batches", lambda slots, ready: [])
    lose(own_server, limiter)
    with limiter.admit(SLOTS, "k"), limiter.admit(SLOTS, "k"):
        own_server.thaw()
        assert is_back(limiter)
        with Limiter(own_server.url, timeout=1.0) as other, other.admit(SLOTS, "k"), other.admit(SLOTS, "k"):
            assert held(own_server) == 2


def test_a_slot_freed_while_it_is_reported_does_not_stay(own_server, limiter):
    """The order of the two calls does not matter."""
    lose(own_server, limiter)
    fallback = limiter._engine.fallback
    with limiter.admit(SLOTS, "k"):
        [batch] = [batch for batch in fallback.batches() if batch.reports_slots]
    fallback.replayed(batch)  # the store accepts the report only now
    own_server.thaw()
    assert is_back(limiter)

    assert eventually(lambda: not fallback.owes())
    assert held(own_server) == 0


def test_slots_are_renewed_here_while_the_store_is_away(own_server, limiter):
    """A block that lasts longer than a slot's lifetime keeps its slot, store or not."""
    short = Limit(name="short", algorithm="concurrency", quota=1, window_seconds=1)
    limiter.peek(short, "k")
    lose(own_server, limiter)
    with limiter.admit(short, "k"):
        end = time.monotonic() + 1.2
        assert not eventually(lambda: limiter.peek(short, "k").allowed, end - time.monotonic())
    assert limiter.peek(short, "k").allowed


def test_slots_of_the_store_are_held_through_an_outage_longer_than_their_life(own_server, limiter):
    """The store has forgotten them when it is back, and this process would have: nobody else gets them all the same."""
    short = Limit(name="short", algorithm="concurrency", quota=1, window_seconds=1)
    with limiter.admit(short, "k") as admission:
        assert admission.decision.source == "store"
        lose(own_server, limiter)
        end = time.monotonic() + 1.3
        assert not eventually(lambda: limiter.peek(short, "k").allowed, end - time.monotonic())
        own_server.thaw()
        assert is_back(limiter)
        with Limiter(own_server.url, timeout=1.0) as other, pytest.raises(Denied), other.admit(short, "k"):
            pytest.fail("the quota was exceeded")
    assert limiter.peek(short, "k").allowed


def test_a_renewal_without_a_reply_does_not_hold_up_the_next(own_server):
    """Both come within the life of the slot, which else would end here before the store is known to be away."""
    path = FaultyPath(own_server.port)
    short = Limit(name="short", algorithm="concurrency", quota=1, window_seconds=1)
    with Limiter(path.url, timeout=1.0) as limiter, limiter.admit(short, "k"):
        path.only, path.mode = b"_renew", "swallow"
        assert eventually(lambda: path.hit == 1)
        began = time.monotonic()
        assert eventually(lambda: path.hit == 2)
        between = time.monotonic() - began
    path.close()

    assert between < 0.8


def test_a_slot_freed_while_it_is_renewed_here_is_not_reported(own_server, limiter):
    """The thread that renews comes a moment too late."""
    with limiter.admit(SLOTS, "k") as admission:
        lose(own_server, limiter)
    admission.reservation.renewing()
    own_server.thaw()
    assert is_back(limiter)

    assert eventually(lambda: not limiter._engine.fallback.owes())
    assert held(own_server) == 0


def test_leaving_does_not_wait_for_a_store_that_is_away(own_server, limiter):
    """A slot that the store gave is freed there when it is back; until then nobody asks it."""
    with contextlib.ExitStack() as entered:
        admission = entered.enter_context(limiter.admit(SLOTS, "k"))
        assert admission.decision.source == "store"
        lose(own_server, limiter)
        with Stalls() as stalls:
            entered.close()
    assert stalls.seconds < 0.05
    own_server.thaw()

    assert is_back(limiter)
    assert eventually(lambda: held(own_server) == 0)


async def test_tasks_free_and_hand_over_likewise(own_server):
    """The asyncio limiter drives the same steps."""
    limiter = aio.Limiter(own_server.url, timeout=0.1)
    await limiter.peek(SLOTS, "k")
    own_server.freeze()
    sources = []
    for _ in range(6):
        async with limiter.admit(SLOTS, "k") as admission:
            sources.append(admission.decision.source)
    async with limiter.admit(SLOTS, "k"):
        own_server.thaw()
        assert await _back(limiter)
        # The store may have given slots to calls that it answered too late: those are free, too.
        assert eventually(lambda: held(own_server) == 1)

    assert sources == ["fallback"] * 6
    assert held(own_server) == 0
    await limiter.close()


async def _back(limiter):
    end = time.monotonic() + 5
    while (await limiter.peek(SLOTS, "other")).source != "store":
        if time.monotonic() > end:
            return False
    return True


@pytest.mark.parametrize("mode", ["cut", "swallow"])
@pytest.mark.parametrize("rule", ["deny", "local"])
def test_a_slot_that_a_denied_request_may_have_taken_is_freed(own_server, rule, mode):
    """The store gave it, its reply was lost, and the process denied the request: nobody holds the slot."""
    path = FaultyPath(own_server.port)
    limit = Limit(name="slots", algorithm="concurrency", quota=4, window_seconds=60, on_store_failure=rule)
    with Limiter(path.url, timeout=0.1, fleet_size=4) as limiter, contextlib.ExitStack() as admitted:
        # By the rule "local" the process may hold one of the four.
        admitted.enter_context(limiter.admit(limit, "k"))
        path.only, path.mode = b"_decide", mode
        with pytest.raises(Denied) as denied:
            admitted.enter_context(limiter.admit(limit, "k"))
        path.mode = "pass"
        assert denied.value.decision.ambiguous
        assert eventually(lambda: held(own_server) == 1)

    assert path.hit
    path.close()
