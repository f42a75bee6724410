"""One decision over limits in code with different keys."""

import asyncio

import pytest

from enforcement import Denied, Limit, aio

PER_IP = Limit(name="per-ip", quota=2, window_seconds=3_600)
OVERALL = Limit(name="overall", quota=3, window_seconds=3_600)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)


def of(ip):
    """Return the limits of a request from an address."""
    return [(PER_IP, ip), (OVERALL, "all")]


def remaining(limiter, ip):
    return [state.remaining for state in limiter.peek(of(ip)).limits]


def test_limits_of_different_keys_are_one_decision(limiter):
    """A request that one of them denies is charged to none."""
    outcomes = [limiter.hit(of(ip)) for ip in ("a", "a", "a", "b", "c")]

    assert [decision.denied_by for decision in outcomes] == [(), (), ("per-ip",), (), ("overall",)]
    assert (remaining(limiter, "a"), remaining(limiter, "b"), remaining(limiter, "c")) == ([0, 0], [1, 0], [2, 0])


def test_several_limits_may_share_a_key_of_a_pair(limiter):
    """They count what the limit counts under that key alone."""
    minute = Limit.parse("5/minute", name="minute")
    limiter.hit([([PER_IP, minute], "a"), (OVERALL, "all")], costs=2)

    assert limiter.peek(PER_IP, "a").remaining == 0
    assert limiter.peek(minute, "a").remaining == 3
    assert limiter.peek(OVERALL, "all").remaining == 1


@pytest.mark.parametrize("key", ["a", None])
def test_limits_may_come_from_an_iterator(limiter, key):
    """It is read once, also for limits that are met for the first time."""
    made = [PER_IP, OVERALL] if key else [(iter([PER_IP]), "a"), (OVERALL, "a")]

    assert [state.remaining for state in limiter.hit(iter(made), key).limits] == [1, 2]


def test_slots_and_waits_work_with_pairs(limiter):
    """An admission frees the slot of its key; a call that cannot wait is denied."""
    with limiter.admit([(SLOTS, "job"), (OVERALL, "all")]) as admission:
        admission.settle(2)
        with pytest.raises(Denied, match="its only slot is in use"):
            limiter.open_admission([(SLOTS, "job"), (PER_IP, "a")])
    assert limiter.peek(SLOTS, "job")
    assert limiter.acquire(of("a"), max_wait=0)
    with pytest.raises(Denied, match="overall has 0 of 3 requests left"):
        limiter.acquire(of("a"), max_wait=0)


def test_a_reset_clears_the_counters_of_all_keys(limiter):
    """And only those."""
    limiter.hit(of("a"))
    limiter.hit(of("b"))
    limiter.reset(of("a"))

    assert (remaining(limiter, "a"), remaining(limiter, "b")) == ([2, 3], [1, 3])


def test_both_limiters_take_pairs(server, limiter):
    """And count together."""

    async def awaited():
        other = aio.Limiter(server.url, timeout=1.0)
        assert await other.hit(of("a"))
        async with other.admit(of("a")):
            assert not await other.peek(of("a"))
        await other.close()

    asyncio.run(awaited())
    assert remaining(limiter, "a") == [0, 1]


@pytest.mark.parametrize(
    ("limits", "key", "error", "message"),
    [
        (PER_IP, None, ValueError, "key: must be a string of 1 to 1024 characters, unless limits are pairs"),
        ([PER_IP, OVERALL], None, ValueError, "key: must be a string"),
        ([], None, ValueError, "key: must be a string"),
        ([(PER_IP, "a"), OVERALL], None, ValueError, "key: must be a string"),
        ((PER_IP, "a"), None, ValueError, "key: must be a string"),
        ([(PER_IP, "a", "b")], None, ValueError, "key: must be a string"),
        ([(PER_IP, None)], None, ValueError, "key: must be a string of 1 to 1024 characters, got NoneType"),
        ([(PER_IP, 7)], None, ValueError, "key: must be a string of 1 to 1024 characters, got int"),
        ([(PER_IP, "a"), (OVERALL, "")], None, ValueError, "key: must be a string of 1 to 1024 characters, got 0"),
        ([(PER_IP, "a"), (PER_IP, "b")], None, ValueError, "limits: names must be unique, got per-ip, per-ip"),
        ([([], "a"), (OVERALL, "b")], None, ValueError, "limits: must be 1 to 64"),
        ([("5/minute", "a")], None, TypeError, "limits: must be Limit values, got '5/minute'. Limit.parse() makes"),
        ([(PER_IP, "a")], "k", TypeError, "limits: must be Limit values, got (Limit"),
        (None, "k", TypeError, "limits: must be Limit values, got None."),
        ([(7, "a")], None, TypeError, "limits: must be Limit values, got 7."),
    ],
)
def test_pairs_that_make_no_sense_are_errors(limiter, limits, key, error, message):
    """They name the field and the rule."""
    for call in (limiter.hit, limiter.peek, limiter.reset, limiter.open_admission):
        with pytest.raises(error) as raised:
            call(limits, key)
        assert str(raised.value).startswith(message)
