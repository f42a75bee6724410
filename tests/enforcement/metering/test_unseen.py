"""What nobody saw is not given back."""

import json

import pytest

from enforcement.metering.amounts import Usage
from enforcement.metering.charges import terms_of
from enforcement.metering.estimate import Estimate
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.opening import open_request
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.reasoning import MAX_REASONERS, Reasoners
from enforcement.metering.request import read_request
from enforcement.metering.settlement import IN_BETWEEN, DrainBounds, MeteredReservation
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering

PRICES = Prices(1, prices=(Price("*", Rates(2_000_000, 10_000_000, 200_000)),))
LIMITS = [
    Limit(name=unit, unit=unit, quota=10**9, calendar="lifetime") for unit in ("requests", "output_tokens", "micros")
]
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
COMPLETIONS = "/v1/completions"
GEMINI = "/v1beta/models/gemini-1.5-pro:streamGenerateContent?alt=sse"
ASKED = {"model": "gpt-4o", "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "x" * 40}]}


def reservation(*, bound: bool, **more) -> MeteredReservation:
    terms = terms_of([*LIMITS, *more.pop("limits", ())], PRICES, "m", 0)
    return MeteredReservation(terms, Estimate(10, 100, bound=bound), 0)


def exchange(body: dict, target: str = CHAT, reasoners: Reasoners | None = None, **rules) -> MeteredExchange:
    """Return a request that was charged under a policy of these rules."""
    asked = read_request("POST", target, {}.get, json.dumps(body).encode())
    return MeteredExchange(open_request(asked, LIMITS, Metering(**rules), PRICES, 0), 0, reasoners=reasoners)


def sse(*events: dict) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def left(found: MeteredExchange, answer: bytes = b"") -> tuple[str, int]:
    """Return how a request is settled whose client leaves after these bytes, and the output that is charged."""
    if answer:
        found.answered(200, None, 0)
        found.feed(answer)
    settlement = found.client_left(0, sent=True)
    return settlement.settled_as, settlement.costs[1]


def test_a_bound_is_kept_whatever_ends_the_request():
    """The provider may have generated all of it."""
    for end in (
        lambda it: it.client_left(0),
        lambda it: it.ended(0),
        lambda it: it.ended(0, whole=True),
        lambda it: it.answered(200, 0) or it.streamed(8, 8, 0) or it.ended(0),
        lambda it: it.reported(Usage(10, output=1), 0, final=False) or it.ended(0),
        lambda it: it.client_left(0, drain=DrainBounds(ms=1)) or it.passed(2_000),
        lambda it: it.client_left(0, drain=DrainBounds(bytes=1)) or it.streamed(8, 8, 0),
    ):
        settlement = end(reservation(bound=True))
        assert (settlement.settled_as, settlement.costs) == ("estimated", (1, 100, 1_020))


def test_a_last_word_and_a_request_that_was_not_sent_are_settled_by_what_they_are():
    """Nothing more is charged than before."""
    word = reservation(bound=True)
    word.reported(Usage(10, output=1), 0, final=True)
    assert word.client_left(0).settled_as == "exact"
    assert reservation(bound=True).client_left(0, sent=False).settled_as == "nothing"
    assert reservation(bound=True).refused(None, 0).settled_as == "nothing"
    drained = reservation(bound=True)
    assert drained.client_left(0, drain=DrainBounds()) is None
    assert drained.reported(Usage(10, output=7), 599_000_000, final=True).settled_as == "drained"


def test_more_than_the_estimate_is_charged_if_it_was_reported():
    """A broken bound is known then, although the last word is missing."""
    found = reservation(bound=True)
    found.reported(Usage(500, output=1), 0, final=False)
    settlement = found.ended(0)
    assert (settlement.settled_as, settlement.costs) == ("estimated", (1, 100, 1_020))
    found = reservation(bound=True)
    found.reported(Usage(5_000, output=1), 0, final=False)
    assert found.ended(0).costs == (1, 100, 10_010)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("status", [408, 499, 502, 504, 520, 524, 527])
def test_a_status_of_something_in_between_is_no_word_of_the_provider(status, bound):
    """Nobody has seen what the provider answered, so that a typical estimate is kept, too."""
    ends = []
    for end in (lambda it: it.answered(status, 0) or it.ended(0), lambda it: it.refused(status, 0)):
        settlement = end(reservation(bound=bound))
        ends.append((settlement.settled_as, settlement.costs[1]))
    assert ends == [("estimated", 100)] * 2


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503, 528, 529])
def test_a_refusal_costs_nothing(status):
    assert status not in IN_BETWEEN
    for end in (lambda it: it.answered(status, 0) or it.ended(0), lambda it: it.refused(status, 0)):
        settlement = end(reservation(bound=True))
        assert (settlement.settled_as, settlement.costs) == ("nothing", (1, 0, 0))


@pytest.mark.parametrize(
    "begin",
    [
        lambda it: it.answered(200, 0),
        lambda it: it.streamed(8, 8, 0),
        lambda it: it.reported(Usage(1, output=1), 0, final=False),
    ],
)
def test_an_error_after_a_part_of_the_answer_does_not_undo_it(begin):
    """An SDK raises the error of an event with a status of its own."""
    for end in (lambda it: it.refused(500, 0), lambda it: it.answered(500, 0) or it.ended(0)):
        found = reservation(bound=True)
        begin(found)
        assert end(found).settled_as == "estimated"


def test_limits_that_spare_errors_do_not_spare_what_may_have_been_answered():
    """Only requests are spared then, because a client could otherwise wait for a timeout and pay nothing."""
    spared = [Limit(name=f"s{i}", unit=unit, quota=10**9, calendar="lifetime", charge_on=("2xx",))
              for i, unit in enumerate(("requests", "output_tokens"))]  # fmt: skip
    found = reservation(bound=True, limits=spared)
    assert found.refused(504, 0).costs == (1, 100, 1_020, 0, 100)
    found = reservation(bound=True, limits=spared)
    assert found.refused(500, 0).costs == (1, 0, 0, 0, 0)


WORD = {"choices": [{"delta": {"content": "word"}}]}


@pytest.mark.parametrize(
    ("body", "target", "answer"),
    [
        ({**ASKED, "stream": False}, CHAT, b""),
        ({**ASKED, "stream": False}, CHAT, b'{"choices": ['),
        ({**ASKED, "model": "o3-mini"}, CHAT, sse(WORD)),
        ({**ASKED, "model": "openai/gpt-5.1"}, CHAT, sse(WORD)),
        ({**ASKED, "model": "deepseek-reasoner"}, CHAT, sse(WORD)),
        ({**ASKED, "reasoning_effort": "low"}, CHAT, sse(WORD)),
        ({**ASKED, "reasoning": {"max_tokens": 50}}, CHAT, sse(WORD)),
        ({**ASKED, "extra_body": {"google": {"thinking_config": {"thinking_budget": 9}}}}, CHAT, sse(WORD)),
        (ASKED, CHAT, sse({"choices": [{"delta": {"reasoning_content": "hm"}}]})),
        (ASKED, CHAT, sse({"choices": [{"delta": {"reasoning_details": [{"type": "x"}]}}]})),
        (ASKED, CHAT, sse({**WORD, "model": "o4-mini-2025-04-16"})),
        ({**ASKED, "thinking": {"type": "enabled", "budget_tokens": 50}}, MESSAGES, sse({"type": "ping"})),
        (ASKED, MESSAGES, sse({"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}})),
        (ASKED, MESSAGES, sse({"type": "content_block_start", "content_block": {"type": "redacted_thinking"}})),
        (ASKED, "/v1/responses", sse({"type": "response.output_item.added", "item": {"type": "reasoning"}})),
        (ASKED, "/v1/responses", sse({"type": "response.reasoning_summary_text.delta", "delta": "hm"})),
        (ASKED, GEMINI, sse({"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}]})),
        (ASKED, GEMINI, sse({"usageMetadata": {"promptTokenCount": 9, "thoughtsTokenCount": 3}})),
        (ASKED, GEMINI.replace("1.5", "2.5"), sse({"candidates": []})),
    ],
)
def test_output_that_is_hidden_by_its_kind_keeps_a_typical_estimate(body, target, answer):
    body = {"contents": [], "generationConfig": {"maxOutputTokens": 100}} if target.startswith("/v1beta") else body
    body = {**body, "max_output_tokens": 100} if target == "/v1/responses" else body
    assert left(exchange(body, target), answer) == ("estimated", 100)


@pytest.mark.parametrize(
    ("body", "target", "answer", "seen"),
    [
        (ASKED, CHAT, sse(WORD), 1),
        (ASKED, CHAT, b"", 0),
        ({**ASKED, "reasoning_effort": "none"}, CHAT, sse(WORD), 1),
        ({**ASKED, "thinking": {"type": "disabled"}}, CHAT, sse(WORD), 1),
        ({**ASKED, "enable_thinking": False}, CHAT, sse(WORD), 1),
        ({**ASKED, "model": "claude-3-5-haiku-latest"}, MESSAGES, sse({"type": "ping"}), 0),
        ({**ASKED, "model": "mistral-large"}, CHAT, sse(WORD), 1),
    ],
)
def test_output_that_is_all_to_be_seen_is_charged_as_it_was_seen(body, target, answer, seen):
    assert left(exchange(body, target), answer) == ("observed", seen)
    assert left(exchange(body, target, estimate="bound"), answer) == ("estimated", 100)


@pytest.mark.parametrize(
    "end",
    [
        lambda it: it.answered(524, None, 0) or (it.feed(b"<html>"), it.ended(0, whole=True)[1])[1],
        lambda it: it.refused(502, 0),
    ],
)
def test_a_typical_estimate_is_kept_if_something_in_between_answered(end):
    """A client could otherwise wait for a timeout and pay for its input alone."""
    settlement = end(exchange(ASKED))
    assert (settlement.settled_as, settlement.costs[1]) == ("estimated", 100)


def test_a_request_that_was_not_sent_or_found_no_connection_costs_nothing():
    for end in (
        lambda it: it.client_left(0, sent=False),
        lambda it: it.refused(None, 0),
        lambda it: it.answered_here(502, 0),
    ):
        settlement = end(exchange(ASKED))
        assert (settlement.settled_as, settlement.costs) == ("nothing", (1, 0, 0))


def test_a_whole_answer_in_one_piece_shows_all_of_its_output():
    """It reports no usage, and nothing of it is hidden."""
    found = exchange({**ASKED, "stream": False})
    found.answered(200, None, 0)
    found.feed(b'{"choices": [{"message": {"content": "word"}}]}')
    _, settlement = found.ended(0, whole=True)
    assert (settlement.settled_as, settlement.costs[1]) == ("observed", 1)


@pytest.mark.parametrize(
    ("events", "target", "settled_as"),
    [
        ([WORD, {"error": {"message": "overloaded"}}], CHAT, "estimated"),
        ([{"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
          {"type": "error", "error": {"type": "overloaded_error"}}], MESSAGES, "estimated"),
        ([{"type": "response.failed", "response": {"usage": None}}], RESPONSES, "estimated"),
        ([{"type": "response.failed", "response": {"usage": {"input_tokens": 9, "output_tokens": 9}}}],
         RESPONSES, "exact"),
        ([WORD, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}, {"error": {}}], CHAT, "exact"),
    ],
)  # fmt: skip
def test_an_answer_that_ends_in_an_error_event_keeps_a_bound_unless_it_has_usage(events, target, settled_as):
    asked = {"model": "gpt-4o", "max_output_tokens": 100, "stream": True, "input": "x" * 40}
    found = exchange(asked if target == RESPONSES else ASKED, target, estimate="bound")
    found.answered(200, None, 0)
    found.feed(sse(*events))
    assert found.ended(0, whole=True)[1].settled_as == settled_as


RUNNING = {"choices": [{"delta": {"content": "word"}, "finish_reason": None}],
           "usage": {"prompt_tokens": 9, "completion_tokens": 1}}  # fmt: skip
STOPPED = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
CHUNK = {"candidates": [{"content": {"parts": [{"text": "word"}]}}],
         "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 1}}  # fmt: skip
FAILED = {"error": {"code": 503}}
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("answer", "target", "settled_as"),
    [
        (sse(RUNNING, RUNNING), CHAT, "estimated"),
        (sse(RUNNING, FAILED), CHAT, "estimated"),
        (sse(RUNNING, FAILED) + DONE, CHAT, "estimated"),
        (sse(RUNNING, STOPPED, FAILED), CHAT, "estimated"),
        (sse(RUNNING, {"choices": [{"delta": {}, "finish_reason": "error"}]}), CHAT, "estimated"),
        (sse(RUNNING, STOPPED), CHAT, "exact"),
        (sse(RUNNING) + DONE, CHAT, "exact"),
        (sse(RUNNING, {**RUNNING, **FAILED}) + DONE, CHAT, "exact"),
        (sse(RUNNING, STOPPED), COMPLETIONS, "exact"),
        (sse(RUNNING, RUNNING), COMPLETIONS, "estimated"),
        (sse(CHUNK, CHUNK), GEMINI, "estimated"),
        (sse(CHUNK, FAILED), GEMINI, "estimated"),
        (json.dumps([CHUNK, CHUNK]).encode(), GEMINI, "estimated"),
        (json.dumps([CHUNK, FAILED]).encode(), GEMINI, "estimated"),
        (sse({**CHUNK, "candidates": [{"finishReason": "STOP"}]}, FAILED), GEMINI, "estimated"),
        (sse(CHUNK, {**CHUNK, "candidates": [{"finishReason": "STOP"}]}), GEMINI, "exact"),
        (json.dumps([CHUNK, {**CHUNK, "promptFeedback": {"blockReason": "OTHER"}}]).encode(), GEMINI, "exact"),
        (json.dumps(CHUNK).encode(), GEMINI, "exact"),
    ],
)
def test_usage_that_runs_is_the_last_word_only_of_an_answer_that_is_complete(answer, target, settled_as):
    prompt = {"model": "m", "max_tokens": 100, "stream": True, "prompt": "x"}
    gemini = {"contents": [], "generationConfig": {"maxOutputTokens": 100}}
    found = exchange({GEMINI: gemini, COMPLETIONS: prompt}.get(target, ASKED), target, estimate="bound")
    found.answered(200, None, 0)
    found.feed(answer)
    assert found.ended(0, whole=True)[1].settled_as == settled_as


THOUGHT = {"prompt_tokens": 10, "completion_tokens": 60, "completion_tokens_details": {"reasoning_tokens": 55}}
SHOWN = {
    CHAT: sse({"choices": [{"delta": {"content": "hi"}}]}, {"choices": [], "usage": THOUGHT}),
    MESSAGES: sse({"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}),
    RESPONSES: sse({"type": "response.output_item.added", "item": {"type": "reasoning"}}),
}


def answered(reasoners: Reasoners, target: str, answer: bytes, **more) -> None:
    """Play a request whose answer comes to its end."""
    found = exchange({**ASKED, "model": "mist-1", **more}, target, reasoners=reasoners)
    found.answered(200, None, 0)
    found.feed(answer)
    found.ended(0, whole=True)


@pytest.mark.parametrize("target", SHOWN)
def test_a_model_that_has_shown_that_it_reasons_may_reason_unseen(target):
    """Its name says nothing. Who leaves it before it has said a word has cost what it thought until then."""
    reasoners = Reasoners()
    assert left(exchange({**ASKED, "model": "mist-1"}, reasoners=reasoners))[0] == "observed"
    answered(reasoners, target, SHOWN[target])

    assert left(exchange({**ASKED, "model": "mist-1"}, reasoners=reasoners)) == ("estimated", 100)
    assert left(exchange({**ASKED, "model": "mist-2"}, reasoners=reasoners))[0] == "observed"


def test_a_model_that_was_asked_to_reason_may_do_without():
    """Until it reasons without being asked: no client can have it taken for one that does not."""
    reasoners = Reasoners()
    answered(reasoners, MESSAGES, SHOWN[MESSAGES], thinking={"type": "enabled", "budget_tokens": 50})
    assert left(exchange({**ASKED, "model": "mist-1"}, MESSAGES, reasoners=reasoners))[0] == "observed"

    answered(reasoners, MESSAGES, SHOWN[MESSAGES])
    assert left(exchange({**ASKED, "model": "mist-1"}, MESSAGES, reasoners=reasoners))[0] == "estimated"


def test_so_many_models_are_known_to_reason():
    """Clients choose their names."""
    reasoners = Reasoners()
    for number in range(MAX_REASONERS + 5):
        reasoners.saw(f"m{number}", dict)

    assert "m0" in reasoners
    assert f"m{MAX_REASONERS}" not in reasoners
