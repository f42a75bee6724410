"""
Recognise events that differ from the one before in their text alone.

Most events of a stream are the same JSON with another piece of text in it. Reading such JSON each time costs several
times what all other work on the event costs. A shape is learned from one event: the bytes around its text, and around
the few values that change besides and that no meter reads. That the bytes between them are text, and that nothing
else depends on them, is not assumed: two probes with other values in these places are read as any event, and compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal|text|thinking|partial_json|delta|arguments)"\s*:\s*'
    rb'"((?:[^"\\\x00-\x1f]|\\.)+)"'
)
_NOISE: Final = re.compile(rb'"obfuscation"\s*:\s*"([^"\\\x00-\x1f]*)"|"sequence_number"\s*:\s*([0-9]+)')
# Numbers that vary in some streams only. Each of them costs, so they are looked at where the others do not do.
_MORE_NOISE: Final = re.compile(
    _NOISE.pattern + rb'|"(?:created|created_at|index|output_index|content_index)"\s*:\s*([0-9]+)'
)
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f\x80-\xff]*')
# Each of these escapes stands for one byte. Nothing is tried twice, however long a text is.
_SHORT_ESCAPES: Final = re.compile(rb'(?:[^"\\\x00-\x1f\x80-\xff]++|\\["\\/bfnrt])*+')
_PROBE: Final = b"0000000"
_MAX_CANDIDATES: Final = 4
_MAX_NUMBER: Final = 18
_STRINGS: Final = json.JSONDecoder()

Probe = Callable[[bytes], int | None]
"""Read one event. Return the bytes of its text, or None if it does more than add text."""


class Shape:
    """
    The bytes of an event around what changes.

    Attributes:
        constant: Bytes of text that such an event has beside the one that changes.
    """

    __slots__ = ("_around", "_head", "_head_length", "_is_one_text", "_kinds", "_tail", "_tail_length", "constant")

    def __init__(self, around: tuple[bytes, ...], kinds: tuple[str, ...], constant: int) -> None:
        self._around = around
        self._kinds = kinds
        self.constant = constant
        self._head, self._tail = around[0], around[-1]
        self._head_length, self._tail_length = len(self._head), len(self._tail)
        self._is_one_text = kinds == ("text",)

    def within(self, head: bytes, tail: bytes) -> Shape:
        """Return the shape of such events with bytes before and after each."""
        first, *middle, last = self._around
        return Shape((head + first, *middle, last + tail), self._kinds, self.constant)

    def text_bytes(self, event: bytes) -> int:
        """Return the bytes of the text of an event of this shape, or -1 if it may have another one."""
        at, end = self._head_length, len(event) - self._tail_length
        if end < at or not event.startswith(self._head) or not event.endswith(self._tail):
            return -1
        if not self._is_one_text:
            return self._length_between(event, at, end)
        if _PLAIN.fullmatch(event, at, end):
            return self.constant + end - at
        if _SHORT_ESCAPES.fullmatch(event, at, end):
            # An escaped backslash has two, and no other escape begins at the second.
            escapes = event.count(b"\\", at, end) - event.count(b"\\\\", at, end)
            return self.constant + end - at - escapes
        found = _length_of_string(event[at:end])
        return found if found < 0 else self.constant + found

    def text_bytes_of_several(self, chunk: bytes) -> int:
        """
        Return the bytes of the text of a chunk that is nothing but events of this shape, or -1 if it may be another.

        The shape must be that of a whole chunk: no text contains the end of the line with which it ends.
        """
        tail, total = self._tail, 0
        if not chunk.endswith(tail):
            return -1
        for event in chunk.split(tail)[:-1]:
            found = self.text_bytes(event + tail)
            if found < 0:
                return -1
            total += found
        return total

    def _length_between(self, event: bytes, at: int, end: int) -> int:
        """Return the bytes of text as :meth:`text_bytes` does, if something else changes besides."""
        around, total, last = self._around, self.constant, len(self._kinds) - 1
        for index, kind in enumerate(self._kinds):
            stop = end if index == last else event.find(around[index + 1], at, end)
            if stop < 0:
                return -1
            value = event[at:stop]
            if kind == "text":
                found = _length_of_string(value)
                if found < 0:
                    return -1
                total += found
            elif not (_is_number(value) if kind == "number" else _PLAIN.fullmatch(value)):
                return -1
            at = stop + len(around[index + 1])
        return total


def learn(event: bytes, probe: Probe, *, more_noise: bool = False) -> Shape | None:
    """
    Return the shape of an event that does nothing but add text, or None if it has none.

    Args:
        more_noise: Whether further numbers may vary, such as the index of a choice.
    """
    noise = list((_MORE_NOISE if more_noise else _NOISE).finditer(event))
    for _, candidate in zip(range(_MAX_CANDIDATES), _TEXT.finditer(event), strict=False):
        shape = _proven(event, candidate.span(1), noise, probe)
        if shape is not None:
            return shape
    return None


def _proven(event: bytes, text: tuple[int, int], noise: list[re.Match[bytes]], probe: Probe) -> Shape | None:
    """Return the shape with the text at one place, if both probes say that it is one."""
    places = [(*text, "text")]
    for match in noise:
        begin, end = match.span(match.lastindex or 0)
        if end <= text[0] or begin >= text[1]:
            places.append((begin, end, "string" if match.group(1) is not None else "number"))
    places.sort()
    kinds = tuple(kind for _, _, kind in places)
    ends = (0, *(end for _, end, _ in places))
    begins = (*(begin for begin, _, _ in places), len(event))
    around = tuple(event[end:begin] for end, begin in zip(ends, begins, strict=True))
    short, long = (_filled(around, kinds, times) for times in (1, 2))
    shorter, longer = probe(short), probe(long)
    if shorter is None or longer is None or longer - shorter != len(_PROBE):
        return None
    return Shape(around, kinds, shorter - len(_PROBE))


def _filled(around: tuple[bytes, ...], kinds: tuple[str, ...], times: int) -> bytes:
    values = {"text": _PROBE * times, "string": _PROBE * (3 - times), "number": b"%d" % times}
    pairs = zip(around, (*(values[kind] for kind in kinds), b""), strict=True)
    return b"".join(before + value for before, value in pairs)


def _length_of_string(value: bytes) -> int:
    """Return the bytes in UTF-8 of what is inside the quotes of a JSON string, or -1 if no string has this inside."""
    if _PLAIN.fullmatch(value):
        return len(value)
    try:
        text = f'"{value.decode()}"'
        found, end = _STRINGS.raw_decode(text)
    except ValueError:
        return -1
    return len(found.encode("utf-8", "surrogatepass")) if end == len(text) else -1


def _is_number(value: bytes) -> bool:
    return value.isdigit() and len(value) <= _MAX_NUMBER and (value == b"0" or value[:1] != b"0")
