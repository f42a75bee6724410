"""Strict JSON: what two readers could understand differently is refused."""

from __future__ import annotations

import time

import pytest

from enforcement.model.strict_json import InvalidJSON, check_strings, dumps, loads, loads_canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":1}', "a: must occur only once"),
        ('{"a":1.5}', "numbers must be integers, got 1.5"),
        ("[NaN]", "numbers must be integers, got NaN"),
        ("[1] [2]", "must be JSON: Extra data"),
        ("[" * 100_000, "must be JSON: has too many levels of nesting"),
        ("1" * 5_000, "must be JSON: has a number with too many digits"),
        (b'"\xff"', "must be JSON: must be in UTF-8"),
        ("", "must be JSON: "),
    ],
)
def test_text_with_two_meanings_is_refused(text: str | bytes, reason: str) -> None:
    """The message names the rule, and the value if it is short."""
    with pytest.raises(InvalidJSON) as caught:
        loads(text)

    assert str(caught.value).startswith(reason)


def test_a_name_that_occurs_twice_is_found_at_once() -> None:
    """Among the names of a body of some megabytes, of which the last two are equal."""
    names = ",".join(f'"{number}":1' for number in range(200_000))
    began = time.process_time()

    with pytest.raises(InvalidJSON, match=r"^last: must occur only once$"):
        loads(f'{{{names},"last":1,"last":1}}')

    assert time.process_time() - began < 5  # it was 10 minutes


def test_fractions_are_read_only_if_they_are_asked_for() -> None:
    """They must be finite."""
    assert loads('{"a":1.5}', fractions=True) == {"a": 1.5}
    for text in ("Infinity", "1e999", "NaN"):
        with pytest.raises(InvalidJSON, match=f"^numbers must be finite, got {text}$"):
            loads(text, fractions=True)


def test_canonical_text_comes_out_as_it_went_in() -> None:
    """A text with other blanks or another order was not written by dumps()."""
    text = dumps({"b": 1, "a": "ä"})

    assert loads_canonical(text) == {"a": "ä", "b": 1}
    for other in ('{"b":1,"a":1}', '{"a": 1}', '{"a":"ä"}'):
        with pytest.raises(InvalidJSON, match=r"^must be canonical JSON$"):
            loads_canonical(other)


def test_too_long_a_text_is_not_read() -> None:
    """Bytes are counted as bytes."""
    with pytest.raises(InvalidJSON, match=r"^must have at most 3 bytes, got 4$"):
        loads(b"1234", max_length=3)


@pytest.mark.parametrize("value", ["a\0b", "\ud800", {"\udfff": 1}, [["\0"]]])
def test_strings_that_others_cannot_store_are_refused(value: object) -> None:
    """PostgreSQL stores neither NUL nor half of a surrogate pair."""
    with pytest.raises(InvalidJSON, match=r"^strings must not contain NUL or half of a surrogate pair$"):
        check_strings(value)
