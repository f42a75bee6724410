"""The shapes of metering: a request to a provider through an ASGI door, and a chunk of its answer in each format."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import thread_time_ns
from typing import Any
from zlib import crc32

from benchmarks.compare.async_shapes import TimedAwaits, started
from benchmarks.compare.shapes import FAR, Missing, SetUp, Site, Timed
from enforcement import Limit
from enforcement.doors.asgi import LimitMiddleware

MODEL = "gpt-x"
PRICE = {"model": MODEL, "input": 150_000, "output": 600_000}
FAR_COST = 1_000 * FAR
TOKENS = Limit(name="tokens", algorithm="fixed_window", quota=FAR_COST, calendar="day", unit="tokens")
MONEY = Limit(name="money", algorithm="fixed_window", quota=FAR_COST, calendar="month", unit="micros")
BOUND = {"estimate": "bound", "on_disconnect": "free"}
PATH = "/v1/chat/completions"
TEXT = 'The quick brown fox said: "It is 5 o\'clock."\nAnd so on. ' * 28
BODY = json.dumps(
    {
        "model": MODEL,
        "max_tokens": 500,
        "temperature": 0.7,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": TEXT}],
    }
).encode()
USAGE = {"prompt_tokens": 480, "completion_tokens": 420, "total_tokens": 900}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012",
        "object": "chat.completion",
        "created": 1767225600,
        "model": MODEL,
        "usage": USAGE,
        "system_fingerprint": "fp_0123456789",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    }
).encode()
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": PATH,
    "raw_path": PATH.encode(),
    "query_string": b"",
    "client": ("127.0.0.1", 40_000),
}
FIELDS = [
    (b"host", b"localhost"),
    (b"user-agent", b"OpenAI/Python 2.8.1"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
]
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))],
}
WORDS = (" the", " quick", "\\n", " fox", " jumped 'over'", ' \\"it\\"', " schön")
CHUNKS = 256
"""Chunks of one answer. The first of them are read whole, and the last one ends it."""


def _requesting(slug: str, *limits: Limit, rules: dict[str, Any] | None = None) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        site.metered(slug, limits, rules or {}, PRICE)
        fields = [*FIELDS, (b"authorization", f"Bearer {site.tokens(slug, 1)[0]}".encode())]
        with started(site) as limiter:
            asking = _Asking()
            door = LimitMiddleware(asking.answer, limiter, metered=True)
            asked = {**SCOPE, "headers": fields}
            yield TimedRequests(lambda scope: asking.ask(door, scope), [asked], lambda: limiter.state)

    return set_up


class TimedRequests(TimedAwaits):
    """The same in processor time, without that of the store: a request waits for the store twice."""

    clock = staticmethod(thread_time_ns)


class _Asking:
    """A client and a provider, with an integration between them."""

    def __init__(self) -> None:
        self._decision: Any = None

    async def ask(self, door: Any, scope: Any) -> Any:
        """Send a request, and return the decision on it."""
        await door(dict(scope), self._receive, self._send)
        return self._decision

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request as the provider does."""
        self._decision = scope["sluicegate.decision"]
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": ANSWER})

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def _send(self, message: Any) -> None:
        pass


class TimedChunks(Timed):
    """
    Reading a chunk of an answer.

    Args:
        format: The format of the answer.
        begin: The chunks with which an answer begins. They are not timed.
        text: Returns a chunk, by its number and its text in JSON.
    """

    step = CHUNKS

    def __init__(self, format: str, begin: Sequence[bytes], text: Callable[[int, str], bytes]) -> None:
        from enforcement.metering.answer import FORMATS, AnswerMeter

        if format not in FORMATS:
            raise Missing
        self._new = lambda: AnswerMeter(format)
        self._begin = begin
        self._chunks = [text(number, WORDS[number % len(WORDS)]) for number in range(CHUNKS)]

    def warm(self) -> None:
        """Read an answer."""
        self.run(CHUNKS)

    def run(self, calls: int) -> int:
        """Read so many chunks, and return the nanoseconds that they took together."""
        spent = 0
        for _ in range(-(-calls // CHUNKS)):
            feed = self._answer().feed
            start = thread_time_ns()
            for chunk in self._chunks:
                feed(chunk)
            spent += thread_time_ns() - start
        return spent

    def problem(self) -> str:
        """Return why chunks do not count: their text was not read."""
        meter = self._answer()
        for chunk in self._chunks:
            meter.feed(chunk)
        return "" if meter.text_bytes else "the meter has read no text"

    def _answer(self) -> Any:
        meter = self._new()
        for chunk in self._begin:
            meter.feed(chunk)
        return meter


def _reading(format: str, begin: Sequence[bytes], text: Callable[[int, str], bytes]) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        yield TimedChunks(format, begin, text)

    return set_up


def _event(data: str, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


def _noise(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[: 3 + number * 7 % 20]


def _chat(number: int, text: str) -> bytes:
    return _event(
        '{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012","object":"chat.completion.chunk","created":1767225600,'
        f'"model":"{MODEL}","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[{{"index":0,'
        f'"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null}}],"obfuscation":"{_noise(number)}"}}'
    )


def _response(number: int, text: str) -> bytes:
    kind = "response.output_text.delta"
    return _event(
        f'{{"type":"{kind}","sequence_number":{number + 4},"item_id":"msg_0123456789abcdef0123456789abcdef",'
        f'"output_index":0,"content_index":0,"delta":"{text}","logprobs":[],"obfuscation":"{_noise(number)}"}}',
        kind,
    )


def _completion(number: int, text: str) -> bytes:
    return _event(
        f'{{"id":"cmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012","object":"text_completion","created":{1767225600 + number // 20},'
        f'"choices":[{{"text":"{text}","index":0,"logprobs":null,"finish_reason":null}}],"model":"{MODEL}"}}'
    )


def _message(number: int, text: str) -> bytes:
    kind = "content_block_delta"
    return _event(f'{{"type":"{kind}","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}', kind)


def _content(number: int, text: str) -> bytes:
    output = 3 + 2 * number
    return _event(
        f'{{"candidates": [{{"content": {{"parts": [{{"text": "{text}"}}],"role": "model"}},"index": 0}}],'
        f'"usageMetadata": {{"promptTokenCount": 480,"candidatesTokenCount": {output},"totalTokenCount": '
        f'{480 + output},"promptTokensDetails": [{{"modality": "TEXT","tokenCount": 480}}]}},'
        '"modelVersion": "gemini-2.0-flash","responseId": "AbCdEfGhIjKlMnOpQrStUv"}'
    ).replace(b"\n\n", b"\r\n\r\n")


def _frame(kind: str, payload: bytes) -> bytes:
    fields = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        b"%c%b\x07%b%b" % (len(name), name.encode(), len(value).to_bytes(2, "big"), value.encode())
        for name, value in fields.items()
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return message + struct.pack(">I", crc32(message))


def _converse(number: int, text: str) -> bytes:
    event = f'{{"contentBlockIndex":0,"delta":{{"text":"{text}"}},"p":"{_noise(number)}"}}'
    return _frame("contentBlockDelta", event.encode())


def _invoke(number: int, text: str) -> bytes:
    event = f'{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}'
    return _frame("chunk", b'{"bytes":"%b","p":"%b"}' % (b64encode(event.encode()), _noise(number).encode()))


_BEGIN_RESPONSE = _event('{"type":"response.created","sequence_number":0,"response":{"id":"r","model":"gpt-x"}}')
_START = (
    '{"type":"message_start","message":{"id":"m","model":"claude-x","usage":{"input_tokens":480,"output_tokens":1}}}'
)
_BLOCK = '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}'

METERED_SHAPES: dict[str, SetUp] = {
    "metered-tokens": _requesting("tokens", TOKENS),
    "metered-money": _requesting("money", MONEY),
    "metered-bound": _requesting("bound", MONEY, rules=BOUND),
    "chunk-chat": _reading("openai-chat", [], _chat),
    "chunk-responses": _reading("openai-responses", [_BEGIN_RESPONSE], _response),
    "chunk-completions": _reading("openai-completions", [], _completion),
    "chunk-anthropic": _reading("anthropic-messages", [_event(_START), _event(_BLOCK)], _message),
    "chunk-gemini": _reading("gemini", [], _content),
    "chunk-bedrock": _reading("bedrock-converse", [], _converse),
    "chunk-invoke": _reading("bedrock-invoke", [], _invoke),
}
