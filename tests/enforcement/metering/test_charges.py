"""Metered costs on their way through both limiters to a real store, for limits in code and for a published policy."""

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.metering.amounts import Usage
from enforcement.metering.charges import terms_of
from enforcement.metering.estimate import Estimate
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.settlement import MeteredReservation
from tests.enforcement.world import used_of

PRICES = Prices(1, prices=(Price("dear", Rates(2_000_000, 10_000_000)),))
MONTH = {"quota": 10_000, "calendar": "month"}
LIMITS = [
    Limit(name="rpm", **MONTH),
    Limit(name="good", charge_on=("2xx",), **MONTH),
    Limit(name="all", unit="tokens", **MONTH),
    Limit(name="weighed", unit="tokens", weights={"cached_input": 100, "output": 2_000}, **MONTH),
    Limit(name="usd", unit="micros", unpriced={"charge_as": "dear"}, **MONTH),
    Limit(name="free", unit="micros", unpriced="count_only", **MONTH),
    Limit(name="images", unit="images", **MONTH),
]
NAMES = [limit.name for limit in LIMITS]
# 100 tokens of input, 50 of output; then 60 of input, 20 read from the cache, 20 of output, and the status 500.
ESTIMATED = dict(zip(NAMES, [1, 1, 150, 200, 700, 0, 0], strict=True))
SETTLED = dict(zip(NAMES, [1, 0, 100, 60 + 2 + 40, 360, 0, 0], strict=True))


def metered():
    """Return the reservation and its estimate by name; only one of the two limits of money finds a price."""
    found = MeteredReservation(terms_of(LIMITS, PRICES, "new", 0), Estimate(100, 50), 0)
    return found, found.terms.named(found.costs)


def settled(reservation):
    reservation.answered(500, 0)
    reservation.reported(Usage(60, 20, 0, 20), 0, final=True)
    return reservation.terms.named(reservation.ended(0).costs)


NOTHING = {"requests": 0, "tokens": 0, "micros": 0, "images": 0}


def decide(limiter, call, costs):
    """Return the decision of a call, by whichever verb it is asked for."""
    return limiter.check(*call, costs) if len(call) == 1 else limiter.hit(*call, costs)


@pytest.fixture(params=["in code", "published"])
def call(request, world, no_documents):
    """Give the arguments of a call under these limits, in code or by a token's policy."""
    return (LIMITS, "chat") if request.param == "in code" else (world.everything(*map(Limit.to_json, LIMITS)),)


def test_each_limit_is_charged_and_settled_by_its_own_cost(server, call):
    """Two limits of one unit may cost the same request differently."""
    reservation, costs = metered()
    with Limiter(server.url) as limiter, limiter.admit(*call, costs=costs) as admission:
        assert used_of(admission.decision) == ESTIMATED
        assert admission.decision.unmetered == ("free", "images")

        admission.settle(settled(reservation))

        assert used_of(decide(limiter, call, NOTHING)) == SETTLED


async def test_each_limit_is_charged_and_settled_by_its_own_cost_aio(server, call):
    """The same over asyncio."""
    reservation, costs = metered()
    async with aio.Limiter(server.url) as limiter, limiter.admit(*call, costs=costs) as admission:
        assert used_of(admission.decision) == ESTIMATED

        await admission.settle(settled(reservation))

        assert used_of(await decide(limiter, call, NOTHING)) == SETTLED


def test_costs_that_a_caller_counts_itself_name_the_unit(server, call):
    """Weights are for a meter; who says how many tokens a request costs has weighed them."""
    with Limiter(server.url) as limiter:
        decision = decide(limiter, call, {"tokens": 5, "micros": 7})
        assert used_of(decision) == dict(zip(NAMES, [1, 1, 5, 5, 7, 7, 0], strict=True))


@pytest.mark.parametrize("name", ["tokens:", "tokens:xyz", ":0123456789abcdef", "tokens:0123456789ABCDEF", "a:b:c"])
def test_a_name_that_is_no_unit_is_refused(server, name):
    """Nothing that looks like a name of a cost passes for one."""
    with Limiter(server.url) as limiter, pytest.raises(ValueError, match="each unit must be"):
        limiter.hit(LIMITS, "chat", {name: 1})


def test_a_cost_that_no_limit_in_code_counts_is_refused(server):
    """As a unit that no limit has."""
    with Limiter(server.url) as limiter, pytest.raises(ValueError, match="no limit of this call counts"):
        limiter.hit(LIMITS, "chat", {"tokens:0123456789abcdef": 1})
