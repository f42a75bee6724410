"""The thread that renews slots, which ends with its limiter and not before."""

import threading

import pytest

from enforcement import Limit
from enforcement.engine.slot_renewal import SlotKeeper
from enforcement.store.client import connect
from tests.enforcement.world import eventually

SLOTS = Limit(name="slots", algorithm="concurrency", quota=5, window_seconds=2)


def renewing(limiter):
    """Return whether the thread of a limiter runs."""
    thread = limiter._engine.slots._thread
    return thread is not None and thread.is_alive()


def end_of(server, limiter, name):
    """Return when the only slot of a counter ends, as the store knows it."""
    (key,) = limiter._engine.planner.plan_in_code(SLOTS, name).keys
    with connect(server.url) as client:
        ((_, end),) = client.zrange(key, 0, -1, withscores=True)
    return end


def test_a_closed_limiter_renews_nothing(server, limiter):
    """Its thread would connect again for ever, also to a store that is gone. An admission can still be ended."""
    admission = limiter.open_admission(SLOTS, "closed")
    assert renewing(limiter)

    limiter.close()

    assert not renewing(limiter)
    admission.finish(200)
    assert limiter.peek(SLOTS, "closed").limits[0].remaining == 5


@pytest.mark.parametrize("used", ["started", "by another admission"])
def test_a_limiter_that_is_used_again_renews_what_is_open(server, limiter, used):
    """Two seconds after it was closed, the slot would end."""
    limiter.open_admission(SLOTS, used)
    limiter.close()
    before = end_of(server, limiter, used)

    if used == "started":
        limiter.start(timeout=0.0)
    else:
        limiter.open_admission(SLOTS, "other")

    assert renewing(limiter)
    assert eventually(lambda: end_of(server, limiter, used) > before)


def test_a_thread_that_is_renewing_stops_after_that(limiter, monkeypatch):
    """It is told while it waits for the store, and not for the next renewal."""
    began, goes_on = threading.Event(), threading.Event()
    renew = SlotKeeper._renew

    def slowly(keeper, *arguments):
        began.set()
        assert goes_on.wait(10.0)
        renew(keeper, *arguments)

    monkeypatch.setattr(SlotKeeper, "_renew", slowly)
    limiter.open_admission(SLOTS, "slow")
    assert began.wait(10.0)
    threading.Timer(0.1, goes_on.set).start()

    limiter.close()

    assert not renewing(limiter)


def test_a_thread_that_an_error_has_ended_is_followed_by_another(limiter, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda details: None)
        patch.setattr(SlotKeeper, "_due", lambda keeper: 1 / 0)
        limiter.open_admission(SLOTS, "ended")
        limiter._engine.slots.renew_soon()
        assert eventually(lambda: not renewing(limiter))

    limiter.open_admission(SLOTS, "following")

    assert renewing(limiter)


def test_a_thread_that_could_not_start_is_followed_by_another(limiter, monkeypatch):
    """The system may have no memory for one. A later reservation starts the thread that renews all."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="start new thread"):
            limiter.open_admission(SLOTS, "first")

    limiter.open_admission(SLOTS, "following")

    assert renewing(limiter)
