"""A provider of models as an ASGI application, and a client that sends it single requests by hand."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130}
WORD = {"model": "gpt-x", "choices": [{"index": 0, "delta": {"content": "word"}}]}


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


class Provider:
    """
    Answers chat completions.

    Attributes:
        seen: The body of each request that has arrived, as it came.
        scopes: Their scopes.
        answer: Called with scope, body, receive and send in place of the usual answer, if it is set.
        words: How many chunks of text a stream has.
        pause: Seconds between them.
        go_on: What a stream waits for after its first chunk.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.scopes: list[Any] = []
        self.answer: Callable[..., Any] | None = None
        self.words, self.pause, self.usage = 3, 0.0, dict(USAGE)
        self.told_to_stop, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.seen.append(body)
        self.scopes.append(scope)
        if self.answer is not None:
            await self.answer(scope, body, receive, send)
        elif json.loads(body).get("stream"):
            await self._stream(receive, send, json.loads(body))
        else:
            await whole(send, {"model": "gpt-x", "choices": [{"message": {"content": "hi"}}], "usage": self.usage})

    async def _stream(self, receive: Any, send: Any, asked: Any) -> None:
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for _ in range(self.words):
                if watching.done():
                    return
                await send({"type": "http.response.body", "body": event(WORD), "more_body": True})
                await asyncio.sleep(self.pause)
                await self.go_on.wait()
            if (asked.get("stream_options") or {}).get("include_usage"):
                last = event({"model": "gpt-x", "choices": [], "usage": self.usage})
                await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": event(b"[DONE]")})
        finally:
            watching.cancel()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.told_to_stop.set()


async def whole(send: Any, value: Any, status: int = 200) -> None:
    """Answer with one JSON value."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


class Answer:
    """What a client got: its status, header fields and the chunks of the body."""

    def __init__(self) -> None:
        self.status, self.headers, self.chunks, self.complete = 0, {}, [], False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)


class Visit:
    """One request that a test may abandon while it runs."""

    def __init__(self, door: Any, token: str | None, body: Any, path: str = CHAT, **scope: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer, self._left = Answer(), asyncio.Event()
        self._messages = scope.pop("messages", [{"type": "http.request", "body": raw, "more_body": False}])
        headers = [(b"content-length", b"%d" % len(raw)), *scope.pop("headers", [])]
        if token is not None:
            headers.append((b"authorization", b"Bearer " + token.encode()))
        self._scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1), **scope,
        }  # fmt: skip
        self.task = asyncio.ensure_future(door(self._scope, self._receive, self._send))

    def leave(self) -> None:
        """Leave as a client does that closes its connection."""
        self._left.set()

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        kind = message["type"].removeprefix("websocket.")
        if kind == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {n.decode(): v.decode("latin-1") for n, v in message["headers"]}
        elif kind == "http.response.body":
            self.answer.chunks.append(message.get("body", b""))
            self.answer.complete = not message.get("more_body", False)


async def ask(door: Any, token: str | None, body: Any, path: str = CHAT, **scope: Any) -> Answer:
    """Send one request, and return its answer when the application has ended."""
    visit = Visit(door, token, body, path, **scope)
    await visit.task
    return visit.answer
