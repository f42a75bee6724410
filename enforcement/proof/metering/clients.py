"""Clients of the proof. They ask in every format, leave at any byte, and try again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from enforcement.proof.metering.documents import MODELS
from enforcement.proof.metering.provider import REQUEST_ID

AT_ONCE: Final = 16
"""How many requests are under way at the same time."""
SECONDS: Final = 20.0
"""After which a client gives up, which no request should need."""
TRIES: Final = 3
LEAVING: Final = 0.12
"""The share of clients that leave before their answer is complete."""
SILENT: Final = 0.03
"""The share of clients that leave before their request is complete."""

_IMAGE: Final = "data:image/png;base64,iVBORw0KGgo="
_TEXT: Final = ("Say something about limits. ", "予算は守られる。", "🙂 déjà vu ", '{"a": [1, 2]}\n')


@dataclass(frozen=True, slots=True)
class ClientOutcome:
    """
    The observations of a client about one request.

    Attributes:
        id: Its id.
        secret: The token that it showed.
        status: HTTP status. 0: there was no answer.
        complete: Whether the answer came to its end.
        ended_us: When it had received the answer, or left, in microseconds since the epoch.
        denied: The reason of a denial of ours. Empty: there is none.
    """

    id: str
    secret: str
    status: int
    complete: bool
    ended_us: int
    denied: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: its target and body."""

    target: str
    body: dict[str, Any]


def ask(dice: Random) -> Ask:
    """Return a request in one of the formats."""
    text = dice.choice(_TEXT) * dice.randint(1, 12)
    return dice.choice(_ASKS)(dice, dice.choice(MODELS), text)


def _capped(dice: Random, name: str, body: dict[str, object]) -> dict[str, object]:
    return body | ({name: dice.choice((1, 20, 60, 150))} if dice.random() < 0.7 else {})


def _streamed(dice: Random, body: dict[str, object]) -> dict[str, object]:
    body |= {"stream": dice.random() < 0.7}
    return body | ({"stream_options": {"include_usage": True}} if body["stream"] and dice.random() < 0.3 else {})


def _chat(dice: Random, model: str, text: str) -> Ask:
    content: object = text
    if dice.random() < 0.15:
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": _IMAGE}}]
    messages = [{"role": "user", "content": content}]
    messages += [{"role": "assistant", "content": ""}] * dice.choice((0, 0, 0, 5))
    body = _streamed(dice, _capped(dice, dice.choice(("max_tokens", "max_completion_tokens")), {"model": model}))
    body |= {"messages": messages} | ({"n": 3} if dice.random() < 0.15 else {})
    if dice.random() < 0.2:
        body["tools"] = [{"type": "function", "function": {"name": "f", "description": "find out"}}]
    return Ask(
        dice.choice(("/v1/chat/completions", f"/openai/deployments/{model}/chat/completions?api-version=1")), body
    )


def _completion(dice: Random, model: str, text: str) -> Ask:
    return Ask("/v1/completions", _streamed(dice, _capped(dice, "max_tokens", {"model": model, "prompt": text})))


def _embedding(dice: Random, model: str, text: str) -> Ask:
    return Ask("/v1/embeddings", {"model": model, "input": text})


def _response(dice: Random, model: str, text: str) -> Ask:
    body = _capped(dice, "max_output_tokens", {"model": model, "input": text, "stream": dice.random() < 0.7})
    return Ask("/v1/responses", body)


def _message(dice: Random, model: str, text: str) -> Ask:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": dice.random() < 0.7}
    return Ask("/v1/messages", _capped(dice, "max_tokens", body))


def _gemini(dice: Random, model: str, text: str) -> Ask:
    config = _capped(dice, "maxOutputTokens", {} if dice.random() < 0.8 else {"candidateCount": 2})
    body = {"contents": [{"role": "user", "parts": [{"text": text}]}]} | (
        {"generationConfig": config} if config else {}
    )
    call = dice.choice(("generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse"))
    return Ask(f"/v1beta/models/{model}:{call}", body)


_ASKS: Final[Sequence[Callable[[Random, str, str], Ask]]] = (
    _chat,
    _chat,
    _completion,
    _embedding,
    _response,
    _message,
    _gemini,
)


class Clients:
    """
    Sends requests to a fleet of proxies.

    Args:
        ports: Returns the ports of the proxies.
        secrets: The tokens.
        dice: Decides what is asked, and who leaves when.
    """

    def __init__(self, ports: Callable[[], Sequence[int]], secrets: Sequence[str], dice: Random) -> None:
        self.outcomes: list[ClientOutcome] = []
        self._ports, self._secrets, self._dice = ports, secrets, dice
        self._numbers = itertools.count(1)

    async def run(self, requests: int, watch: Callable[[int], bool]) -> None:
        """
        Send requests, and up to as many again while *watch* wants more.

        Args:
            watch: Called with the number of requests that have ended, each time that one ends. Returns whether it wants
                more of them.
        """
        ended = itertools.count(1)
        most = requests

        async def worker() -> None:
            nonlocal most
            while len(self.outcomes) < most:
                await self._persist()
                most = 2 * requests if watch(min(next(ended), len(self.outcomes))) else requests

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def _persist(self) -> None:
        """Send a request, and once or twice again if there is no answer or the provider is busy."""
        dice, secret = self._dice, self._dice.choice(self._secrets)
        asked = ask(dice)
        for _ in range(TRIES):
            outcome = await self._send(asked, secret)
            self.outcomes.append(outcome)
            if outcome.denied or outcome.status not in (0, 429, 502, 503, 529) or dice.random() < 0.3:
                return
            await asyncio.sleep(0.02)

    async def _send(self, asked: Ask, secret: str) -> ClientOutcome:
        ident, dice = f"r{next(self._numbers)}", self._dice
        body = json.dumps(asked.body, ensure_ascii=dice.random() < 0.5).encode()
        leaves_at = int(dice.expovariate(1 / 400)) if dice.random() < LEAVING else -1
        got = _Got()
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError, ValueError, TimeoutError):
            async with asyncio.timeout(SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", dice.choice(self._ports()))
                parts = _request(asked, secret, ident, body, dice)
                if dice.random() < SILENT:
                    leaves_at, parts = 0, [_cut(parts, dice)]
                try:
                    await self._exchange(reader, writer, parts, got, leaves_at)
                finally:
                    if dice.random() < 0.3:
                        writer.transport.abort()
                    writer.close()
        return ClientOutcome(ident, secret, got.status, got.complete, time.time_ns() // 1_000, got.denied)

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        parts: Sequence[bytes],
        got: _Got,
        leaves_at: int,
    ) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if leaves_at == 0:
            return
        await got.read(reader, leaves_at)


def _request(asked: Ask, secret: str, ident: str, body: bytes, dice: Random) -> list[bytes]:
    """Return the bytes of a request, perhaps in several parts, with a body that is announced or in chunks."""
    chunked = dice.random() < 0.15
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    accepted = dice.choice(("", "Accept-Encoding: gzip, deflate, br\r\n"))
    head = (
        f"POST {asked.target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n{accepted}"
        f"{REQUEST_ID}: {ident}\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    ).encode()
    middle = dice.randint(1, len(body) - 1)
    halves = [body[:middle], body[middle:]]
    if chunked:
        return [head, *(b"%x\r\n%b\r\n" % (len(half), half) for half in halves), b"0\r\n\r\n"]
    return [head, *halves] if dice.random() < 0.3 else [head + body]


def _cut(parts: Sequence[bytes], dice: Random) -> bytes:
    """Return the beginning of a request, up to any byte but the last."""
    whole = b"".join(parts)
    return whole[: dice.randrange(1, len(whole))]


class _Got:
    """The part of an answer that has arrived."""

    def __init__(self) -> None:
        self.status, self.complete, self.denied = 0, False, ""
        self._size = 0

    async def read(self, reader: asyncio.StreamReader, leaves_at: int) -> None:
        """Read an answer to its end, or no further than *leaves_at* bytes of its body if that is above 0."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        self.status = int(head[0].split(" ")[1])
        self.denied = fields.get("sluicegate-denial", "")
        left = int(fields["content-length"]) if "content-length" in fields else -1
        chunked = "chunked" in fields.get("transfer-encoding", "")
        while left != 0:
            if chunked:
                left = int((await reader.readuntil(b"\r\n")).strip(), 16)
                data = (await reader.readexactly(left + 2))[:-2]
            elif left > 0:
                data = await reader.readexactly(min(left, 1_000))
                left -= len(data)
            else:
                data = await reader.read(1_000)
                left = -1 if data else 0
            self._size += len(data)
            if 0 < leaves_at < self._size:
                return
        self.complete = True


def by_status(outcomes: Sequence[ClientOutcome]) -> Counter[str]:
    """Return how many requests were answered with each status, or denied for each reason."""
    return Counter(it.denied or str(it.status or "none") for it in outcomes)
