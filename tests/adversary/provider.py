"""
The process of the provider: ``python -m tests.adversary.provider [ANSWERS]`` prints its port, and serves.

It imports nothing of the product, and bills a request when it has read it, whoever is still there to hear the answer.
Header fields of a request say for whom it is (``x-account``), and how the provider behaves (``x-play``, JSON):

- ``output``: so many tokens of output, if the cap allows; ``hidden``: per cent of it that are thoughts
- ``read``, ``written``: per cent of the input that is read from the cache, or written to it where it is marked
- ``think``, ``pause``: seconds before the text, and after it
- ``end``: ``usage``; ``untold`` (usage is never reported); ``break`` (reset in the middle); ``silent`` (nothing more
  comes); ``error`` (an event says so); ``filler`` (comments follow, for long); ``mute`` (not even a head comes);
  ``reset`` (the connection ends before that)
- ``packed``: the answer is compressed, and said to be so encoded, whatever the request says
- ``status``: that of something in between, after the answer was made; ``refuse``: a status without an answer
- ``stops``: it stops to generate when nobody listens, and bills what it has generated
- ``replay``: the number of an answer in ANSWERS, a list of JSON objects with status, headers, chunks and micros
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.adversary.counting import Bill, bill
from tests.adversary.wire import failure, write

STEPS = 20  # in which an answer is generated that stops when nobody listens


class Provider:
    """Serves requests, and keeps the invoice of each account."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self._answers = answers
        self._invoices: dict[str, Fraction] = {}
        self._tokens: dict[str, int] = {}
        self._requests: dict[str, int] = {}
        self._billed: set[tuple[str, str]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while (request := await _read(reader)) is not None:
                if not await self._answer(*request, reader, writer):
                    break
        writer.close()

    async def _answer(
        self, path: str, fields: dict[str, str], raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if path.startswith("/_"):
            return await _send(writer, 200, [json.dumps(self._report(path)).encode()])
        play = json.loads(fields.get("x-play", "{}"))
        if "refuse" in play:
            return await _send(writer, play["refuse"], [b'{"error": {"message": "not now"}}'])
        account = fields.get("x-account", "")
        if "replay" in play:
            return await self._replay(account, self._answers[play["replay"]], play, writer)
        if fields.get("content-encoding") == "gzip":
            raw = gzip.decompress(raw)
        kind, body, used = bill(path, raw, play, fields.get("x-vertex-ai-llm-shared-request-type", ""))
        self._requests[account] = self._requests.get(account, 0) + 1
        if play.get("stops"):
            return await self._generate(account, kind, path, body, used, reader, writer)
        # A repeated request with the same key is answered from memory.
        key = (account, fields.get("idempotency-key", ""))
        if not key[1] or key not in self._billed:
            self._charge(account, used.micros)
            self._tokens[account] = self._tokens.get(account, 0) + used.input + used.output
            self._billed.add(key)
        return await _say(kind, path, body, used, play, writer)

    def _charge(self, account: str, micros: Fraction) -> None:
        self._invoices[account] = self._invoices.get(account, Fraction(0)) + micros

    def _report(self, path: str) -> Any:
        if path == "/_modules":
            return sorted(sys.modules)
        return {
            account: {
                "micros": float(self._invoices.get(account, 0)),
                "tokens": self._tokens.get(account, 0),
                "requests": count,
            }
            for account, count in self._requests.items()
        }

    async def _replay(
        self, account: str, answer: dict[str, Any], play: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        self._charge(account, Fraction(answer["micros"]))
        self._requests[account] = self._requests.get(account, 0) + 1
        chunks = [base64.b64decode(chunk) for chunk in answer["chunks"]]
        head = {"content-type": answer["type"], **answer["headers"]}
        if len(chunks) < 2:
            await asyncio.sleep(play.get("pause", 0))
            return await _send(writer, answer["status"], chunks, head)
        _begin(writer, answer["status"], head)
        for number, chunk in enumerate(chunks):
            if number == len(chunks) // 2:
                await asyncio.sleep(play.get("pause", 0))
            await _chunk(writer, chunk)
        return await _end(writer)

    async def _generate(
        self,
        account: str,
        kind: str,
        path: str,
        body: dict[str, Any],
        used: Bill,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Bill the input, and each step of the output as it is generated. The connection carries nothing else."""
        output = used.tokens["output"]
        used.thoughts = used.tokens["output"] = 0
        self._charge(account, used.micros)
        _, (begin, text, _) = write(kind, path, body, used, tells=True)
        _begin(writer, 200, {"content-type": "text/event-stream"})
        gone = asyncio.ensure_future(_gone(reader))
        for chunk in begin:
            await _chunk(writer, chunk)
        for _ in range(STEPS):
            if gone.done():
                return False
            before, used.tokens["output"] = used.micros, used.tokens["output"] + output // STEPS
            self._charge(account, used.micros - before)
            await _chunk(writer, text[0])
            await asyncio.sleep(0.02)
        _, (_, _, end) = write(kind, path, body, used, tells=True)
        for chunk in end:
            await _chunk(writer, chunk)
        await _end(writer)
        return False


async def _say(
    kind: str, path: str, body: dict[str, Any], used: Bill, play: dict[str, Any], writer: asyncio.StreamWriter
) -> bool:
    """Answer, and return whether the connection is still good."""
    end = play.get("end", "usage")
    streamed, (begin, text, last) = write(kind, path, body, used, end != "untold")
    if end == "mute":
        await asyncio.sleep(30)
        return False
    if end == "reset":
        writer.transport.abort()
        return False
    if play.get("packed"):
        return await _pack(play["packed"], streamed, [*begin, *text, *last], writer)
    await asyncio.sleep(0 if streamed else play.get("think", 0))
    if "status" in play:
        return await _send(writer, play["status"], [b"<html>gateway</html>"], {"content-type": "text/html"})
    if not streamed:
        if end == "break":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n{")
            writer.transport.abort()
            return False
        await asyncio.sleep(play.get("pause", 0))
        return await _send(writer, 200, begin, {"content-type": "application/json"})
    is_array = begin[0].startswith(b"[")
    _begin(writer, 200, {"content-type": "application/json" if is_array else "text/event-stream"})
    for chunk in begin:
        await _chunk(writer, chunk)
    await asyncio.sleep(play.get("think", 0))
    for chunk in text:
        await _chunk(writer, chunk)
    if end == "break":
        await asyncio.sleep(0.01)
        writer.transport.abort()
        return False
    if end == "silent":
        await asyncio.sleep(30)
        return False
    if end == "error":
        await _chunk(writer, b',{"error": {"code": 503}}]' if is_array else failure(kind))
        return await _end(writer)
    for _ in range(200 if end == "filler" else 0):
        await asyncio.sleep(0.05)
        await _chunk(writer, b"   " if is_array else b": wait\n\n")
    await asyncio.sleep(play.get("pause", 0))
    for chunk in last:
        await _chunk(writer, chunk)
    return await _end(writer)


async def _gone(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        await reader.read(1)


async def _pack(encoding: str, streamed: bool, chunks: list[bytes], writer: asyncio.StreamWriter) -> bool:
    kind = "text/event-stream" if streamed and not chunks[0].startswith(b"[") else "application/json"
    data = [gzip.compress(b"".join(chunks))]
    return await _send(writer, 200, data, {"content-type": kind, "content-encoding": encoding})


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes] | None:
    """Return the path, the header fields and the body of the next request, or None if there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = b""
    if "chunked" in fields.get("transfer-encoding", ""):
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    return head[0].split(" ")[1], fields, body


def _begin(writer: asyncio.StreamWriter, status: int, head: dict[str, str], length: int | None = None) -> None:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"HTTP/1.1 {status} X", size, *(f"{name}: {value}" for name, value in head.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


async def _end(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def _send(
    writer: asyncio.StreamWriter, status: int, chunks: list[bytes], head: dict[str, str] | None = None
) -> bool:
    body = b"".join(chunks)
    _begin(writer, status, head or {"content-type": "application/json"}, len(body))
    writer.write(body)
    await writer.drain()
    return True


async def main() -> None:
    answers = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else []
    provider = Provider(answers)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
