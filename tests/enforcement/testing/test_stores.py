"""A real store, and real outages of it."""

import pytest

from enforcement import Limit
from enforcement.testing import assert_allowed, assert_denied, assert_limited
from tests.enforcement.testing.limits import PER_MINUTE


@pytest.mark.parametrize("kind", ["down", "frozen"])
def test_limits_decide_by_their_own_rule_while_the_store_is_away(limiter, outage, kind):
    """The store is really away, and afterwards it decides again with what was charged meanwhile."""
    closed = Limit(name="closed", quota=5, window_seconds=60, on_store_failure="deny")
    assert_allowed(limiter.hit(PER_MINUTE, "k"))
    with outage(kind):
        denial = assert_denied(limiter.hit(closed, "k"), reason="degraded_denied")
        while limiter.state != "degraded":
            limiter.peek(PER_MINUTE, "k")
        away = assert_allowed(limiter.hit(PER_MINUTE, "k"))
    back = assert_allowed(limiter.hit(PER_MINUTE, "k"))

    assert (denial.source, away.source, back.source) == ("fallback", "fallback", "store")
    assert back.remaining == 2


def test_a_store_that_lost_everything_counts_anew(limiter, outage):
    """It comes back empty, and is used."""
    assert_limited(limiter, PER_MINUTE, "k", admits=5)
    with outage("lost"):
        pass

    assert assert_allowed(limiter.hit(PER_MINUTE, "k")).remaining == 4


async def test_an_outage_holds_for_asyncio(async_limiter, outage):
    """The same block, around awaited calls."""
    with outage():
        decision = await async_limiter.hit(PER_MINUTE, "k")
    again = await async_limiter.hit(PER_MINUTE, "k")

    assert (decision.source, again.source) == ("fallback", "store")


def test_an_outage_of_another_kind_is_an_error(outage, limiter):
    """And takes nothing away."""
    with pytest.raises(ValueError, match="kind: must be"), outage("gone"):
        pass

    assert limiter.hit(PER_MINUTE, "k").source == "store"


def test_each_test_begins_with_an_empty_store(limiter, published):
    """Whatever others left: the same key as above is new here, and one project is published."""
    assert_limited(limiter, PER_MINUTE, "k", admits=5)

    assert published.revision == 2
