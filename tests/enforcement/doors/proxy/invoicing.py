"""A provider of models that speaks the formats of OpenAI, Anthropic and Gemini, and writes an invoice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

OUTPUT = 7
"""Tokens of each answer. Its input has one token for each word of the texts in the request."""


class InvoicingProvider:
    """
    An ASGI application.

    Attributes:
        invoice: Input and output tokens of each request that was answered.
        heads: The header fields of each request.
        pause: Seconds before each part of an answer.
        delay: Seconds before an answer.
        refuses: Answer with status 500 and write no invoice.
    """

    def __init__(self) -> None:
        self.invoice: list[tuple[int, int]] = []
        self.heads: list[dict[str, str]] = []
        self.pause = self.delay = 0.0
        self.refuses = False

    @property
    def tokens(self) -> int:
        return sum(sum(row) for row in self.invoice)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.heads.append({name.decode(): value.decode("latin-1") for name, value in scope["headers"]})
        path = scope["path"]
        asked = json.loads(body) if body.startswith(b"{") else {}
        found = next((self._tokens(asked, answer) for end, answer in _ANSWERS.items() if path.endswith(end)), None)
        if self.refuses:
            await _send(send, {"error": {"message": "not now", "type": "server_error"}}, 0.0, 500)
            return
        if found is not None:
            self.invoice.append((found["input"], found["output"]))
            value = found["answer"](asked, found)
        else:
            value = _UNPRICED.get(path, {"error": {"message": f"no such path: {path}"}})
        await asyncio.sleep(self.delay)
        await _send(send, value, self.pause)

    def _tokens(self, asked: Any, answer: Any) -> dict[str, Any]:
        output = 0 if answer is _embeddings else OUTPUT
        return {"input": len(json.dumps(asked).split()), "output": output, "answer": answer}


async def _send(send: Any, value: Any, pause: float, status: int = 200) -> None:
    """Send a JSON value, or a stream of events."""
    is_stream = not isinstance(value, dict)
    kind = b"text/event-stream" if is_stream else b"application/json"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    for event in value if is_stream else ():
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if is_stream else json.dumps(value).encode()})


def _event(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def _chat(asked: Any, found: Any) -> Any:
    usage = {"prompt_tokens": found["input"], "completion_tokens": found["output"]}
    usage["total_tokens"] = sum(usage.values())
    head = {"id": "c1", "created": 1, "model": asked["model"]}
    if asked.get("stream"):
        return _chat_events(head, usage, (asked.get("stream_options") or {}).get("include_usage"))
    message: dict[str, Any] = {"role": "assistant", "content": "It is sunny."}
    reason = "stop"
    if asked.get("tools"):
        call = {"name": "weather", "arguments": '{"city": "Paris"}'}
        message |= {"content": None, "tool_calls": [{"id": "t1", "type": "function", "function": call}]}
        reason = "tool_calls"
    elif asked.get("response_format"):
        message["content"] = '{"city": "Paris"}'
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


def _chat_events(head: Any, usage: Any, tells: bool) -> Iterator[bytes]:
    head = {**head, "object": "chat.completion.chunk"}
    for word in ("It ", "is ", "sunny."):
        yield _event({**head, "choices": [{"index": 0, "delta": {"content": word}}]})
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if tells:
        yield _event({**head, "choices": [], "usage": usage})
    yield _event("[DONE]")


def _embeddings(asked: Any, found: Any) -> Any:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": found["input"], "total_tokens": found["input"]}
    return {"object": "list", "model": asked["model"], "data": [vector], "usage": usage}


def _responses(asked: Any, found: Any) -> Any:
    usage: dict[str, Any] = {"input_tokens": found["input"], "output_tokens": found["output"]}
    usage |= {"total_tokens": sum(usage.values()), "input_tokens_details": {"cached_tokens": 0}}
    usage["output_tokens_details"] = {"reasoning_tokens": 2}
    said = {"type": "output_text", "text": "It is sunny.", "annotations": []}
    item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [said]}
    response = {"id": "r1", "object": "response", "created_at": 1, "model": asked["model"], "status": "completed"}
    response |= {"output": [item], "usage": usage, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    return _response_events(response, item) if asked.get("stream") else response


def _response_events(response: Any, item: Any) -> Iterator[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": [], "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", "output_index": 0, "content_index": 0, "item_id": "m1"}
        | {"part": {"type": "output_text", "text": "", "annotations": []}},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m1", "logprobs": []}
        | {"delta": "It is sunny."},
        {"type": "response.completed", "response": response},
    ]
    for number, event in enumerate(events):
        yield _event({**event, "sequence_number": number}, event["type"])


def _messages(asked: Any, found: Any) -> Any:
    # Anthropic does not count what was read from its cache into input_tokens.
    usage = {"input_tokens": found["input"] - 3, "cache_read_input_tokens": 3, "output_tokens": found["output"]}
    content: list[dict[str, Any]] = [{"type": "text", "text": "It is sunny."}]
    if asked.get("tools"):
        content = [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]
    message = {"id": "m1", "type": "message", "role": "assistant", "model": asked["model"], "content": content}
    message |= {"stop_reason": "tool_use" if asked.get("tools") else "end_turn", "stop_sequence": None, "usage": usage}
    return _message_events(message) if asked.get("stream") else message


def _message_events(message: Any) -> Iterator[bytes]:
    begun = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    block, text = {"type": "text", "text": ""}, {"type": "text_delta", "text": "It is sunny."}
    last = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": text},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": last, "usage": {"output_tokens": message["usage"]["output_tokens"]}},
        {"type": "message_stop"},
    ]
    for event in events:
        yield _event(event, event["type"])


def _gemini(asked: Any, found: Any) -> Any:
    parts: list[dict[str, Any]] = [{"text": "It is sunny."}]
    if asked.get("tools"):
        parts = [{"functionCall": {"name": "weather", "args": {"city": "Paris"}}}]
    elif asked.get("generationConfig", {}).get("responseMimeType") == "application/json":
        parts = [{"text": '{"city": "Paris"}'}]
    candidate = {"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": parts}}
    usage = {"promptTokenCount": found["input"], "candidatesTokenCount": found["output"] - 2, "thoughtsTokenCount": 2}
    usage["totalTokenCount"] = sum(usage.values())
    return {"candidates": [candidate], "modelVersion": "gemini-x", "usageMetadata": usage}


def _gemini_events(asked: Any, found: Any) -> Iterator[bytes]:
    whole = _gemini(asked, found)
    for at, word in enumerate(("It ", "is ", "sunny.")):
        last = at == 2
        content = {"role": "model", "parts": [{"text": word}]}
        chunk = {"index": 0, "content": content, **({"finishReason": "STOP"} if last else {})}
        usage = {**whole["usageMetadata"], **({} if last else {"candidatesTokenCount": at + 1})}
        yield _event({**whole, "candidates": [chunk], "usageMetadata": usage})


_ANSWERS = {
    "/chat/completions": _chat,
    "/embeddings": _embeddings,
    "/responses": _responses,
    "/v1/messages": _messages,
    ":generateContent": _gemini,
    ":streamGenerateContent": _gemini_events,
}
_FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a.jsonl", "purpose": "batch"}
_FILE |= {"status": "processed"}
_BATCH = {"id": "batch-1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-1"}
_BATCH |= {"completion_window": "24h", "status": "validating", "created_at": 1}
_UNPRICED = {
    "/v1/files": _FILE,
    "/v1/batches": _BATCH,
    "/v1/models": {"object": "list", "data": [{"id": "gpt-x", "object": "model", "created": 1, "owned_by": "x"}]},
    "/v1/messages/count_tokens": {"input_tokens": 5},
}
