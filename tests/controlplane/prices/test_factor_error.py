"""How far typical estimates are from what providers report, without and with the factors that were learned."""

import json
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.prices.actions import learn_factors
from controlplane.prices.models import ModelPrice
from controlplane.usage.batches import StreamBatch
from controlplane.usage.rollup import add_metered
from enforcement.metering.opening import Opening, open_request
from enforcement.metering.price_documents import parse_prices
from enforcement.metering.prices import Prices
from enforcement.metering.request import read_request
from enforcement.metering.settlement import Settlement
from enforcement.metering.tally import MeteredTally
from enforcement.metering.usage import Usage
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering
from enforcement.model.strict_json import dumps

pytestmark = pytest.mark.django_db(transaction=True)

# Bytes of a text, and its tokens by the public tokenizers cl100k_base and o200k_base: paragraphs of the documentation,
# pieces of this program, and requests in Chinese, Japanese and Korean.
RECORDED = {
    "english": (
        (441, 101, 101),
        (387, 93, 93),
        (1003, 210, 213),
        (419, 109, 109),
        (1840, 443, 439),
        (948, 220, 220),
        (424, 97, 97),
        (482, 112, 110),
        (1379, 331, 331),
        (1173, 277, 277),
        (512, 121, 121),
        (375, 80, 80),
        (1076, 239, 238),
        (1217, 290, 290),
        (216, 51, 51),
        (1546, 365, 367),
    ),
    "code": (
        (690, 180, 184),
        (1195, 299, 293),
        (1909, 518, 518),
        (707, 177, 179),
        (1633, 415, 424),
        (1117, 268, 270),
        (3696, 836, 835),
        (489, 127, 127),
        (2251, 567, 572),
        (1170, 271, 263),
        (2249, 535, 541),
        (1172, 299, 304),
        (1504, 347, 347),
        (1580, 436, 439),
        (1892, 517, 521),
        (1115, 304, 304),
    ),
    "cjk": (
        (235, 89, 70),
        (222, 88, 54),
        (232, 76, 55),
        (224, 74, 50),
        (220, 84, 55),
        (233, 76, 55),
        (255, 94, 63),
        (270, 84, 60),
        (255, 94, 69),
        (267, 84, 52),
        (252, 90, 64),
        (266, 103, 62),
        (277, 95, 57),
        (255, 99, 60),
        (258, 99, 62),
        (241, 89, 62),
    ),
}
MODELS = {"cl100k": 1, "o200k": 2}
# Tokens that a chat API puts around one message, and before its answer.
AROUND = 7
LIMIT = Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)


@dataclass(frozen=True)
class Mixture:
    """Requests for one model: how often each text of a kind comes. Half of the texts teach, the others judge."""

    model: str
    shares: dict[str, int]

    def requests(self, half: int) -> list[tuple[int, int]]:
        """Return the bytes of each request, and its reported input tokens."""
        column = MODELS[self.model]
        return [
            (row[0], row[column] + AROUND)
            for kind, share in self.shares.items()
            for row in RECORDED[kind][half::2]
            for _ in range(share)
        ]


def opened(model: str, size: int, prices: Prices) -> Opening:
    """Return a request with a text of this size, as a door opens it."""
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "x" * size}]}
    asked = read_request("POST", "/v1/chat/completions", lambda name: None, json.dumps(body).encode())
    opening = open_request(asked, [LIMIT], Metering(), prices, 0)
    assert isinstance(opening, Opening)
    return opening


def error(mixture: Mixture, prices: Prices) -> float:
    """Return the sum of the differences between reported and estimated input, by the sum of what was reported."""
    found = [(read, opened(mixture.model, size, prices).estimate.input) for size, read in mixture.requests(1)]
    return sum(abs(read - estimated) for read, estimated in found) / sum(read for read, _ in found)


def teach(mixture: Mixture, now) -> None:
    """Count the requests on three days, as doors report them."""
    tally, minute_us = MeteredTally(), 60_000_000
    for day in (1, 2, 3):
        at_us = int((now - timedelta(days=day)).timestamp()) // 60 * minute_us
        for number, (size, read) in enumerate(mixture.requests(0) * 3):
            settlement = Settlement("exact", (0,), Usage(read, output=5))
            tally.settled(("proj_1", f"tok_{number % 3}"), at_us, opened(mixture.model, size, Prices(1)), settlement)
    fields = {"id": "proxy-1-1", "rows": "[]", "metered": json.dumps(tally.take(1_000))}
    add_metered(StreamBatch.parse("1-0", fields, now).metered, now)


def errors(mixture: Mixture, actor) -> tuple[float, float]:
    """Return the error without any factor, and with the factor that was learned."""
    now = timezone.now()
    teach(mixture, now)
    learn_factors(actor, now)
    document = ModelPrice.objects.as_document(1)
    return error(mixture, Prices(1)), error(mixture, parse_prices(dumps(document)) if document else Prices(1))


@pytest.mark.parametrize(
    ("model", "shares", "before", "after"),
    [
        ("cl100k", {"cjk": 1}, 0.30, 0.12),  # 0.339 -> 0.086
        ("cl100k", {"english": 1, "code": 1, "cjk": 16}, 0.25, 0.19),  # 0.270 -> 0.164
    ],
)
def test_a_factor_brings_estimates_nearer(store, actor, model, shares, before, after):
    """Where a token of a model has less text than four bytes."""
    without, learned = errors(Mixture(model, shares), actor)
    assert without > before
    assert learned < after


@pytest.mark.parametrize(
    ("model", "shares", "most"),
    [
        ("cl100k", {"english": 1}, 0.05),  # 0.041
        ("cl100k", {"code": 1}, 0.08),  # 0.062
        ("cl100k", {"english": 1, "code": 1, "cjk": 1}, 0.12),  # 0.100
        ("o200k", {"english": 1, "code": 1, "cjk": 1}, 0.08),  # 0.056
        ("o200k", {"cjk": 1}, 0.10),  # 0.061 -> 0.088, because the texts that teach have a little more tokens
    ],
)
def test_estimates_that_are_near_stay_so(store, actor, model, shares, most):
    """Four bytes a token is what most text has, so most models get no factor."""
    without, learned = errors(Mixture(model, shares), actor)
    assert max(without, learned) < most
