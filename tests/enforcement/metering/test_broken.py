"""Answers above their bound are counted, with bounded names and numbers, and the next requests reserve more."""

import json

import pytest

from enforcement.metering.amounts import Usage
from enforcement.metering.broken import BEYOND, MAX_PAIRS, MAX_RAISED, BrokenBounds
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.opening import RefusedOpening, open_request
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.refusals import OTHER
from enforcement.metering.request import read_request
from enforcement.metering.settlement import Settlement
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering

MONEY = Limit(name="usd", unit="micros", quota=10**12, calendar="month")
TPM = Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)
BOOK = Prices(1, (Price("m*", Rates(1_000_000, 2_000_000)),))
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def opened(broken, model="m-1", prices=BOOK, limit=MONEY, estimate="bound", image=None, **body):
    asked = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}], **body}
    request = read_request("POST", "/v1/chat/completions", {}.get, json.dumps(asked).encode())
    return open_request(
        request,
        [limit],
        Metering(estimate, part_tokens={"image": image} if image else {}),
        prices,
        0,
        raised=broken.raised,
    )


def settle(broken, opening, more_input=0, more_output=0, at_us=0):
    """Settle a request whose provider reports so many tokens more than were estimated."""
    estimate = opening.estimate
    counts = Usage(max(0, estimate.input + more_input), output=max(0, estimate.output + more_output))
    exchange = MeteredExchange(opening, at_us)
    exchange.answered(200, None, at_us)
    exchange.reservation.reported(counts, at_us, final=True)
    broken.look("proj_1", at_us, opening, exchange.reservation.ended(at_us))


def test_an_answer_above_its_bound_raises_the_addend_of_the_pattern_at_once():
    """For each model that has the price, by as many tokens as were reported beyond those that are added already."""
    broken = BrokenBounds()
    first = opened(broken)
    settle(broken, first, more_input=700, at_us=120_000_000)
    second = opened(broken, "m-2")
    settle(broken, second, more_input=80)

    assert second.estimate.input == first.estimate.input + 700
    assert second.estimated_costs[0] == first.estimated_costs[0] + 700
    assert opened(broken).estimate.input == first.estimate.input + 780
    assert broken.total == {("m-1", "openai-chat"): 1, ("m-2", "openai-chat"): 1}
    assert broken.take() == [
        [2, "proj_1", "m-1", "openai-chat", "m*", 1, 700],
        [0, "proj_1", "m-2", "openai-chat", "m*", 1, 780],
    ]
    assert broken.take() == []


def test_tokens_that_are_added_for_tools_are_in_it():
    broken = BrokenBounds()
    first = opened(broken, tools=TOOLS)
    settle(broken, first, more_input=100)

    assert broken.raised == {"m*": 1_024 + 100}
    assert opened(broken, tools=TOOLS).estimate.input == first.estimate.input + 100


@pytest.mark.parametrize("more_input", [700, 10**6])
def test_requests_with_other_parts_raise_nothing_for_others(more_input):
    """The number of their parts may be too low, for which nobody else is to pay. It is not reported as an addend."""
    parts = [{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}]
    messages, broken = [{"role": "user", "content": parts}], BrokenBounds()
    plain, first = opened(broken), opened(broken, messages=messages, image=100)
    settle(broken, first, more_input=more_input)

    assert opened(broken).estimate == plain.estimate
    assert broken.take() == [[0, "proj_1", "m-1", "openai-chat", "m*", 1, 0]]
    again = opened(broken, messages=messages, image=100)
    if more_input == 700:
        assert again.estimate.input == first.estimate.input + 700
    else:
        assert "to requests for 'm*' with parts that are not text" in again.detail


@pytest.mark.parametrize(("more_input", "more_output"), [(0, 0), (-9, 0), (0, -9)])
def test_a_bound_that_holds_says_nothing(more_input, more_output):
    broken = BrokenBounds()
    settle(broken, opened(broken), more_input, more_output)
    assert (broken.total, broken.raised, broken.take()) == ({}, {}, [])


def test_a_typical_estimate_is_no_bound():
    broken = BrokenBounds()
    settle(broken, opened(broken, estimate="typical"), more_input=700)
    assert (broken.total, broken.raised) == ({}, {})


def test_more_output_or_money_is_counted_and_raises_nothing():
    """A dearer model may answer, whatever its tokens."""
    broken = BrokenBounds()
    settle(broken, opened(broken), more_output=1)
    opening = opened(broken, "m-2")
    broken.look("proj_1", 0, opening, Settlement("exact", (opening.estimated_costs[0] + 1,), Usage(1)))

    assert broken.raised == {}
    assert [row[2:] for row in broken.take()] == [
        ["m-1", "openai-chat", "m*", 1, 0],
        ["m-2", "openai-chat", "m*", 1, 0],
    ]


@pytest.mark.parametrize("limit", [MONEY, TPM])
def test_beyond_what_may_be_added_requests_are_refused_by_name(limit):
    """Those of the pattern, and of no other."""
    broken = BrokenBounds()
    both = Prices(1, (*BOOK.overrides, Price("n", Rates(1, 1))))
    settle(broken, opened(broken), more_input=10**6)

    refused = opened(broken, limit=limit)
    assert isinstance(refused, RefusedOpening)
    assert (refused.reason, broken.raised) == ("unmetered", {"m*": BEYOND})
    assert "the provider adds more than 65,536 tokens to requests for 'm*'" in refused.detail
    assert not isinstance(opened(broken, "n", both, limit), RefusedOpening)
    assert not isinstance(opened(broken, limit=limit, estimate="typical"), RefusedOpening)


def test_exactly_so_many_may_be_added():
    broken = BrokenBounds()
    first = opened(broken)
    settle(broken, first, more_input=65_536)
    assert opened(broken).estimate.input == first.estimate.input + 65_536


def test_without_a_price_the_model_itself_is_raised():
    """Nothing is published for it. Its row names no pattern if it could not be one."""
    broken = BrokenBounds()
    for model in ("m-1", "m\n"):
        settle(broken, opened(broken, model, Prices(1), TPM), more_input=5)

    assert broken.raised == {"m-1": 5, "m\n": 5}
    assert [row[2:5] for row in broken.take()] == [["m-1", "openai-chat", "m-1"], ["m?", "openai-chat", ""]]


def test_names_are_bounded():
    """Clients choose them."""
    broken = BrokenBounds()
    for number in range(MAX_RAISED + 5):
        opening = opened(broken, f"x\x07{number}", Prices(1), TPM)
        broken.look("proj_1", 0, opening, Settlement("exact", (0,), Usage(10**5)))

    assert len(broken.total) == MAX_PAIRS + 1
    assert broken.total[OTHER, "openai-chat"] == MAX_RAISED + 5 - MAX_PAIRS
    assert ("x?0", "openai-chat") in broken.total
    assert len(broken.raised) == MAX_RAISED
    assert broken.most(1) == [(OTHER, "openai-chat", MAX_RAISED + 5 - MAX_PAIRS)]
    assert sum(row[5] for row in broken.take()) == MAX_RAISED + 5


def test_a_published_price_without_a_bound_is_refused():
    price = Price("m", Rates(1, 1), added_tokens=65_536, unbounded=True)
    refused = opened(BrokenBounds(), "m", Prices(1, (), (price,)))
    assert "more than 65,536 tokens to requests for 'm'" in refused.detail
