"""Assertions on decisions: they hold, or they show the decision that was not expected."""

import pytest

from enforcement import Denied
from enforcement.testing import assert_allowed, assert_denied, assert_limited, assert_limited_async
from tests.enforcement.testing.limits import PER_DAY, PER_MINUTE, SLOTS, failure_of


@pytest.mark.parametrize(
    ("admits", "text"),
    [
        (6, "6 requests should pass, and the next one be denied; number 6 was denied (limited) by store"),
        (4, "4 requests should pass, and the next one be denied; number 5 was allowed by store"),
    ],
)
def test_a_wrong_number_fails_and_shows_the_decision(limiter, admits, text):
    """Which request, who decided, and for each limit what is left and when."""
    message = failure_of(lambda: assert_limited(limiter, [PER_MINUTE, PER_DAY], "k", admits=admits))

    assert message.startswith(text)
    assert "  rpm (fixed_window) " in message
    assert " of 7 requests left, resets in 86400 s" in message


def test_a_denial_that_lasts_too_long_fails(limiter):
    """And one that never ends, too."""
    message = failure_of(lambda: assert_limited(limiter, PER_DAY, "k", admits=7, within_seconds=60))
    assert message.startswith("The denial should end within 60 s; the request was denied (limited) by store")

    hopeless = failure_of(lambda: assert_limited(limiter, PER_MINUTE, "k", admits=0, costs=6, within_seconds=60))
    assert "rpm (fixed_window) can never admit this cost: 5 of 5 requests left" in hopeless


def test_a_refused_token_is_no_limit(limiter):
    """A test of a limit must not pass because its token is unknown."""
    with pytest.raises(TypeError, match=r"Limit\.parse\(\)"):
        assert_limited(limiter, "5/minute", "k", admits=5)
    assert "by a limit; number 1 was denied (unknown_token)" in failure_of(
        lambda: assert_limited(limiter, "x", admits=0)
    )


def test_slots_are_held_while_they_are_counted(limiter, published):
    """Two are free, a third is not, and afterwards two are free again: in code, and of a token."""
    published.policy("slots", SLOTS)
    token = published.token(policy="slots")

    for _ in range(2):
        assert_limited(limiter, SLOTS, "k", admits=2)
        assert_limited(limiter, token, admits=2)
    with limiter.admit(SLOTS, "k"):
        assert_limited(limiter, SLOTS, "k", admits=1)


def test_one_decision_is_judged_by_reason_and_limit(limiter):
    """Each failure names what differs."""
    allowed, denied = limiter.hit(PER_MINUTE, "k"), limiter.hit(PER_MINUTE, "k", costs=5)

    assert assert_allowed(allowed) is allowed
    assert assert_denied(denied, reason="limited", by="rpm") is denied
    assert "should pass, and was denied (limited) by store" in failure_of(lambda: assert_allowed(denied))
    assert "should be denied, and was allowed by store" in failure_of(lambda: assert_denied(allowed))
    assert "reason should be 'revoked'" in failure_of(lambda: assert_denied(denied, reason="revoked"))
    assert "limit 'rpd' should deny" in failure_of(lambda: assert_denied(denied, by="rpd"))


async def test_the_same_with_asyncio(async_limiter, published, clock):
    """Limits in code, a token, slots; the clock is the test's too."""
    published.policy("slots", SLOTS)
    await assert_limited_async(async_limiter, PER_MINUTE, "k", admits=5, within_seconds=60)
    await assert_limited_async(async_limiter, published.token(policy="slots"), admits=2)
    clock.advance(minutes=1)
    await assert_limited_async(async_limiter, PER_MINUTE, "k", admits=5)
    with pytest.raises(AssertionError, match=r"number 1 was denied \(limited\)"):
        await assert_limited_async(async_limiter, PER_MINUTE, "k", admits=1)


def test_a_denied_admission_is_no_error_of_the_kit(limiter):
    """The control: outside of an assertion a denial is raised as always."""
    with limiter.admit(SLOTS, "k", costs=2), pytest.raises(Denied), limiter.admit(SLOTS, "k"):
        pass
