"""Reads tests/vectors/recorded/, whose README.md says how a vector is written: requests, answers and prices."""

import base64
import json
import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from enforcement.metering.price_documents import parse_price
from enforcement.metering.prices import Price

FOLDER = Path(__file__).parents[2] / "vectors" / "recorded"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "prices")
_TEXTS = {
    "$prose": "A river of words runs past the old mill, and nobody there has read any of them. ",
    "$code": 'for item in basket[1:]:\n    print(f"{item.name}: {item.weight}")  # in grams\n',
    "$cjk": "山川草木花鳥風月春夏秋冬",
}


def vectors_of(family: str) -> list[dict[str, Any]]:
    """Return the vectors of one family, written out."""
    return [expanded(vector) for vector in _resolved(_read(family)["vectors"])]


@cache
def prices() -> dict[str, dict[str, Any]]:
    """Return the entry of a document of prices for each ``provider/model``, without its field ``model``."""
    return _read("prices")["prices"]


def price_of(model: str, entry: dict[str, Any]) -> Price:
    """Return a price as the price of this model."""
    return parse_price({"model": model, **entry})


def body_of(request: dict[str, Any]) -> bytes:
    """Return the body of a request."""
    return request["text"].encode() if "text" in request else _encoded(request["body"]) if "body" in request else b""


def chunks_of(answer: dict[str, Any]) -> list[bytes]:
    """Return the body of an answer: in one chunk, or one for each event or line."""
    if "events" in answer:
        end = answer.get("end", "\n").encode()
        return [_event(event, end, answer.get("named", False)) for event in _resolved(answer["events"])]
    if "frames" in answer:
        return [_frame(name, _encoded(payload)) for name, payload in answer["frames"]]
    if "lines" in answer:
        return [_encoded(line) + b"\n" for line in answer["lines"]]
    if "base64" in answer:
        return [base64.b64decode(answer["base64"])]
    return [body] if (body := body_of(answer)) else []


def expanded(value: Any) -> Any:
    """Return a JSON value with what stands for filler written out."""
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$base64": size, **rest}:
            text = _base64(size, rest.get("head", ""), rest.get("padding", 0), b"-_" if "url" in rest else b"+/")
            return rest.get("before", "") + text
        case {"$encoded": inner}:
            return base64.b64encode(_encoded(expanded(inner))).decode()
        case {"$floats": size}:
            return list(_floats(size))
        case {"$integers": [size, below]}:
            return [place % below for place in range(size)]
    if len(value) == 1 and (kind := next(iter(value))) in _TEXTS:
        return _text(kind, value[kind])
    return {name: expanded(item) for name, item in value.items()}


def changed(value: Any, change: Any) -> Any:
    """Return a JSON value with a change applied: names and places that it has lead to what is other there."""
    if not isinstance(change, dict) or not isinstance(value, dict | list):
        return change
    if "$new" in change:
        return change["$new"]
    if isinstance(value, list):
        return [changed(item, change[key]) if (key := str(i)) in change else item for i, item in enumerate(value)]
    gone = change.get("$gone", ())
    result = {name: item for name, item in value.items() if name not in gone}
    for name, inner in change.items():
        if name != "$gone":
            result[name] = changed(value.get(name), inner)
    return result


def _read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _resolved(items: list[Any]) -> Iterator[Any]:
    """Yield items of which some say how they differ from the one so many places before."""
    done: list[Any] = []
    for item in items:
        if isinstance(item, dict) and "$back" in item:
            change = {name: value for name, value in item.items() if name != "$back"}
            item = changed(done[-item["$back"]], change)
        done.append(item)
        yield item


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _event(event: Any, end: bytes, named: bool) -> bytes:
    """Return an event of a stream: of its data, or of its fields."""
    fields = event if isinstance(event, list) else [["data", event]]
    if named and isinstance(event, dict):
        fields = [["event", event["type"]], *fields]
    lines = [
        name.encode() + b": " + (data.encode() if isinstance(data, str) else _encoded(data)) for name, data in fields
    ]
    return end.join([*lines, b"", b""])


def _frame(name: str, payload: bytes) -> bytes:
    """Return a message of an event stream of AWS."""
    fields = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    head = b"".join(
        struct.pack("B", len(key)) + key.encode() + struct.pack(">BH", 7, len(value)) + value.encode()
        for key, value in fields.items()
    )
    prelude = struct.pack(">II", len(head) + len(payload) + 16, len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


@cache
def _text(kind: str, size: int) -> str:
    """Return so many bytes of text."""
    text = _TEXTS[kind]
    width = len(text[0].encode())
    return "".join(islice(cycle(text), size // width)) + "." * (size % width)


@cache
def _base64(size: int, head: str, padding: int, alphabet: bytes) -> str:
    noise = base64.b64encode(random.Random(size).randbytes(size + 2), alphabet).decode()
    return (head + noise)[: size - padding] + "=" * padding


@cache
def _floats(size: int) -> tuple[float, ...]:
    rng = random.Random(size)
    return tuple(round(rng.uniform(-0.1, 0.1), 8) for _ in range(size))
