"""
Read usage and event streams with the packages of others.

It runs in an environment of its own (``docker/requirements/metering.txt``), as a program that answers each line of JSON
by one:

- ``["usage", provider, flavor, answer]``: the classes that ``genai-prices`` finds in an answer.
- ``["events", chunks]``: the data that ``httpx-sse`` finds in a stream.
- ``["meter", encoding, events, step]``: what our meter reads in a stream that is compressed with the packages of the
  extra ``encodings``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.repository import ROOT


class Oracle:
    """The program, as its caller sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def usage(self, provider: str, flavor: str, answer: Any) -> dict[str, int]:
        return self._ask("usage", provider, flavor, answer)

    def events(self, chunks: list[bytes]) -> list[str]:
        return self._ask("events", [chunk.hex() for chunk in chunks])

    def meter(self, encoding: str, events: bytes, step: int) -> list[Any]:
        return self._ask("meter", encoding, events.hex(), step)

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextmanager
def running() -> Iterator[Oracle]:
    """Run the program while the block runs."""
    from tests.apart import python_of

    command = [python_of("metering"), "-m", __spec__.name]
    pipe = subprocess.PIPE
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT) as process:
        try:
            yield Oracle(process)
        finally:
            process.terminate()


def main() -> None:
    ways = {"usage": _usage, "events": _events, "meter": _meter}
    for line in sys.stdin:
        mode, *words = json.loads(line)
        print(json.dumps(ways[mode](*words)), flush=True)


def _usage(provider: str, flavor: str, answer: Any) -> dict[str, int]:
    from genai_prices import extract_usage

    found = extract_usage(answer, provider_id=provider, api_flavor=flavor).usage
    names = {"input": "input_tokens", "cached": "cache_read_tokens", "written": "cache_write_tokens"}
    return {ours: getattr(found, theirs) or 0 for ours, theirs in {**names, "output": "output_tokens"}.items()}


def _events(chunks: list[str]) -> list[str]:
    import httpx
    from httpx_sse import EventSource

    stream = (bytes.fromhex(chunk) for chunk in chunks)
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return [event.data for event in EventSource(response).iter_sse() if event.data]


def _meter(encoding: str, events: str, step: int) -> list[Any]:
    import brotli
    from backports import zstd

    from enforcement.metering.answer import AnswerMeter
    from enforcement.metering.streams.encodings import ALL_ENCODINGS

    pack = {"br": brotli.compress, "zstd": zstd.compress}[encoding]
    data = pack(bytes.fromhex(events))
    meter = AnswerMeter("openai-chat", 200, encoding, encodings=ALL_ENCODINGS)
    passed = b"".join(meter.feed(data[at : at + step]) for at in range(0, len(data), step)) + meter.finish()
    return [passed == data, meter.text_bytes, meter.settled_as, len(data)]


if __name__ == "__main__":
    main()
