"""
Read the JSON body of a request strictly, and write single values into it.

Two JSON readers may disagree about a key that occurs twice, about NaN, and about what follows a value. A request is
therefore read strictly, so that the model that is charged is the model that answers. A change is written into the text
of the body, so that all other values stay as they came: numbers keep their digits, and keys their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from json.decoder import JSONArray, JSONObject, scanstring  # type: ignore[attr-defined]
from json.scanner import make_scanner
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 128
"""Levels of nesting that the body of a request may have."""

MAX_CONTAINERS: Final = 65_536
"""Objects and arrays that the body of a request may have. Each takes a microsecond or more, whatever it says."""

CACHE_MARKS: Final = ("cache_control", "cachePoint")
"""Fields that mark what the provider writes to a cache."""

DUPLICATE_KEY: Final = "duplicate_key"
INVALID_JSON: Final = "invalid_json"

_CACHE_CONTROL, _CACHE_POINT = CACHE_MARKS
_MARK: Final = b"\xef\xbb\xbf"
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_STRINGS_AND_BLANKS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[ \t\n\r]+', re.DOTALL)
_NO_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^][{}"]+', re.DOTALL)


class DuplicateKey(ValueError):
    """An object in which a key occurs twice."""


@dataclass(slots=True)
class ParsedBody:
    """
    The body of a request, as JSON.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        value: The value; None if there is a fault.
        fault: ``duplicate_key`` or ``invalid_json``; empty if the body is strict JSON.
        objects: How many JSON objects it has.
        has_marks: Whether one of them has a field of :data:`CACHE_MARKS`.
        growth: How many characters more its numbers have if none is written with an exponent.
    """

    value: Any = None
    fault: str = ""
    objects: int = 0
    has_marks: bool = False
    growth: int = 0


class _Scan:
    """Strict scans, one after the other, with the attributes that the scanner of the module json asks for."""

    strict, object_hook, parse_int = True, None, int
    parse_object, parse_array, parse_string = (
        staticmethod(JSONObject),
        staticmethod(JSONArray),
        staticmethod(scanstring),
    )

    def __init__(self) -> None:
        self.objects, self.has_marks, self.growth = 0, False, 0
        self.memo: dict[str, str] = {}
        self._scan: Callable[[str, int], tuple[object, int]] = make_scanner(self)  # type: ignore[arg-type]

    def object_pairs_hook(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise DuplicateKey
        self.objects += 1
        if _CACHE_CONTROL in result or _CACHE_POINT in result:
            self.has_marks = True
        return result

    @staticmethod
    def parse_constant(text: str) -> NoReturn:
        raise ValueError(f"numbers must be finite, got {text[:40]}")

    def parse_float(self, text: str) -> float:
        number = float(text)
        if number in (float("inf"), float("-inf")):
            self.parse_constant(text)
        if number and ("e" in text or "E" in text):
            self.growth += max(0, len(f"{Decimal(text):f}.0") - len(text))
        return number

    def read(self, text: str) -> object:
        """Return the value of a text, or raise ValueError or RecursionError."""
        self.objects, self.has_marks, self.growth = 0, False, 0
        try:
            value, end = self._scan(text, 0 if text.startswith("{") else _after_blanks(text, 0))
        except StopIteration as exc:
            raise ValueError("there must be a value") from exc
        if end != len(text) and _after_blanks(text, end) != len(text):
            raise ValueError("nothing may follow the value")
        return value


# Those that no thread uses now.
_IDLE: Final[list[_Scan]] = []


def parse(body: bytes) -> ParsedBody:
    """
    Return the value of a body that is strict JSON in UTF-8, else its fault.

    A byte order mark before the value is skipped. A key that occurs twice is the fault even if there are others.
    """
    if len(body) > MAX_CONTAINERS and is_too_large(body):
        return ParsedBody(fault=INVALID_JSON)
    try:
        text = body.removeprefix(_MARK).decode()
    except UnicodeDecodeError:
        return ParsedBody(fault=_fault_of(body.decode(errors="replace")))
    try:
        scan = _IDLE.pop()
    except IndexError:
        scan = _Scan()
    try:
        value = scan.read(text)
        objects, has_marks, growth = scan.objects, scan.has_marks, scan.growth
    except DuplicateKey:
        return ParsedBody(fault=DUPLICATE_KEY)
    except (ValueError, RecursionError):
        return ParsedBody(fault=_fault_of(text))
    finally:
        _IDLE.append(scan)
    # Brackets in strings count, too, and most bodies have too few even so.
    if objects + body.count(b"[") > MAX_DEPTH and _is_too_deep(body):
        return ParsedBody(fault=INVALID_JSON)
    return ParsedBody(value, "", objects, has_marks, growth)


def parse_leniently(body: bytes) -> Any:
    """
    Return the value of a body that other programs may take for JSON, or None if it is none at all, or has too many
    objects and arrays to be read.
    """
    if is_too_large(body):
        return None
    try:
        return _PLAIN.decode(body.removeprefix(_MARK).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def is_too_large(body: bytes) -> bool:
    """Return whether JSON has more objects and arrays than are read."""
    # Most bodies are too short for that, or have too few brackets, also with those inside strings.
    return (
        len(body) > MAX_CONTAINERS
        and _containers(body) > MAX_CONTAINERS
        and _containers(outside_strings(body)) > MAX_CONTAINERS
    )


def _containers(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise DuplicateKey
    return result


_LENIENT: Final = json.JSONDecoder(object_pairs_hook=_unique)
_PLAIN: Final = json.JSONDecoder()


def _fault_of(text: str) -> str:
    """Return the fault of a text that is not JSON: a key that occurs twice before the place where it breaks, first."""
    try:
        _LENIENT.raw_decode(text, _after_blanks(text, 0))
    except DuplicateKey:
        return DUPLICATE_KEY
    except (ValueError, RecursionError):
        pass
    return INVALID_JSON


def _is_too_deep(body: bytes) -> bool:
    """Return whether valid JSON has more levels of nesting than allowed."""
    depth = 0
    for bracket in _NO_BRACKETS.sub(b"", body):
        depth += 1 if bracket in b"{[" else -1
        if depth > MAX_DEPTH:
            return True
    return False


@dataclass(frozen=True, slots=True)
class _JsonMember:
    """A member of an object in a text: its key, and where its value begins and ends."""

    key: str
    begin: int
    end: int


def write_values(body: bytes, value: Mapping[str, object], changes: Mapping[str, int | bool]) -> bytes:
    """
    Return a body with values written into it.

    Args:
        body: A JSON object for which :func:`parse` found no fault.
        value: That object.
        changes: Each value and where it belongs: a JSON pointer whose keys are letters and underscores. Objects on
            the way that are missing or null are made. A new key becomes the last one of its object.
    Raises:
        ValueError: What is on the way is neither an object nor null.
    """
    known = set(value)
    for pointer, new in changes.items():
        keys, literal = pointer.split("/")[1:], str(new).lower()
        if keys[0] in known:
            text = body.decode()
            body = _written(text, text.index("{"), keys, literal).encode()
        else:
            end = body.rindex(b"}")
            member = _nested(keys, literal)[1:-1]
            body = b"".join((body[:end], b"," if known else b"", member.encode(), body[end:]))
            known.add(keys[0])
    return body


def outside_strings(body: bytes) -> bytes:
    """Return the numbers, words, brackets, commas and colons of valid JSON, without its strings and white space."""
    return _STRINGS_AND_BLANKS.sub(b"", body)


def value_at(value: Any, pointer: str) -> Any:
    """Return what stands at a JSON pointer of keys without ``~``, or raise KeyError."""
    for key in pointer.split("/")[1:]:
        value = value[key]
    return value


def _written(text: str, begin: int, keys: list[str], literal: str) -> str:
    """Return *text* with a value written into the object that begins at *begin*."""
    after = begin + 1
    for member in _members(text, begin):
        if member.key == keys[0]:
            return _replaced(text, member, keys[1:], literal)
        after = member.end
    comma = "," if after > begin + 1 else ""
    return f"{text[:after]}{comma}{_nested(keys, literal)[1:-1]}{text[after:]}"


def _replaced(text: str, member: _JsonMember, keys: list[str], literal: str) -> str:
    old = text[member.begin : member.end]
    if keys and old.startswith("{"):
        return _written(text, member.begin, keys, literal)
    if keys and old != "null":
        raise ValueError(f"{member.key}: must be an object")
    return f"{text[: member.begin]}{_nested(keys, literal)}{text[member.end :]}"


def _nested(keys: list[str], literal: str) -> str:
    for key in reversed(keys):
        literal = f'{{"{key}":{literal}}}'
    return literal


def _members(text: str, begin: int) -> Iterator[_JsonMember]:
    """Yield the members of the object that begins at *begin*."""
    at = _after_blanks(text, begin + 1)
    while text[at] != "}":
        if text[at] == ",":
            at = _after_blanks(text, at + 1)
        key, at = _PLAIN.raw_decode(text, at)
        at = _after_blanks(text, _after_blanks(text, at) + 1)
        _, end = _PLAIN.raw_decode(text, at)
        yield _JsonMember(key, at, end)
        at = _after_blanks(text, end)


def _after_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at
