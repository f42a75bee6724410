"""A client that invents values while the store is away, in a file of its own, since its proof takes long."""

import pytest

from tests.enforcement.state.test_floods import flood, publish
from tests.scale import scale

# More than a process may count without the store. Whatever keeps something of every value grows without end.
VALUES_AWAY = scale(65_000, 1_000_000)


@pytest.mark.proof
def test_the_same_flood_while_the_store_is_away_stays_bounded(server, world):
    """Even without a cap to speak of 50,000 counters are kept at most, and memory stays as it is from there on."""
    attacker, _ = publish(world, cap=1_000_000)
    told = flood(server, attacker, VALUES_AWAY, "--away")
    grown = {line["asked"]: line["mb"] - told[0]["mb"] for line in told}

    assert (told[-1]["source"], told[-1]["counters"]) == ("fallback", 50_000)
    assert grown[50_000] > 10
    assert grown[VALUES_AWAY] - grown[60_000] < 5
