"""A client that invents values while the store is away, in a file of its own, since its proof takes long."""

import pytest

from tests.enforcement.state.test_floods import flood, publish
from tests.scale import scale

# How many counters a process may have without the store, and many times more values: whatever keeps something of every
# value grows without end.
MOST, VALUES_AWAY = scale((4_000, 20_000), (50_000, 1_000_000))


@pytest.mark.proof
def test_the_same_flood_while_the_store_is_away_stays_bounded(server, world):
    """Even without a cap to speak of so many counters are kept at most, and memory stays as it is from there on."""
    attacker, _ = publish(world, cap=1_000_000)
    told = flood(server, attacker, VALUES_AWAY, "--away", "--most", str(MOST))
    grown = {line["asked"]: line["mb"] - told[0]["mb"] for line in told}

    assert (told[-1]["source"], told[-1]["counters"]) == ("fallback", MOST)
    assert grown[MOST] > MOST * 0.000_2
    assert grown[VALUES_AWAY] - grown[MOST + scale(2_000, 10_000)] < 5
