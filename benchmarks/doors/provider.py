"""
A provider of models that costs little: ``python -m benchmarks.doors.provider PORT``.

It answers each chat with the same text, whole or in a stream whose chunks come one by one, as those of a model do.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import uvloop

from benchmarks.world import MODEL

PATH = "/v1/chat/completions"
BODY_BYTES = 2_048
"""Length of the bodies, of requests and of whole answers."""
CHUNKS = 100
"""Chunks with text in a stream."""
CAP, THINKING_CAP = 500, 20_000
"""The most tokens that an answer may have, without and with reasoning."""
THOUGHT_SECONDS = 30
"""How long a model that is asked to reason thinks before it says something, unless its client leaves."""
PAUSE_SECONDS = 0.002
"""Between the chunks of a stream. A proxy would otherwise get several at once."""

_USAGE = {"prompt_tokens": 480, "completion_tokens": 420, "total_tokens": 900}
_SENTENCE = 'The quick brown fox said: "It is 5 o\'clock."\nAnd so on. '
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')


def chat(*, stream: bool = False, thinks: bool = False) -> bytes:
    """Return the body of a request, which is as long as that of an answer. It may ask the model to reason."""
    body = {"model": MODEL, "max_tokens": CAP, "temperature": 0.7, **({"stream": True} if stream else {})}
    body |= {"reasoning_effort": "high", "max_tokens": THINKING_CAP} if thinks else {}
    return _filled(lambda text: {**body, "messages": [{"role": "system", "content": "Be kind."}, _said("user", text)]})


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _filled(body: Any) -> bytes:
    """Return the JSON of *body* for a text that makes it as long as bodies are."""
    text = _SENTENCE
    while len(json.dumps(body(text + _SENTENCE))) <= BODY_BYTES:
        text += _SENTENCE
    missing = BODY_BYTES - len(json.dumps(body(text)))
    return json.dumps(body(text + "." * missing)).encode()


def _whole() -> bytes:
    head = {"id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012", "object": "chat.completion", "created": 1767225600}
    head |= {"model": MODEL, "usage": _USAGE, "system_fingerprint": "fp_0123456789"}
    body = _filled(
        lambda text: {**head, "choices": [{"index": 0, "message": _said("assistant", text), "finish_reason": "stop"}]}
    )
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _event(choices: list[Any], **more: Any) -> bytes:
    head = {"id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012", "object": "chat.completion.chunk", "created": 1767225600}
    value = {**head, "model": MODEL, "system_fingerprint": "fp_0123456789", "choices": choices, **more}
    return _chunk(b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_WHOLE = _whole()
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WORDS = [
    _event([{"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}])
    for word in (" the", " quick", "\n", " fox", " jumped 'over'", ' "it"', " schön")
]
_THINKING = _chunk(b": thinking\n\n")
_STOP = _event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}])
_USED = _event([], usage=_USAGE)
_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Provider(asyncio.Protocol):
    """One connection, with one request after the other."""

    def __init__(self) -> None:
        self._data = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request when it has come whole."""
        self._data += data
        head, end, body = self._data.partition(_HEAD_END)
        length = _LENGTH.search(head)
        if not end or (length and len(body) < int(length[1])):
            return
        self._data = b""
        if not _STREAM.search(body):
            self._transport.write(_WHOLE)
            return
        self._transport.write(_STREAM_HEAD)
        if b"reasoning_effort" in body:
            self._transport.write(_THINKING)
            asyncio.get_running_loop().call_later(THOUGHT_SECONDS, self._go_on, 0, _STOP + _END)
            return
        self._go_on(CHUNKS, _STOP + _USED + _END if b"include_usage" in body else _STOP + _END)

    def _go_on(self, left: int, end: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_WORDS[left % len(_WORDS)] if left else end)
        if left:
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._go_on, left - 1, end)


async def main(port: str) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", int(port))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
