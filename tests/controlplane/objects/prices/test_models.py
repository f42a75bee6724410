"""What a price may say, at every door."""

from datetime import UTC, datetime

import pytest
from django.core.exceptions import ValidationError

from controlplane.objects.prices.models import ModelPrice
from enforcement.metering.price_documents import MAX_RATE, parse_prices
from enforcement.model.strict_json import dumps
from tests.factories import ModelPriceFactory

pytestmark = pytest.mark.django_db

MAY = datetime(2027, 5, 1, tzinfo=UTC)
JUNE = datetime(2027, 6, 1, 12, 30, tzinfo=UTC)
TIER = {"above_input": 200_000, "input": 2, "output": 3}


@pytest.mark.parametrize(
    ("fields", "column", "words"),
    [
        ({"input": -1}, "input", "Must be an integer from 0 to 1000000000000"),
        ({"output": MAX_RATE + 1}, "output", "Must be an integer from 0 to"),
        ({"cached_input": -5}, "cached_input", "Must be an integer from 0 to"),
        ({"valid_from": JUNE, "valid_until": MAY}, "valid_until", "Must be after from"),
        ({"valid_from": MAY, "valid_until": MAY}, "valid_until", "Must be after from"),
        ({"tiers": {}}, "tiers", "Must be a list of at most 16 items"),
        ({"tiers": [1]}, "tiers", "tiers[0]: must be an object"),
        ({"tiers": [{"above_input": 1, "input": 1}]}, "tiers", "tiers[0].output: is required"),
        ({"tiers": [TIER, TIER]}, "tiers", "tiers[1].above_input: must be an integer from 200001"),
        ({"tiers": [{**TIER, "input": True}]}, "tiers", "tiers[0].input: must be an integer"),
        ({"tiers": [{**TIER, "surprise": 1}]}, "tiers", "tiers[0].surprise: unknown field"),
        ({"pattern": ""}, "pattern", "This field cannot be blank."),
        ({"pattern": "x" * 257}, "pattern", "at most 256 characters"),
        ({"pattern": "gpt\n4"}, "pattern", "printable"),
    ],
)
def test_a_price_that_no_enforcer_would_read_is_refused(fields, column, words):
    """The error is at the field, and says the rule."""
    with pytest.raises(ValidationError) as caught:
        ModelPriceFactory(**fields)
    assert words in " ".join(caught.value.message_dict[column])


@pytest.mark.parametrize("valid_from", [None, MAY])
def test_one_pattern_has_one_price_from_a_date(valid_from):
    ModelPriceFactory(pattern="gpt-*", valid_from=valid_from)
    ModelPriceFactory(pattern="gpt-*", valid_from=JUNE)
    ModelPriceFactory(pattern="gpt-*", valid_from=valid_from, of_the_catalogue=True)
    with pytest.raises(ValidationError, match="There is a price for this pattern"):
        ModelPriceFactory(pattern="gpt-*", valid_from=valid_from)


def test_the_document_says_what_the_rows_say():
    ModelPriceFactory(pattern="gpt-*", valid_from=MAY, valid_until=JUNE, cached_input=0, cache_write=7, tiers=[TIER])
    document = ModelPrice.objects.as_document(9)

    assert document["overrides"] == [
        {
            "model": "gpt-*",
            "from": "2027-05-01T00:00:00Z",
            "until": "2027-06-01T12:30:00Z",
            "input": 1_000_000,
            "output": 4_000_000,
            "cached_input": 0,
            "cache_write": 7,
            "tiers": [TIER],
        }
    ]
    prices = parse_prices(dumps(document))
    assert (prices.revision, prices.currency) == (9, "USD")


def test_without_rows_there_is_no_document():
    assert ModelPrice.objects.as_document(1) is None
