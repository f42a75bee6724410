"""Typical estimates of input: by what is counted in a request, with numbers for its model."""

import json

import pytest

from enforcement.metering.opening import Opening, open_request
from enforcement.metering.prices import NO_PRICES
from enforcement.metering.request import MeteredRequest, read_request
from enforcement.metering.shipped import OWN_TOOLS, SHIPPED
from enforcement.metering.typical import PLAIN, SCALE, Learned, Numbers, groups_of, shipped_tokens, typical_tokens
from enforcement.model.limits import Limit
from enforcement.model.metered import FrozenMapping, Metering
from tests import fit_estimates
from tests.scale import scale

LIMIT = Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)
TOOL = {"name": "look", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def recorded():
    return fit_estimates.recorded()


def asked(path="/v1/messages", **body) -> MeteredRequest:
    """Return a request that was read."""
    whole = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 400}]}
    found = read_request("POST", path, lambda name: None, json.dumps({**whole, **body}).encode())
    assert isinstance(found, MeteredRequest)
    return found


def test_estimates_of_recorded_requests_are_near(recorded):
    """The numbers were fitted to them; the next test judges by others. One token for four bytes errs by 0.43."""
    plain = [row for row in recorded if not row.own_tools]
    numbers = {group: Numbers(*found) for group, found in SHIPPED.items()}

    assert len(plain) == 557
    assert fit_estimates.error(numbers, plain) < 0.20


@pytest.mark.proof
def test_numbers_that_half_of_the_requests_teach_hold_for_the_others(recorded):
    plain = [row for row in recorded if not row.own_tools]

    for seed in range(scale(1, 10)):
        assert fit_estimates.held_out(plain, 2, seed) < 0.26


@pytest.mark.proof
def test_the_shipped_numbers_are_those_of_the_recorded_requests(recorded):
    numbers = fit_estimates.fit([row for row in recorded if not row.own_tools])

    due = fit_estimates.document(numbers, fit_estimates.tools_of(numbers, recorded))
    assert fit_estimates.SHIPPED.read_text() == due


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("claude-sonnet-4-5-20250929", "anthropic/claude-4"),
        ("claude-sonnet-4-20250514", "anthropic/claude-4"),
        ("us.anthropic.claude-opus-4-8-v1:0", "anthropic/claude-5"),
        ("anthropic/claude-3.7-sonnet:thinking", "anthropic/claude-3"),
        (
            "arn:aws:bedrock:us-east-1:0:inference-profile/us.anthropic.claude-3-7-sonnet-20250219-v1:0",
            "anthropic/claude-3",
        ),
        ("gpt-4", "openai/gpt-4"),
        ("GPT-4o-mini", "openai/gpt-4o"),
        ("o3-mini", "openai/gpt-4o"),
        ("openai/gpt-oss-120b", "openai/gpt-oss"),
        ("gpt-5.6-sol", "openai/gpt-5"),
        ("gemini-2.5-flash", "google/gemini-2"),
        ("gemini-3-pro-preview", "google/gemini-3"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta/llama-3"),
        ("meta.llama3-70b-instruct-v1:0", "meta/llama-3"),
        ("mistral-large-latest", "mistral/mistral"),
    ],
)
def test_a_name_says_the_family(model, family):
    """Whatever a host puts before it."""
    assert groups_of(model, "f") == (f"{family}/f", family, family.partition("/")[0])


def test_a_new_model_is_one_of_its_vendor_and_an_unknown_one_of_none():
    assert groups_of("claude-next-40", "f") == ("anthropic/claude-next-40/f", "anthropic")
    assert groups_of("gpt-x", "f") == ("other/gpt-x/f",)
    assert groups_of("", "f") == ("other//f",)
    assert shipped_tokens(asked(model="my-llm")) == 100


def test_a_number_holds_for_each_thing_that_is_counted():
    numbers = Numbers(*(SCALE * value for value in (1, 20, 300, 4_000, 50_000)))

    assert numbers.tokens(7, 6, 5) == 7 + 120 + 1_500 + 4_000 + 50_000
    assert numbers.tokens(7, 6, 0) == 7 + 120 + 50_000
    assert PLAIN.tokens(5, 9, 9) == 2


def test_no_number_makes_a_request_free():
    """A tool in itself may have less than no tokens, as the bytes of its definition count, too."""
    assert Numbers(SCALE // 4, 0, -100 * SCALE, 0, 0).tokens(800, 1, 50) == 100


def test_tools_add_what_the_vendor_says_of_them():
    """Some five hundred tokens for Claude, but not if the model must not call them."""
    plain, tools = shipped_tokens(asked()), shipped_tokens(asked(tools=[TOOL]))

    assert asked(tools=[TOOL, TOOL]).tools == 2
    assert 400 < tools - plain < 600
    assert asked(tools=[TOOL], tool_choice={"type": "none"}).tools == 0
    assert shipped_tokens(asked(tools=[TOOL], tool_choice={"type": "none"})) - plain < 50


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("/v1/chat/completions", {"functions": [{"name": "f"}]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "f"}]}),
        ("/v1beta/models/g:generateContent", {"tools": [{"functionDeclarations": [{"name": "f"}]}]}),
        ("/model/m/converse", {"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]}}),
        ("/v2/chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
)
def test_tools_are_counted_in_every_format(path, body):
    found = asked(path, **body)

    assert (found.tools, found.own_tools) == (1, {})


@pytest.mark.parametrize(("uses", "times"), [(None, 1), (0, 1), (3, 3), (10**9, 10), ("3", 1), (True, 1)])
def test_a_tool_of_the_provider_adds_tokens_for_each_use(uses, times):
    """As many as the request allows, but not any number, and one if it does not say."""
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": uses}
    without = shipped_tokens(asked())
    found = asked(tools=[tool])

    assert list(found.own_tools) == ["web_search_20250305"]
    more = shipped_tokens(found) - without
    assert times * OWN_TOOLS["web_search"] < more < times * OWN_TOOLS["web_search"] + 100


def test_a_tool_that_nobody_knows_adds_nothing():
    found = asked(tools=[{"type": "dream_20270101"}, {"type": 7}])

    assert found.own_tools == {"dream_20270101": 0}
    assert shipped_tokens(found) < shipped_tokens(asked()) + 50


def test_a_request_is_opened_by_its_estimate():
    """One without text has the tokens of its parts alone."""
    found = open_request(asked(tools=[TOOL]), [LIMIT], Metering(), NO_PRICES, 0)
    picture = {"type": "image", "source": {"type": "base64", "data": "AA=="}}
    seen = open_request(
        asked(messages=[{"role": "user", "content": [picture]}]),
        [LIMIT],
        Metering(part_tokens={"image": 70}),
        NO_PRICES,
        0,
    )

    assert isinstance(found, Opening)
    assert isinstance(seen, Opening)
    assert found.estimate.input == shipped_tokens(found.asked)
    assert seen.estimate.input == 70


@pytest.mark.parametrize(
    ("times", "found"), [(3, 2), (2, 2), (1.5, 1.5), (1, 1), (0.6, 0.6), (0.5, 0.5), (0.1, 0.5), (-(10**3), 0.5)]
)
def test_what_was_learned_moves_an_estimate_within_its_band(times, found):
    """Of a request with a tool of the provider, both together."""
    one = asked(model="my-llm", tools=[{"type": "web_search"}])
    shipped = shipped_tokens(one)
    numbers = Numbers(0, 0, 0, 0, round(SCALE * (shipped - OWN_TOOLS["web_search"]) * times))
    tools = {"web_search": max(0, round(OWN_TOOLS["web_search"] * times))}
    learned = Learned(FrozenMapping({"other/my-llm/anthropic-messages": numbers}), FrozenMapping(tools))

    assert typical_tokens(one, learned) == pytest.approx(shipped * found, abs=1)


def test_the_smallest_group_of_which_something_was_learned_counts():
    one, other = asked(), asked(model="gpt-4o")
    shipped = shipped_tokens(one)
    most, least = Numbers(0, 0, 0, 0, 10**9 * SCALE), Numbers(0, 0, 0, 0, 0)
    groups = {"anthropic": most, "anthropic/claude-4": least}

    assert typical_tokens(one, Learned(FrozenMapping(groups))) == 400 // 8
    assert typical_tokens(asked(model="claude-5-new"), Learned(FrozenMapping(groups))) > shipped
    assert typical_tokens(other, Learned(FrozenMapping(groups))) == shipped_tokens(other)


@pytest.mark.parametrize(("per_byte", "factor"), [(100_000, 1_000), (250_000, 1_000), (400_000, 1_600), (10**9, 2_000)])
def test_output_that_was_seen_has_no_fewer_tokens_than_usual(per_byte, factor):
    learned = Learned(FrozenMapping({"other/m/f": Numbers(per_byte, 0, 0, 0, 0)}))

    assert learned.factor_for("m", "f") == factor
    assert learned.factor_for("n", "f") == 1_000
