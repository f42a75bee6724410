"""Make the answers of a fake provider: what they say, how they report their tokens, and what it would invoice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from enforcement.metering.charges import Counts
from enforcement.proof.metering.wire import DONE

NORMAL: Final = "normal"
MISSING: Final = "missing"
REPORTS: Final = (*[NORMAL] * 8, "null", "twice", "every", "zeros", MISSING)
"""How an answer reports its tokens: once, as null first, twice, in every event, with explicit zeros, or not at all."""

Events = list[tuple[str, object]]


@dataclass(slots=True)
class Draft:
    """
    An answer before it is written.

    Attributes:
        format: As the meter names it.
        model: The model that was asked for.
        texts: For each choice its text, in pieces.
        counts: The tokens that are invoiced.
        reasoning: Tokens of output without text.
        report: One of :data:`REPORTS`.
        is_tool: Whether the text is the arguments of a tool.
        told: Whether the client asked for a report in the stream. Some formats give none otherwise.
    """

    format: str
    model: str
    texts: list[list[str]]
    counts: Counts
    reasoning: int = 0
    report: str = NORMAL
    is_tool: bool = False
    told: bool = True

    @property
    def reports(self) -> bool:
        """Whether the answer, if it comes whole, says what it cost."""
        return self.report != MISSING

    def said(self) -> list[str]:
        """Return the whole text of each choice."""
        return ["".join(pieces) for pieces in self.texts]


def usage_of(draft: Draft, share: float = 1.0) -> dict[str, object]:
    """Return a report in the words of the draft's format, of all tokens or of a share of the output."""
    counts = draft.counts._replace(output=int(draft.counts.output * share))
    return _USAGE[draft.format](counts, min(draft.reasoning, counts.output), draft.report == "zeros")


def _openai_usage(counts: Counts, reasoning: int, zeros: bool) -> dict[str, object]:
    total = counts.input + counts.cached_input
    report: dict[str, object] = {"prompt_tokens": total, "completion_tokens": counts.output}
    if counts.cached_input or zeros:
        report["prompt_tokens_details"] = {"cached_tokens": counts.cached_input, "audio_tokens": 0}
    if reasoning or zeros:
        report["completion_tokens_details"] = {"reasoning_tokens": reasoning, "audio_tokens": 0}
    return report | {"total_tokens": total + counts.output}


def _responses_usage(counts: Counts, reasoning: int, zeros: bool) -> dict[str, object]:
    total = counts.input + counts.cached_input
    report: dict[str, object] = {"input_tokens": total, "output_tokens": counts.output}
    if counts.cached_input or zeros:
        report["input_tokens_details"] = {"cached_tokens": counts.cached_input}
    return report | {"output_tokens_details": {"reasoning_tokens": reasoning}, "total_tokens": total + counts.output}


def _messages_usage(counts: Counts, reasoning: int, zeros: bool) -> dict[str, object]:
    report: dict[str, object] = {"input_tokens": counts.input, "output_tokens": counts.output}
    if counts.cached_input or zeros:
        report["cache_read_input_tokens"] = counts.cached_input
    if counts.cache_write or zeros:
        report["cache_creation_input_tokens"] = counts.cache_write
    return report


def _gemini_usage(counts: Counts, reasoning: int, zeros: bool) -> dict[str, object]:
    report: dict[str, object] = {"promptTokenCount": counts.input + counts.cached_input}
    report["candidatesTokenCount"] = counts.output - reasoning
    if counts.cached_input or zeros:
        report["cachedContentTokenCount"] = counts.cached_input
    if reasoning or zeros:
        report["thoughtsTokenCount"] = reasoning
    return report | {"totalTokenCount": 1}


_USAGE: Final[Mapping[str, Callable[[Counts, int, bool], dict[str, object]]]] = {
    "openai-chat": _openai_usage,
    "openai-completions": _openai_usage,
    "openai-embeddings": _openai_usage,
    "openai-responses": _responses_usage,
    "anthropic-messages": _messages_usage,
    "gemini": _gemini_usage,
}


def body(draft: Draft) -> dict[str, object]:
    """Return the answer as one JSON value."""
    value = _BODIES[draft.format](draft)
    name = "usageMetadata" if draft.format == "gemini" else "usage"
    return value | ({name: usage_of(draft)} if draft.reports else {})


def _chat_message(draft: Draft, text: str) -> dict[str, object]:
    if not draft.is_tool:
        return {"role": "assistant", "content": text}
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _chat_body(draft: Draft) -> dict[str, object]:
    choices = [
        {"index": index, "message": _chat_message(draft, text), "finish_reason": "stop"}
        for index, text in enumerate(draft.said())
    ]
    return {"id": "c", "object": "chat.completion", "model": draft.model, "choices": choices}


def _completions_body(draft: Draft) -> dict[str, object]:
    choices = [{"index": index, "text": text} for index, text in enumerate(draft.said())]
    return {"id": "c", "object": "text_completion", "model": draft.model, "choices": choices}


def _embeddings_body(draft: Draft) -> dict[str, object]:
    rows = [{"object": "embedding", "index": 0, "embedding": [0.1, -2.5e-3]}]
    return {"object": "list", "model": draft.model, "data": rows}


def _responses_body(draft: Draft) -> dict[str, object]:
    text = "".join(draft.said())
    item: dict[str, object] = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    if draft.is_tool:
        item = {"type": "function_call", "name": "f", "arguments": text}
    return {"id": "r", "object": "response", "status": "completed", "model": draft.model, "output": [item]}


def _messages_body(draft: Draft) -> dict[str, object]:
    text = "".join(draft.said())
    block = {"type": "tool_use", "name": "f", "input": {"x": text}} if draft.is_tool else {"type": "text", "text": text}
    return {"type": "message", "model": draft.model, "content": [block], "stop_reason": "end_turn"}


def _gemini_body(draft: Draft) -> dict[str, object]:
    candidates = [_candidate(draft, index, text) for index, text in enumerate(draft.said())]
    return {"candidates": candidates, "modelVersion": draft.model}


def _candidate(draft: Draft, index: int, text: str, reason: str | None = "STOP") -> dict[str, object]:
    part = {"functionCall": {"name": "f", "args": {"x": text}}} if draft.is_tool else {"text": text}
    candidate: dict[str, object] = {"index": index, "content": {"parts": [part]}}
    return candidate | ({"finishReason": reason} if reason else {})


_BODIES: Final[Mapping[str, Callable[[Draft], dict[str, object]]]] = {
    "openai-chat": _chat_body,
    "openai-completions": _completions_body,
    "openai-embeddings": _embeddings_body,
    "openai-responses": _responses_body,
    "anthropic-messages": _messages_body,
    "gemini": _gemini_body,
}


def events(draft: Draft) -> Events:
    """Return the answer as the events of a stream."""
    return _EVENTS[draft.format](draft)


def _rounds(draft: Draft) -> list[tuple[int, str]]:
    """Return the pieces of all choices in turns, each with the index of its choice."""
    longest = max(map(len, draft.texts), default=0)
    return [
        (index, pieces[at]) for at in range(longest) for index, pieces in enumerate(draft.texts) if at < len(pieces)
    ]


def _openai_events(draft: Draft) -> Events:
    chat, rounds = draft.format == "openai-chat", _rounds(draft)
    found: Events = []
    for at, (index, text) in enumerate(rounds):
        choice: dict[str, object] = {"index": index, "finish_reason": None}
        choice |= {"delta": _chat_message(draft, text)} if chat else {"text": text}
        event: dict[str, object] = {"model": draft.model, "choices": [choice]}
        if draft.told and draft.report == "every":
            event["usage"] = usage_of(draft, (at + 1) / len(rounds))
        elif draft.told and draft.report == "null":
            event["usage"] = None
        found.append(("", event))
    if draft.told and draft.reports:
        last: dict[str, object] = {"model": draft.model, "choices": []}
        if draft.report == "twice":  # a report without choices would be the last word, after which a client may leave
            over = {"index": 0, "finish_reason": "stop", "delta": {}, "text": ""}
            found.append(("", {**last, "choices": [over], "usage": usage_of(draft, 0.5)}))
        found.append(("", {**last, "usage": usage_of(draft)}))
    return [*found, ("", DONE)]


def _responses_events(draft: Draft) -> Events:
    kind = "response.function_call_arguments.delta" if draft.is_tool else "response.output_text.delta"
    begun = {"type": "response.created", "response": {"model": draft.model, "usage": None}}
    deltas: Events = [(kind, {"type": kind, "delta": text}) for _, text in _rounds(draft)]
    done = f"{kind.removesuffix('.delta')}.done"
    texts: Events = [(done, {"type": done, "text": "".join(draft.said())})]
    last = "response.incomplete" if draft.report == "twice" else "response.completed"
    return [("", begun), *deltas, *texts, (last, {"type": last, "response": body(draft)})]


def _messages_events(draft: Draft) -> Events:
    first = usage_of(draft, 0.0) | {"output_tokens": 1}
    begun = {"type": "message_start", "message": {"model": draft.model, "content": [], "usage": first}}
    block = {"type": "tool_use", "name": "f", "input": {}} if draft.is_tool else {"type": "text", "text": ""}
    name = "partial_json" if draft.is_tool else "text"
    deltas: Events = [
        (
            "content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": f"{name}_delta", name: text}},
        )
        for _, text in _rounds(draft)
    ]
    ends: Events = []
    if draft.reports:
        last: dict[str, object] = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
        if draft.report == "twice":
            ends.append(("message_delta", {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 2}}))
        given = usage_of(draft) if draft.report == "every" else {"output_tokens": draft.counts.output}
        ends.append(("message_delta", {**last, "usage": given}))
    start: Events = [
        ("message_start", begun),
        ("content_block_start", {"type": "content_block_start", "content_block": block}),
    ]
    return [*start, ("ping", {"type": "ping"}), *deltas, *ends, ("message_stop", {"type": "message_stop"})]


def _gemini_events(draft: Draft) -> Events:
    rounds = _rounds(draft) or [(0, "")]
    result: Events = []
    for at, (index, text) in enumerate(rounds):
        is_last = at == len(rounds) - 1
        value: dict[str, object] = {
            "candidates": [_candidate(draft, index, text, "STOP" if is_last else None)],
            "modelVersion": draft.model,
        }
        if draft.reports and (is_last or draft.report in ("every", "twice")):
            value["usageMetadata"] = usage_of(draft, (at + 1) / len(rounds))
        result.append(("", value))
    return result


_EVENTS: Final[Mapping[str, Callable[[Draft], Events]]] = {
    "openai-chat": _openai_events,
    "openai-completions": _openai_events,
    "openai-responses": _responses_events,
    "anthropic-messages": _messages_events,
    "gemini": _gemini_events,
}


def error_event(format: str) -> tuple[str, object]:
    """Return the event by which a stream says that it fails."""
    error = {"message": "The engine is overloaded.", "type": "overloaded_error", "code": 503}
    named = {"anthropic-messages": {"type": "error", "error": error}, "openai-responses": {"type": "error", **error}}
    return ("error" if format in named else "", named.get(format, {"error": error}))


def texts(dice: Random, tokens: int, choices: int) -> list[list[str]]:
    """Return for each choice the pieces of a text with about its share of the tokens, at least one byte a token."""
    words: Sequence[str] = dice.choice(
        (("word ", "of ", "a"), ("日本", "語", "限度"), ("🙂", "é", "\\", '"'), ("\n", "x"))
    )
    share = tokens // choices
    return [[dice.choice(words) for _ in range(share)] for _ in range(choices)]
