"""The scenarios of prices and settlements, with the product's own code for everything but the counters."""

import json

import pytest

from enforcement.metering.price_documents import parse_prices, prices_to_json
from enforcement.model.documents import InvalidDocument
from tests.enforcement.metering.fleet import Fleet, instant_us, load, usage_of


@pytest.mark.parametrize("vector", load("price"), ids=lambda vector: vector["id"])
def test_a_price(vector):
    """A document is refused as a whole, or prices each case as it says, also after it was written again."""
    text = vector.get("text") or json.dumps(vector["prices"])
    if vector.get("refused"):
        with pytest.raises(InvalidDocument):
            parse_prices(text)
        return
    prices = parse_prices(text)
    assert parse_prices(json.dumps(prices_to_json(prices))) == prices
    for case in vector["cases"]:
        quote = prices.quote(case["model"], instant_us(case["at"]), case.get("unpriced", "deny"))
        micros = quote.price.micros(usage_of(case.get("usage", {}))) if quote.price else 0
        assert {"word": quote.word, "by": quote.by, "micros": micros} == case["expect"], case


@pytest.mark.parametrize("vector", load("settle"), ids=lambda vector: vector["id"])
def test_a_settlement(vector):
    """Each step of a reservation charges what the scenario says."""
    Fleet(vector).play(vector["steps"])
