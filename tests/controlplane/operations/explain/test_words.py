"""An explanation says when a full limit had room again, as the algorithm of the limit has it."""

import random
import re
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.operations.explain.words import next_request
from enforcement import Limit
from enforcement.model.algorithms import Reference
from enforcement.model.instants import to_us
from enforcement.plan.binding import BoundLimit

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "sliding_log", "token_bucket"])
def test_a_full_limit_has_room_when_the_sentence_says(algorithm, seed):
    """Whatever was sent before the denial, one request passes then, or has passed before."""
    dice, limit = random.Random(seed), Limit(name="busy", quota=7, window_seconds=50, algorithm=algorithm)
    counter, at = Reference(), NOON
    while sends(counter, limit, at):
        at += timedelta(seconds=dice.choice([0, 0, 1, 3]))

    seconds = int(re.search(r", (\d+) s after", next_request(limit, at, at))[1])

    assert ("at the latest" in next_request(limit, at, at)) is (algorithm != "fixed_window")
    assert sends(counter, limit, at + timedelta(seconds=seconds))


def sends(counter, limit, at):
    """Return whether one request passes."""
    spec = BoundLimit(limit, "{room}", "token").spec(to_us(at))
    return counter.decide(to_us(at), [("{room}", spec, 1)])[0] == 1


@pytest.mark.parametrize(
    "changed", [{"unit": "micros"}, {"algorithm": "concurrency"}, {"quota": 0}, {"consistency": "leased"}]
)
def test_it_says_nothing_of_what_it_cannot_know(changed):
    """Other units cost any number, slots come back when their owners are done, and leased permits are used later."""
    limit = Limit(**{"name": "busy", "quota": 7, "window_seconds": 50, "algorithm": "token_bucket", **changed})

    assert "later" not in next_request(limit, NOON, NOON)
