"""Reads the vectors of tests/vectors/metering/: what requests and answers say, in the formats of their providers."""

import base64
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "vectors" / "metering"


def load(kind: str) -> list[dict[str, Any]]:
    """Return the vectors of one kind."""
    return json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))["vectors"]


def chunks_of(body: dict[str, Any]) -> list[bytes]:
    """Return the chunks of a body: of bytes as they arrive, of events one each, or of one JSON value."""
    if "chunks" in body:
        return [_bytes_of(chunk) for chunk in body["chunks"]]
    if "events" in body:
        return [_event(name, data) for name, data in body["events"]]
    return [json.dumps(body["json"]).encode()] if "json" in body else []


def _bytes_of(chunk: str | dict[str, Any]) -> bytes:
    if isinstance(chunk, str):
        return chunk.encode()
    if "base64" in chunk:
        return base64.b64decode(chunk["base64"])
    return chunk["repeat"].encode() * chunk["times"]


def _event(name: str | None, data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def header_of(headers: dict[str, str] | None):
    """Return what finds a header field by its name in lower case."""
    return {name.lower(): value for name, value in (headers or {}).items()}.get
