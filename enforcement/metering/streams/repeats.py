"""
Recognise events that differ from the one before in their text, and in some numbers.

Most events of a stream are the same JSON with another piece of text in it. Reading such JSON each time costs several
times what all other work on the event costs. A shape is learned from one event: the bytes around its text, around the
few values that change besides and that no meter reads, and around counts of tokens, of which the last ones hold. That
the bytes between them are text, and that nothing else depends on them, is not assumed: two probes with other values in
these places are read as any event, and compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal|text|thinking|partial_json|delta|arguments|input)"\s*:\s*'
    rb'"((?:[^"\\\x00-\x1f]|\\.)+)"'
)
_COUNTS: Final = rb"candidatesTokenCount|totalTokenCount|thoughtsTokenCount|completion_tokens|total_tokens"
# Parts of an event that vary besides its text, with the kind of each.
_NOISE: Final = (
    (re.compile(rb'"(?:obfuscation|p)"\s*:\s*"([^"\\\x00-\x1f]*)"'), "string"),
    (re.compile(rb'"sequence_number"\s*:\s*([0-9]+)'), "number"),
    (re.compile(rb'"(?:' + _COUNTS + rb')"\s*:\s*([1-9][0-9]*)'), "count"),
)
# Parts that vary in some streams only. Each costs time, so they are tried only if the others do not suffice.
_MORE_NOISE: Final = (
    *_NOISE,
    (re.compile(rb'"(?:created|created_at|index|output_index|content_index)"\s*:\s*([0-9]+)'), "number"),
    (re.compile(rb'"(?:promptTokenCount|tokenCount|reasoning_tokens)"\s*:\s*([1-9][0-9]*)'), "count"),
)
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f\x80-\xff]*')
# Each of these escapes stands for one byte. Nothing is tried twice, however long a text is.
_SHORT_ESCAPES: Final = re.compile(rb'(?:[^"\\\x00-\x1f\x80-\xff]++|\\["\\/bfnrt])*+')
_INSIDE: Final = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\.)*+')
# The values that may stand in a place, by its kind. A count of 0 may mean another thing than one of 1, and one of more
# digits may not be believed.
_VALUES: Final = {
    "text": _PLAIN,
    "string": _PLAIN,
    "number": re.compile(rb"0(?![0-9])|[1-9][0-9]{0,17}"),
    "count": re.compile(rb"[1-9][0-9]{0,8}"),
}
_PROBE: Final = b"0000000"
_MAX_CANDIDATES: Final = 4
_STRINGS: Final = json.JSONDecoder()

_TEXT_AND_NUMBERS: Final = frozenset(("text", "number"))

_Place = tuple[int, int, str]
Probe = Callable[[bytes, bool], int | None]
"""
Read one event. Return the bytes of its text, or None if it does more than add text. True: it may also report usage.
"""


class Shape:
    """
    The bytes of an event around what changes.

    Attributes:
        constant: Bytes of text that such an event has beside the one that changes.
        has_counts: Whether such an event reports usage, which differs from one to the next.
    """

    __slots__ = (
        *("_around", "_head", "_head_length", "_is_one_text", "_kinds", "_places", "_tail", "_tail_length"),
        *("constant", "has_counts"),
    )

    def __init__(self, around: tuple[bytes, ...], kinds: tuple[str, ...], constant: int) -> None:
        self._around = around
        self._kinds = kinds
        self.constant = constant
        self.has_counts = "count" in kinds
        self._head, self._tail = around[0], around[-1]
        self._head_length, self._tail_length = len(self._head), len(self._tail)
        self._is_one_text = kinds == ("text",)
        self._places = [
            (_VALUES[kind].match, after, len(after), kind == "text")
            for kind, after in zip(kinds, around[1:], strict=True)
        ]

    def within(self, head: bytes, tail: bytes) -> Shape:
        """Return the shape of such events with bytes before and after each."""
        first, *middle, last = self._around
        return _shape((head + first, *middle, last + tail), self._kinds, self.constant)

    def text_bytes(self, event: bytes) -> int:
        """Return the bytes of the text of an event of this shape, or -1 if it may have another one."""
        at = self._head_length
        if not event.startswith(self._head):
            return -1
        if self._is_one_text:
            end = len(event) - self._tail_length
            if end < at or not event.endswith(self._tail):
                return -1
            if _PLAIN.fullmatch(event, at, end):
                return self.constant + end - at
            found = _length_of(event, at, end)
            return found if found < 0 else self.constant + found
        total = self.constant
        for match, after, length, is_text in self._places:
            value = match(event, at)
            if value is None:
                return -1
            end = value.end()
            if event.startswith(after, end):
                if is_text:
                    total += end - at
            elif is_text:
                end = _end_of_string(event, at)
                found = _length_of(event, at, end)
                if found < 0 or not event.startswith(after, end):
                    return -1
                total += found
            else:
                return -1
            at = end + length
        return total if at == len(event) else -1

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

    def last_of(self, chunk: bytes) -> bytes:
        """Return the last event of such a chunk."""
        return chunk.split(self._tail)[-2] + self._tail


class _NumberedShape(Shape):
    """A shape with numbers, which are mostly those of the last event. Then an event is read as one with a text only."""

    __slots__ = ("_has_repeated", "_last", "_learns")

    def __init__(self, around: tuple[bytes, ...], kinds: tuple[str, ...], constant: int) -> None:
        super().__init__(around, kinds, constant)
        self._last: Shape | None = None  # of events with the numbers of the last one
        self._has_repeated = self._learns = True

    def text_bytes(self, event: bytes) -> int:
        if self._last is not None:
            result = self._last.text_bytes(event)
            if result >= 0:
                self._has_repeated = True
                return result
        result = super().text_bytes(event)
        if result >= 0 and self._learns:
            self._learn_numbers(event)
        return result

    def _learn_numbers(self, event: bytes) -> None:
        """Learn the numbers of an event, unless those of the one before were not repeated."""
        self._learns, self._has_repeated = self._has_repeated, False
        at = begin = stop = self._head_length
        for match, _, length, is_text in self._places:
            value = match(event, at)
            end = _end_of_string(event, at) if is_text or value is None else value.end()
            if is_text:
                begin, stop = at, end
            at = end + length
        self._last = Shape((event[:begin], event[stop:]), ("text",), self.constant) if self._learns else None


def _shape(around: tuple[bytes, ...], kinds: tuple[str, ...], constant: int) -> Shape:
    is_numbered = len(kinds) > 1 and _TEXT_AND_NUMBERS.issuperset(kinds)
    return (_NumberedShape if is_numbered else Shape)(around, kinds, constant)


def learn(event: bytes, probe: Probe, *, more_noise: bool = False) -> Shape | None:
    """
    Return the shape of an event that does nothing but add text, and perhaps report usage, or None if it has none.

    Args:
        more_noise: Whether further numbers may vary, such as the index of a choice.
    """
    noise = [
        (*found.span(1), kind)
        for pattern, kind in (_MORE_NOISE if more_noise else _NOISE)
        for found in pattern.finditer(event)
    ]
    for _, candidate in zip(range(_MAX_CANDIDATES), _TEXT.finditer(event), strict=False):
        shape = _proven(event, candidate.span(1), noise, probe)
        if shape is not None:
            return shape
    return None


def _proven(event: bytes, text: tuple[int, int], noise: list[_Place], probe: Probe) -> Shape | None:
    """Return the shape with the text at one place, if both probes say that it is one."""
    places = sorted([(*text, "text"), *(place for place in noise if place[1] <= text[0] or place[0] >= text[1])])
    kinds = tuple(kind for _, _, kind in places)
    ends = (0, *(end for _, end, _ in places))
    begins = (*(begin for begin, _, _ in places), len(event))
    around = tuple(event[end:begin] for end, begin in zip(ends, begins, strict=True))
    short, long = (_filled(around, kinds, times) for times in (1, 2))
    shorter, longer = (probe(filled, "count" in kinds) for filled in (short, long))
    if shorter is None or longer is None or longer - shorter != len(_PROBE):
        return None
    return _shape(around, kinds, shorter - len(_PROBE))


def _filled(around: tuple[bytes, ...], kinds: tuple[str, ...], times: int) -> bytes:
    number = b"%d" % times
    values = {"text": _PROBE * times, "string": _PROBE * (3 - times), "number": number, "count": number}
    pairs = zip(around, (*(values[kind] for kind in kinds), b""), strict=True)
    return b"".join(before + value for before, value in pairs)


def _end_of_string(event: bytes, at: int) -> int:
    """Return where the inside of a JSON string ends that begins at *at*."""
    inside = _INSIDE.match(event, at)
    return at if inside is None else inside.end()


def _length_of(event: bytes, at: int, end: int) -> int:
    """Return the bytes in UTF-8 of what is inside the quotes of a JSON string, or -1 if no string has this inside."""
    if _SHORT_ESCAPES.fullmatch(event, at, end):
        # An escaped backslash has two, and no other escape begins at the second.
        return end - at - event.count(b"\\", at, end) + event.count(b"\\\\", at, end)
    try:
        text = f'"{event[at:end].decode()}"'
        found, stop = _STRINGS.raw_decode(text)
    except ValueError:
        return -1
    return len(found.encode("utf-8", "surrogatepass")) if stop == len(text) else -1
