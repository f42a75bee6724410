"""How the provider writes an answer in each format. It imports nothing of the product."""

from __future__ import annotations

import json
from typing import Any

from tests.adversary.counting import Bill

VISIBLE = "forty-two"
"""The text of all answers."""

Parts = tuple[list[bytes], list[bytes], list[bytes]]
"""What an answer begins with, its text, and what says how much it was. All in one is a begin alone."""


def _event(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def write(kind: str, path: str, body: dict[str, Any], used: Bill, tells: bool) -> tuple[bool, Parts]:
    """Return whether an answer is a stream, and its parts. *tells* False: it does not say what was used."""
    streamed = "streamGenerateContent" in path or bool(body.get("stream"))
    parts = _WRITE[kind](body, used, streamed, tells)
    return streamed, parts if not streamed or kind != "gemini" or "alt=sse" in path else _as_array(*parts)


def _as_array(*parts: list[bytes]) -> Parts:
    """Return events as the elements of one array."""
    begin, text, last = ([b",\n" + event[6:-2] for event in part] for part in parts)
    return [b"[" + begin[0][2:]], text, [*last, b"]"]


def _whole(value: dict[str, Any]) -> Parts:
    return [json.dumps(value).encode()], [], []


def _with(name: str, usage: Any, tells: bool) -> dict[str, Any]:
    return {name: usage} if tells else {}


def _chat(body: dict[str, Any], used: Bill, streamed: bool, tells: bool) -> Parts:
    usage = {
        "prompt_tokens": used.input, "completion_tokens": used.output, "total_tokens": used.input + used.output,
        "prompt_tokens_details": {
            "cached_tokens": used.tokens.get("read", 0), "audio_tokens": used.tokens.get("audio", 0)
        },
        "completion_tokens_details": {
            "reasoning_tokens": used.thoughts, "audio_tokens": used.tokens.get("audio_out", 0)
        },
    }  # fmt: skip
    head = {"id": "c", "created": 1, "model": used.model, **_tier(used)}
    if not streamed:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": VISIBLE}}
        return _whole({**head, "object": "chat.completion", "choices": [choice], **_with("usage", usage, tells)})
    head["object"] = "chat.completion.chunk"

    options = body.get("stream_options") or {}
    asks = options.get("include_usage") or options.get("continuous_usage_stats")
    running = {"prompt_tokens": used.input, "completion_tokens": 1, "total_tokens": used.input + 1}
    so_far = {"usage": running} if options.get("continuous_usage_stats") else {}

    def chunk(delta: Any, **more: Any) -> bytes:
        return _event({**head, "choices": [{"index": 0, "delta": delta, **more}], **so_far})

    end = [chunk({}, finish_reason="stop")]
    if tells and asks:
        end.append(_event({**head, "choices": [], "usage": usage}))
    return [chunk({"role": "assistant"})], [chunk({"content": VISIBLE})], [*end, _event("[DONE]")]


def _completions(body: dict[str, Any], used: Bill, streamed: bool, tells: bool) -> Parts:
    usage = {"prompt_tokens": used.input, "completion_tokens": used.output}
    choice = {"index": 0, "text": VISIBLE, "finish_reason": "stop"}
    return _whole({"model": used.model, "choices": [choice], **_with("usage", usage, tells)})


def _embeddings(body: dict[str, Any], used: Bill, streamed: bool, tells: bool) -> Parts:
    usage = {"prompt_tokens": used.input, "total_tokens": used.input}
    return _whole({"object": "list", "model": used.model, "data": [], **_with("usage", usage, tells)})


def _responses(body: dict[str, Any], used: Bill, streamed: bool, tells: bool) -> Parts:
    usage = {
        "input_tokens": used.input, "input_tokens_details": {"cached_tokens": used.tokens.get("read", 0)},
        "output_tokens": used.output, "output_tokens_details": {"reasoning_tokens": used.thoughts},
    }  # fmt: skip
    said = {"type": "message", "content": [{"type": "output_text", "text": VISIBLE}]}
    output: list[Any] = [said]
    if used.drawn:
        output.insert(0, {"type": "image_generation_call", "status": "completed", "result": "aGk="})
    response = {"id": "r", "object": "response", "model": used.model, "status": "completed", "output": output}
    response |= {"tools": body.get("tools") or [], **_tier(used), **_with("usage", usage, tells)}
    if used.drawn and tells:
        drawn = {"input_tokens": used.drawn["input"], "output_tokens": used.drawn["output"]}
        response["tool_usage"] = {"image_gen": drawn}
    if not streamed:
        return _whole(response)
    begun = {**response, "status": "in_progress", "output": [], "usage": None}

    def event(name: str, **more: Any) -> bytes:
        return _event({"type": name, **more}, name)

    text = event("response.output_text.delta", delta=VISIBLE)
    return [event("response.created", response=begun)], [text], [event("response.completed", response=response)]


def _messages(body: dict[str, Any], used: Bill, streamed: bool, tells: bool) -> Parts:
    hour, minutes = used.tokens.get("hour", 0), used.tokens.get("write", 0)
    usage = {
        "input_tokens": used.tokens.get("input", 0), "cache_read_input_tokens": used.tokens.get("read", 0),
        "cache_creation_input_tokens": hour + minutes,
        "cache_creation": {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hour},
        "output_tokens": used.output, **used.modifiers,
    }  # fmt: skip
    message = {"id": "m", "type": "message", "role": "assistant", "model": used.model, "stop_reason": "end_turn"}
    message |= {"content": [{"type": "text", "text": VISIBLE}], **_with("usage", usage, tells)}
    if not streamed:
        return _whole(message)
    begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}

    def event(name: str, **more: Any) -> bytes:
        return _event({"type": name, **more}, name)

    begin = [event("message_start", message=begun), event("ping")]
    begin.append(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
    text = event("content_block_delta", index=0, delta={"type": "text_delta", "text": VISIBLE})
    last = event("message_delta", delta={"stop_reason": "end_turn"}, **_with("usage", usage, tells))
    return begin, [text], [event("content_block_stop", index=0), last, event("message_stop")]


def _gemini(body: dict[str, Any], used: Bill, streamed: bool, tells: bool) -> Parts:
    drawn, sung = used.tokens.get("image_out", 0), used.tokens.get("audio_out", 0)
    heard, said = used.tokens.get("audio", 0), used.output - used.thoughts
    usage: dict[str, Any] = {
        "promptTokenCount": used.input, "candidatesTokenCount": said, "thoughtsTokenCount": used.thoughts,
        "cachedContentTokenCount": used.tokens.get("read", 0), "totalTokenCount": used.input + used.output,
        "promptTokensDetails": _modalities(TEXT=used.input - heard, AUDIO=heard),
        "candidatesTokensDetails": _modalities(TEXT=said - drawn - sung, IMAGE=drawn, AUDIO=sung),
    }  # fmt: skip
    if "service_tier" in used.modifiers:
        usage["trafficType"] = f"ON_DEMAND_{used.modifiers['service_tier'].upper()}"

    def chunk(parts: list[Any], reason: str | None, counts: Any) -> dict[str, Any]:
        candidate = {"index": 0, "content": {"role": "model", "parts": parts}}
        candidate |= {"finishReason": reason} if reason else {}
        return {"candidates": [candidate], "modelVersion": used.model, **_with("usageMetadata", counts, tells)}

    text = [{"text": VISIBLE}]
    if not streamed:
        return _whole(chunk(text, "STOP", usage))
    running = {"promptTokenCount": used.input, "candidatesTokenCount": 2, "totalTokenCount": used.input + 2}
    return (
        [_event(chunk([], None, running))],
        # One of many answers may be complete long before the others.
        [_event(chunk(text, "STOP" if "candidateCount" in str(body) else None, running))],
        [_event(chunk([], "STOP", usage))],
    )


def _modalities(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": count} for name, count in counts.items() if count]


def _tier(used: Bill) -> dict[str, str]:
    return {"service_tier": used.modifiers["service_tier"]} if "service_tier" in used.modifiers else {}


_WRITE = {
    "chat": _chat,
    "completions": _completions,
    "embeddings": _embeddings,
    "responses": _responses,
    "messages": _messages,
    "gemini": _gemini,
}


def failure(kind: str) -> bytes:
    """Return the event by which a stream of a format says that it has failed."""
    error = {"type": "overloaded_error", "message": "too many requests"}
    if kind == "responses":
        name, response = "response.failed", {"status": "failed", "error": error, "output": [], "usage": None}
        return _event({"type": name, "response": response}, name)
    return _event({"type": "error", "error": error}, "error" if kind == "messages" else "")
