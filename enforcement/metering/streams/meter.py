"""Read what the events of a stream say. Most of them differ from the one before in their text alone."""

from __future__ import annotations

import json
from binascii import a2b_base64
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NoReturn

from enforcement.metering.formats.reading import MODIFIERS, AnswerReader
from enforcement.metering.streams.events import EventReader
from enforcement.metering.streams.repeats import Shape, learn

_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
# Longest event, in bytes, whose shape is learned.
_MAX_SHAPE: Final = 4096
# How many shapes of events are learned of one answer. Each costs as much as two events.
_SHAPES: Final = 8
# How many of them have few places that vary.
_PLAIN_SHAPES: Final = 3
_DELTA: Final = "contentBlockDelta"
# How services write an event inside another one.
_INNER: Final = b'{"bytes":"'
_INNER_LENGTH: Final = len(_INNER)
_PADDING: Final = b'","p":"'
_END: Final = b'"}'


class EventMeter:
    """
    Read the events of one answer, and learn their shape.

    Args:
        read_so_far: What the answer has said so far.
        hides: Whether the event that reports usage alone is hidden.
    Attributes:
        count: How many events were read.
        shape: The shape of the data of an event, as learned last. None if it is not known.
        chunk_shape: The shape of a chunk that is one such event. None if it is not known.
        repeated: The data of the last event that had this shape.
        unread: The last event of this shape whose usage was not read so far, perhaps with bytes around its data.
    """

    __slots__ = (
        *("_hides", "_model", "_modifiers", "_read_so_far", "_shapes_left"),
        *("chunk_shape", "count", "repeated", "shape", "unread"),
    )

    def __init__(self, read_so_far: AnswerReader, *, hides: bool) -> None:
        self._read_so_far = read_so_far
        self._hides = hides
        self._shapes_left = _SHAPES
        self._model: str | None = None  # which events of this shape name
        self._modifiers: object = None  # what the rates depended on when it was learned
        self.count = 0
        self.shape: Shape | None = None
        self.chunk_shape: Shape | None = None
        self.repeated = self.unread = b""

    def read(self, data: bytes) -> bool:
        """Read the JSON of an event, and return whether the event is to be hidden."""
        self.count += 1
        shape = self.shape
        if shape is not None:
            found = shape.text_bytes(data)
            if found >= 0:
                self._read_so_far.text_bytes += found
                if self._model is not None:
                    self._read_so_far.model = self._model
                self.repeated = data
                if shape.has_counts:
                    self.unread = data
                return False
        self.catch_up()
        event = self.object_in(data)
        if event is None:
            return False
        before = self._read_so_far.text_bytes
        self._read_so_far.read_event(event)
        if shape is not None and self._read_so_far.more.get(MODIFIERS) != self._modifiers:
            self.shape = self.chunk_shape = None  # the next event of that shape may change them again
        if self._shapes_left and self._read_so_far.text_bytes > before and len(data) <= _MAX_SHAPE:
            self._learn(data)
        return self._hides and event.get("choices") == [] and type(event.get("usage")) is dict

    def catch_up(self) -> None:
        """Read the usage of the last event that was repeated. Each such event replaces what those before it said."""
        if self.unread:
            event = self.object_in(self.unread[self.unread.index(b"{") : self.unread.rindex(b"}") + 1])
            reader, counted = self._read_so_far, self._read_so_far.text_bytes
            self.unread = b""
            if event is not None:
                reader.read_event(event)
            reader.text_bytes, reader.counted_bytes = counted, min(reader.counted_bytes, counted)

    def done(self) -> None:
        """Note that the stream has said that it ends."""
        self.catch_up()
        self._read_so_far.done()

    def object_in(self, data: bytes) -> dict[str, object] | None:
        """Return the event that data say, or None if they say none."""
        return object_in(data)

    def repeat(self) -> None:
        """Note that an event of the shape that was learned last has come, whose text is counted elsewhere."""
        if self._model is not None:
            self._read_so_far.model = self._model

    def learn_chunk(self, chunk: bytes) -> None:
        """Learn the shape of a chunk that was one event, if that event had the shape of the one before."""
        data = self.repeated
        at = chunk.find(data)
        head, tail = chunk[:at], chunk[at + len(data) :]
        if self.shape is not None and data and head.endswith((b"data: ", b"data:")) and tail in _EVENT_ENDS:
            self.chunk_shape = self.shape.within(head, tail)

    def _learn(self, data: bytes) -> None:
        """Learn the shape of an event that has added text."""
        self._shapes_left -= 1
        self._model = None
        self._modifiers = self._read_so_far.more.get(MODIFIERS)
        self.chunk_shape = None
        self.shape = learn(data, self._probe, more_noise=self._shapes_left < _SHAPES - _PLAIN_SHAPES)

    def _probe(self, data: bytes, reports: bool) -> int | None:
        """
        Read an event apart from all others, and return the bytes of its text if it does nothing but add them, and
        perhaps *reports* usage.
        """
        event = self.object_in(data)
        if event is None:
            return None
        reader = self._read_so_far.blank()
        reader.read_event(event)
        self._model = reader.model
        return reader.text_bytes if reader.only_added_text(reports=reports) else None


class _DeltaMeter(EventMeter):
    """Reads the events of Converse that have text. The type of an event stands beside it, as its only key elsewhere."""

    __slots__ = ()

    def object_in(self, data: bytes) -> dict[str, object] | None:
        event = object_in(data)
        return None if event is None else {_DELTA: event}


class MessageMeter:
    """Read what the messages of an event stream of AWS say. Of exceptions and what is unknown, only that they came."""

    __slots__ = ("_deltas", "_inner", "_read_so_far")

    def __init__(self, read_so_far: AnswerReader) -> None:
        self._read_so_far = read_so_far
        self._deltas = _DeltaMeter(read_so_far, hides=False)
        self._inner = EventMeter(read_so_far, hides=False)

    def catch_up(self) -> None:
        """Read the usage of the last event that was repeated."""
        self._inner.catch_up()

    def reader_for(self, headers: dict[str, str]) -> Callable[[bytes], object]:
        """
        Return what reads the payload of messages with these headers. An event of the type ``chunk`` has another one
        inside, in the format of the model.
        """
        kind = headers.get(":event-type", "")
        if headers.get(":message-type") != "event":
            return self._fail
        if kind == _DELTA:
            return self._deltas.read
        return self._read_inner if kind == "chunk" else partial(self._read_other, kind)

    def _fail(self, payload: bytes) -> None:
        self._read_so_far.has_failed = True

    def _read_other(self, kind: str, payload: bytes) -> None:
        event = object_in(payload)
        if event is not None:
            self._read_so_far.read_event({kind: event})

    def _read_inner(self, payload: bytes) -> None:
        """Read an event inside another one. If that has no other, it is the event itself."""
        inner: Any = None
        if payload.startswith(_INNER) and payload.endswith(_END):  # as services write it
            coded, found, padding = payload[_INNER_LENGTH:-2].partition(_PADDING)
            if not found or padding.isalnum():
                try:
                    inner = a2b_base64(coded, strict_mode=True)
                except ValueError:
                    inner = None
        if inner is None:
            inner = (object_in(payload) or {}).get("bytes")
            if type(inner) is not str:
                self._inner.read(payload)
                return
            try:
                inner = a2b_base64(inner)
            except ValueError:
                return
        self._inner.read(inner)


class StreamMeter:
    """
    Read a stream of events while its bytes pass.

    Args:
        read_so_far: What the answer has said so far.
        limit: See :class:`~enforcement.metering.streams.events.EventReader`.
        hides: See :class:`EventMeter`.
        plain: Whether what is read are the chunks of the answer themselves, and not what they are decoded to.
    """

    __slots__ = ("_has_model", "_is_plain", "_meter", "_next", "_read_so_far", "_reader")

    def __init__(self, read_so_far: AnswerReader, *, limit: int, hides: bool, plain: bool) -> None:
        # Neither of the two knows this object. In a circle, all that an answer leaves would wait for the collector.
        self._meter = EventMeter(read_so_far, hides=hides)
        self._reader = EventReader(self._meter.read, limit=limit, hides=hides, on_done=self._meter.done)
        self._read_so_far = read_so_far
        self._is_plain = plain
        self._has_model = False  # whether the last chunk was repeated, too
        self._next: Shape | None = None  # of the next chunk, perhaps

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk, and return the bytes that can be passed on."""
        shape = self._next
        if shape is not None:
            found, last = shape.text_bytes(chunk), chunk
            if found < 0:  # several events come together if this process has no time, or the network none
                found = shape.text_bytes_of_several(chunk)
                last = shape.last_of(chunk) if found >= 0 and shape.has_counts else b""
            if found >= 0:
                self._read_so_far.text_bytes += found
                if shape.has_counts:
                    self._meter.unread = last
                if not self._has_model:  # all such events name the same one
                    self._has_model = True
                    self._meter.repeat()
                return chunk
        return self._read(chunk)

    def catch_up(self) -> None:
        """Read the usage of the last event that was repeated."""
        self._meter.catch_up()

    def finish(self) -> bytes:
        """Note that the stream has ended, and return the bytes that were held back."""
        return self._reader.finish()

    def release(self) -> bytes:
        """Return the bytes that were held back. Nothing may be read afterwards."""
        return self._reader.release()

    def _read(self, chunk: bytes) -> bytes:
        meter, reader = self._meter, self._reader
        learns = self._is_plain and meter.shape is not None and meter.chunk_shape is None
        learns = learns and reader.is_between_events()
        before, meter.repeated = meter.count, b""
        self._has_model = False
        passed = reader.feed(chunk)
        if not self._is_plain:
            return passed
        is_between = reader.is_between_events()
        if learns and is_between and meter.count == before + 1:
            meter.learn_chunk(chunk)
        self._next = meter.chunk_shape if is_between else None
        return passed


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


# The work of a decoder around its scanner takes as long as a short event.
_SCAN: Final = json.JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]
_BLANKS: Final = " \t\r\n"


def object_in(data: bytes | bytearray) -> dict[str, object] | None:
    """Return the JSON object of an event or a body, or None if it is none or is nested too deeply."""
    text = data.decode("utf-8", "replace")
    if not text.startswith("{"):
        text = text.lstrip(_BLANKS)
    try:
        value, end = _SCAN(text, 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    return value if type(value) is dict and (end == len(text) or not text[end:].strip(_BLANKS)) else None
