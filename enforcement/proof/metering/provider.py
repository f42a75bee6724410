"""
A fake provider of models, which writes an invoice and misbehaves.

It runs as a process of its own: ``python -m enforcement.proof.metering.provider INVOICE SEED``, and prints its port.
What it does with a request depends on nothing but the seed and the id of the request, so a run can be repeated. With
``--behaves`` it answers every request whole, and always reports its tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from enforcement.metering.charges import Counts
from enforcement.proof.metering import answers, wire
from enforcement.proof.metering.answers import Draft

REQUEST_ID: Final = "x-request-id"
IMAGE_TOKENS: Final = 1_000
"""The most tokens of one image."""
REFUSALS: Final = (400, 401, 429, 503, 529)

_FORMATS: Final = {
    "chat/completions": "openai-chat",
    "responses": "openai-responses",
    "completions": "openai-completions",
    "embeddings": "openai-embeddings",
    "messages": "anthropic-messages",
    ":generateContent": "gemini",
    ":streamGenerateContent": "gemini",
}
_CAPS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
_TEXTS: Final = frozenset({"text", "content", "prompt", "input", "system", "instructions", "arguments", "description"})
_UNCAPPED: Final = 5_000
"""The tokens of an answer without a cap, which are more than any default."""
_BREAKS: Final = ("reset_before", "reset_in_head", "reset_in_stream", "close_in_stream", "error_event")
_LONGEST_HEAD: Final = 65_536


@dataclass(slots=True)
class ProviderRequest:
    """One request: its format, whether the answer is streamed, and its body."""

    id: str
    target: str
    format: str
    is_stream: bool
    body: Any


@dataclass(slots=True)
class Question:
    """The parts of a body that the provider reads: bytes of text, messages, images, the cap and the choices."""

    text_bytes: int = 0
    messages: int = 0
    images: int = 0
    cap: int = 0
    choices: int = 1


def question(value: object) -> Question:
    """Return what a body asks for. This is on purpose not the code of the meter."""
    result = Question()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, dict):
            result.images += item.get("type") in ("image", "image_url", "input_image") or "inlineData" in item
            result.messages += "role" in item
            waiting += item.items()
        elif isinstance(item, list):
            waiting += [(name, element) for element in item]
        elif isinstance(item, str) and name in _TEXTS:
            result.text_bytes += len(item.encode())
        elif name in _CAPS:
            result.cap = max(result.cap, item)
        elif name in ("n", "candidateCount", "best_of"):
            result.choices = max(result.choices, item)
    result.cap = result.cap or _UNCAPPED
    return result


def draft(asked: ProviderRequest, dice: Random) -> Draft:
    """Return an answer whose tokens a provider could count: at most one a byte of text, and no more than the cap."""
    found = question(asked.body)
    dense = dice.random()
    # Most text has some four bytes a token. Some scripts have one or two, and a bound has to hold for all of them.
    rate = 1.0 if dense < 0.1 else dice.uniform(0.15, 0.6)
    total = max(1, int(found.text_bytes * rate)) + found.messages * dice.choice((3, 7, 16))
    total += found.images * dice.randint(85, IMAGE_TOKENS)
    total = min(total, found.text_bytes + found.messages * 16 + found.images * IMAGE_TOKENS)
    cached = dice.randint(0, total) if dice.random() < 0.3 and asked.format != "openai-embeddings" else 0
    written = dice.randint(0, total - cached) if asked.format == "anthropic-messages" and dice.random() < 0.3 else 0
    most = 0 if asked.format == "openai-embeddings" else found.cap * found.choices
    output = min(most, dice.choice((0, 1, 5, 20, 60, 200, most)))
    report = dice.choice(answers.REPORTS)
    reasoning = dice.randint(0, output) if dice.random() < 0.3 else 0
    options = asked.body.get("stream_options") or {}
    if asked.format == "anthropic-messages" and asked.is_stream:
        output = max(output, min(1, most))
    return Draft(
        asked.format,
        str(asked.body.get("model", "")),
        answers.texts(dice, min(output - reasoning, 300), found.choices),
        Counts(total - cached - written, cached, written, output),
        reasoning,
        report,
        dice.random() < 0.2,
        asked.format not in ("openai-chat", "openai-completions") or options.get("include_usage") is True,
    )


class FakeProvider:
    """
    Answers requests, and writes an invoice for each that it charges for.

    Args:
        invoice: The file that it appends to. Each line is one request, as JSON.
        seed: Decides with the id of a request what the request gets.
        behaves: Whether every request gets its whole answer, with a report of its tokens.
    """

    def __init__(self, invoice: Path, seed: str, *, behaves: bool = False) -> None:
        self._invoice = os.open(invoice, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._seed = seed
        self._behaves = behaves

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._answer(reader, writer):
                pass
        with contextlib.suppress(OSError):
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, and return whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        ident = fields.get(REQUEST_ID, "")
        dice = Random(f"{self._seed}/{ident}")
        if self._misbehaves(dice, 0.03):  # an answer before the body was read
            writer.write(_whole(429, b'{"error":{"message":"slow down"}}', "Connection: close"))
            await writer.drain()
            return False
        data = await _body_of(reader, fields)
        asked = _asked(ident, head[0].split(" ")[1], data)
        if self._misbehaves(dice, 0.07):
            writer.write(_whole(dice.choice(REFUSALS), b'{"error":{"message":"no"}}'))
            await writer.drain()
            return True
        return await self._charged(asked, dice, writer)

    async def _charged(self, asked: ProviderRequest, dice: Random, writer: asyncio.StreamWriter) -> bool:
        """Invoice a request, answer it, and return whether the connection goes on."""
        made = draft(asked, dice)
        if self._behaves:
            made.report = answers.NORMAL
        breaks = dice.choice(_BREAKS) if self._misbehaves(dice, 0.08) else ""
        if breaks and made.report in ("every", "twice"):
            made.report = answers.NORMAL  # what was reported so far could pass for the last word
        encoding = dice.choice(("gzip", "gzip", "deflate", "unknown")) if self._misbehaves(dice, 0.15) else ""
        # An answer that nobody can read, or that breaks off, reports nothing.
        self._write(asked, made, reports=made.reports and not breaks and encoding != "unknown")
        if breaks == "reset_before":
            _reset(writer)
            return False
        pieces, kind = _pieces(asked, made, dice, is_error=breaks == "error_event")
        if breaks in ("reset_in_stream", "close_in_stream"):
            pieces = pieces[: _before_the_report(pieces)] if asked.is_stream else [pieces[0][: len(pieces[0]) // 2]]
        if encoding:
            pieces = wire.compressed(encoding, pieces)
        sent = list(wire.split(pieces, dice))
        return await _send(writer, sent, kind, encoding, breaks, dice)

    def _misbehaves(self, dice: Random, share: float) -> bool:
        return dice.random() < share and not self._behaves

    def _write(self, asked: ProviderRequest, made: Draft, *, reports: bool) -> None:
        row = {"id": asked.id, "format": asked.format, "model": _model(asked), **made.counts._asdict()}
        line = json.dumps({**row, "reports": reports, "told": made.told or not asked.is_stream})
        os.write(self._invoice, line.encode() + b"\n")


async def _body_of(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "chunked" not in fields.get("transfer-encoding", ""):
        return await reader.readexactly(int(fields.get("content-length", "0")))
    data = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        data += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return data


def _asked(ident: str, target: str, data: bytes) -> ProviderRequest:
    path = target.partition("?")[0]
    format = next((name for end, name in _FORMATS.items() if path.endswith(end)), "")
    body = json.loads(data)
    is_stream = "stream" in path if format == "gemini" else body.get("stream") is True
    return ProviderRequest(ident, target, format, is_stream, body)


def _model(asked: ProviderRequest) -> str:
    if asked.format != "gemini":
        return str(asked.body.get("model"))
    return asked.target.partition("/models/")[2].partition(":")[0]


def _pieces(asked: ProviderRequest, made: Draft, dice: Random, *, is_error: bool) -> tuple[list[bytes], str]:
    """Return the body of an answer in pieces, and its content type."""
    if not asked.is_stream:
        text = json.dumps(answers.body(made), ensure_ascii=dice.random() < 0.5, indent=dice.choice((None, 2)))
        return [text.encode()[: -1 if is_error else None]], "application/json"
    events = answers.events(made)
    if is_error:
        events = [*events[: _before_the_report(events)], answers.error_event(asked.format)]
    if asked.format == "gemini" and "alt=sse" not in asked.target:
        pieces = wire.array_stream([data for _, data in events], dice)
        return pieces[:-1] if is_error else pieces, "application/json"
    return wire.event_stream(events, dice), "text/event-stream"


def _before_the_report(pieces: Sequence[object]) -> int:
    """Return how many events of a stream certainly precede what it reports."""
    return max(0, len(pieces) // 2 - 1)


async def _send(
    writer: asyncio.StreamWriter, sent: list[bytes], kind: str, encoding: str, breaks: str, dice: Random
) -> bool:
    """Send the body of an answer, or the beginning of it, and return whether the connection goes on."""
    way = dice.choice(("chunked", "chunked", "length", "close"))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n"
    head += f"Content-Encoding: {encoding}\r\n" if encoding else ""
    length = f"Content-Length: {sum(map(len, sent))}\r\n"
    head += {"chunked": "Transfer-Encoding: chunked\r\n", "length": length, "close": "Connection: close\r\n"}[way]
    if breaks == "reset_in_head":
        writer.write(head.encode()[: dice.randint(1, len(head))])
        await writer.drain()
        _reset(writer)
        return False
    broken = breaks in ("reset_in_stream", "close_in_stream")
    if broken:
        # If an answer ends with its connection, nobody could tell that a close has cut it.
        way = "chunked" if way == "close" else way
        head = head.replace("Connection: close", "Transfer-Encoding: chunked")
        head = head.replace(length, f"Content-Length: {sum(map(len, sent)) + 100}\r\n")
    writer.write(head.encode() + b"\r\n")
    pause = dice.choice((0.0, 0.0, 0.0, 0.002, 0.02)) if len(sent) < 60 else 0.0
    for data in sent:
        if writer.is_closing():
            return False
        writer.write(b"%x\r\n%b\r\n" % (len(data), data) if way == "chunked" else data)
        if pause or writer.transport.get_write_buffer_size() > _LONGEST_HEAD:
            await writer.drain()
            await asyncio.sleep(pause)
    if breaks == "reset_in_stream":
        await writer.drain()
        _reset(writer)
    elif not broken and way == "chunked":
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return way != "close" and not broken


def _whole(status: int, body: bytes, *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status} No", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main(options: argparse.Namespace) -> None:
    """Serve until the process is stopped, after the port was printed."""
    provider = FakeProvider(options.invoice, options.seed, behaves=options.behaves)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", options.port, limit=_LONGEST_HEAD)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("invoice", type=Path)
    parser.add_argument("seed")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaves", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(_options()))
