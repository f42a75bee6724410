"""
Read and write JSON so that every program understands the same value.

JSON readers disagree about fields that occur twice, NaN, infinities, NUL and broken surrogate pairs. All of these are
refused here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 20
"""Levels of nesting that a document may have."""
# json.dumps would make an encoder for each call with such options.
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


class InvalidJSON(ValueError):
    """Text that is not JSON, or that two JSON readers could understand differently."""


def loads(text: str | bytes, *, max_length: int | None = None, fractions: bool = False) -> Any:
    """
    Return the value of a JSON text, with integers as its only numbers, or raise InvalidJSON if it is ambiguous.

    Args:
        text: One JSON value, with nothing after it.
        max_length: Longest text that is read, in characters, or in bytes if *text* is bytes. None: any length.
        fractions: Accept numbers with a fraction or an exponent. Without it all numbers must be integers.
    Raises:
        InvalidJSON: The text is too long, is not JSON, has a field twice, or has a number that is not accepted.
    """
    if max_length is not None and len(text) > max_length:
        unit = "bytes" if isinstance(text, bytes) else "characters"
        raise InvalidJSON(f"must have at most {max_length} {unit}, got {len(text)}")
    constant, fraction = (_not_finite, _finite) if fractions else (_not_integer, _not_integer)
    return _decode(text, constant, fraction)


def loads_object(text: str | bytes, *, max_length: int | None = None, fractions: bool = False) -> dict[str, object]:
    """Return the dictionary of a JSON text that must be an object. Arguments and errors are those of :func:`loads`."""
    value = loads(text, max_length=max_length, fractions=fractions)
    if not isinstance(value, dict):
        raise InvalidJSON("must be a JSON object")
    return value


def loads_canonical(text: str, *, max_length: int | None = None) -> dict[str, object]:
    """
    Return the value of a JSON object as :func:`dumps` writes it, as a dictionary.

    Raises:
        InvalidJSON: As :func:`loads_object` does, or the text is not what :func:`dumps` makes of its value.
    """
    value = loads_object(text, max_length=max_length)
    if dumps(value) != text:
        raise InvalidJSON("must be canonical JSON")
    return value


def dumps(value: object) -> str:
    """Return a value as canonical JSON, which has sorted fields, no blanks and only ASCII characters."""
    return _CANONICAL.encode(value)


def check_strings(value: object, depth: int = 1) -> None:
    """
    Raise InvalidJSON for a value that is nested too deeply, or has a string that other programs cannot store.

    Args:
        value: A value that :func:`loads` has returned.
        depth: The level of *value*.
    Raises:
        InvalidJSON: There are more than :data:`MAX_DEPTH` levels, or a string has NUL or half of a surrogate pair.
    """
    if depth > MAX_DEPTH:
        raise InvalidJSON(f"must have at most {MAX_DEPTH} levels of nesting")
    if isinstance(value, str):
        if "\0" in value or (not value.isprintable() and any(0xD800 <= ord(char) <= 0xDFFF for char in value)):
            raise InvalidJSON("strings must not contain NUL or half of a surrogate pair")
    elif isinstance(value, list):
        for item in value:
            check_strings(item, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_strings(name, depth + 1)
            check_strings(item, depth + 1)


def _decode(text: str | bytes, constant: Callable[[str], object], fraction: Callable[[str], object]) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=constant, parse_float=fraction)
    except InvalidJSON:
        raise
    except json.JSONDecodeError as exc:
        raise InvalidJSON(f"must be JSON: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidJSON("must be JSON: must be in UTF-8") from exc
    except RecursionError as exc:
        raise InvalidJSON("must be JSON: has too many levels of nesting") from exc
    except ValueError as exc:  # Python reads no integer with more digits than sys.get_int_max_str_digits()
        raise InvalidJSON("must be JSON: has a number with too many digits") from exc


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        # Each name is looked at once, because whoever sends 100,000 of them may send one twice.
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidJSON(f"{twice[:64]}: must occur only once")
    return result


def _not_integer(text: str) -> NoReturn:
    raise InvalidJSON(f"numbers must be integers, got {text[:40]}")


def _not_finite(text: str) -> NoReturn:
    raise InvalidJSON(f"numbers must be finite, got {text[:40]}")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        _not_finite(text)
    return number
