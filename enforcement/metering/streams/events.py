"""
Take streams of bytes apart without keeping them: events of ``text/event-stream``, and elements of a JSON array.

Chunks may end anywhere, also inside a character or a line end. What is longer than a limit is skipped whole. What a
reader keeps is bounded by that limit, whatever comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar, Final

MAX_HELD: Final = 2 * 1024 * 1024
"""Bytes of the longest event that is held back. One that reports usage alone has some hundreds."""

_MARK: Final = b"\xef\xbb\xbf"
_BLANKS: Final = b" \t\r\n"
_LINE_ENDS: Final = b"\r\n"
# Between strings, whatever opens or closes; and all of a string up to its end. Nothing is tried twice.
_STRUCTURE: Final = re.compile(rb'["\[\]{}]')
_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_MAX_DEPTH: Final = 1_000
"""Levels of nesting of an array at which the reading ends. No JSON reader would read its elements."""

_STEP: Final = 64 * 1024
"""Bytes that are split into lines at a time. Each line costs an object."""


class EventReader:
    """
    Read the events of a stream, and pass on its bytes.

    Lines end in LF, CR LF or CR. Data lines of one event are joined by LF. The data ``[DONE]`` ends the reading.

    Args:
        on_event: Gets the data of each event, and returns whether the event is to be hidden.
        limit: Bytes of the longest line that is read, without its end, and of the longest data of one event.
        hides: Hold the bytes of each event back until it is complete, so that it can be hidden. An event is hidden
            with its blank line. Of an event with more than twice *limit* bytes in all, or :data:`MAX_HELD`, the bytes
            pass at once.
        on_done: Called when the stream says that it ends.
    """

    def __init__(
        self,
        on_event: Callable[[bytes], bool],
        *,
        limit: int,
        hides: bool = False,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_event = on_event
        self._on_done = on_done
        self._limit = limit
        self._hides = hides
        self._most_held = min(2 * limit, MAX_HELD)
        self._partial = bytearray()  # a line whose end has not come
        self._is_long = False  # that line is longer than the limit, and is not kept
        self._data: bytearray | bytes | None = None
        self._is_skipped = False  # the data of this event are not kept
        self._is_open = False  # a line of an event has come, and its blank line has not
        self._ended_by_cr = False  # an LF that comes next belongs to the last line
        self._is_first_line = True
        self._mark = b""  # the byte order mark, if this is the first event
        self._held = bytearray()
        self._is_free = False  # the bytes of this event pass at once
        self._hid_last = False
        self.is_done = False

    def is_between_events(self) -> bool:
        """Return whether the next byte begins an event."""
        is_inside = self._is_open or self._partial or self._is_long or self._ended_by_cr
        return not (is_inside or self._is_first_line or self.is_done)

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk, and return the bytes that can be passed on."""
        if self.is_done:
            return chunk
        if not self._hides:
            for begin in range(0, len(chunk), _STEP):
                self._read(chunk if len(chunk) <= _STEP else chunk[begin : begin + _STEP])
            return chunk
        if len(chunk) <= _STEP:
            return self._read(chunk)
        return b"".join(self._read(chunk[begin : begin + _STEP]) for begin in range(0, len(chunk), _STEP))

    def finish(self) -> bytes:
        """Read what is left as if a line end and a blank line followed. Return the bytes that were held back."""
        if self.is_done:
            return b""
        if self._partial or self._is_long:
            self._end_line(b"")
        hidden = self._end_event() and self._hides and not self._is_free
        held = self._mark if hidden else bytes(self._held)
        self._held.clear()
        return held

    def release(self) -> bytes:
        """Return the bytes that were held back. Nothing may be read afterwards."""
        return bytes(self._held)

    def _read(self, chunk: bytes) -> bytes:
        if self.is_done or not chunk:
            return chunk
        passed = _Passed(chunk)
        at = 0
        lines = chunk.splitlines(True)
        if self._ended_by_cr and chunk[:1] == b"\n":
            at = 1
            del lines[0]
            if not self._is_open:
                passed.end_event(1, self._hid_last)
        for line in lines:
            at += len(line)
            if line[-1] not in _LINE_ENDS:
                self._keep(line)
            elif self._end_line(line.rstrip(_LINE_ENDS)) and self._pass_event(passed, at - len(line), at):
                return passed.all()
        self._ended_by_cr = chunk[-1:] == b"\r"
        return self._pass_rest(passed)

    def _pass_event(self, passed: _Passed, blank: int, at: int) -> bool:
        """
        End an event, and return whether it ends the reading.

        Args:
            blank: Offset in the chunk at which its blank line begins.
            at: Offset at which that line ends.
        """
        is_small = not self._is_free and len(self._held) + passed.length_to(blank) <= self._most_held
        hidden = self._end_event() and is_small and self._hides
        if hidden:
            passed.put(self._mark)
        elif self._held:
            passed.put(bytes(self._held))
        passed.end_event(at, hidden)
        self._held.clear()
        self._is_free, self._hid_last, self._mark = False, hidden, b""
        return self.is_done

    def _pass_rest(self, passed: _Passed) -> bytes:
        """Hold the bytes of an event that is not complete back, if they are not too many."""
        if not self._hides or self._is_free:
            return passed.all()
        before, rest = passed.without_rest(), passed.rest()
        if len(self._held) + len(rest) <= self._most_held:
            self._held += rest
            return before
        self._is_free = True
        held = bytes(self._held)
        self._held.clear()
        return before + held + rest

    def _keep(self, part: bytes) -> None:
        """Keep a part of a line whose end has not come."""
        if self._is_long:
            return
        self._partial += part
        if len(self._partial) > self._limit + len(_MARK):
            self._skip_line(self._without_mark(bytes(self._partial)))
            self._partial.clear()
            self._is_long = True

    def _without_mark(self, line: bytes) -> bytes:
        """Return a line, or its beginning, without the byte order mark that only the first line of a stream has."""
        if not self._is_first_line:
            return line
        self._is_first_line = False
        if not line.startswith(_MARK):
            return line
        self._mark = _MARK
        return line[len(_MARK) :]

    def _skip_line(self, begin: bytes) -> None:
        """Skip a line that is too long, and its event if it is a line of data."""
        self._is_open = True
        if begin.startswith(b"data:"):
            self._is_skipped, self._data = True, None

    def _end_line(self, line: bytes) -> bool:
        """Read a line, or the last part of one. Return whether it is the blank line that ends an event."""
        if self._is_long:
            self._is_long = False
            return False
        if self._partial:
            line = bytes(self._partial) + line
            self._partial.clear()
        if self._is_first_line:
            line = self._without_mark(line)
        if not line:
            return True
        self._is_open = True
        if len(line) > self._limit:
            self._skip_line(line)
        elif line.startswith(b"data:"):
            self._add(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            self._add(b"")
        return False

    def _add(self, value: bytes) -> None:
        """Add a line to the data of the event."""
        if self._is_skipped:
            return
        if self._data is None:
            self._data = value
            return
        if type(self._data) is bytes:
            self._data = bytearray(self._data)
        self._data += b"\n" + value
        if len(self._data) > self._limit:
            self._is_skipped, self._data = True, None

    def _end_event(self) -> bool:
        """Read the data of an event, and return whether it is to be hidden."""
        data, self._data = self._data, None
        self._is_open = self._is_skipped = False
        if not data:
            return False
        if data.lstrip(_BLANKS).startswith(b"[DONE]"):
            self.is_done = True
            self._on_done()
            return False
        return self._on_event(bytes(data))


class _Passed:
    """Which bytes of a chunk are passed on. Bytes are joined only if some are held back or hidden."""

    __slots__ = ("_begin", "_chunk", "_done", "_out")

    def __init__(self, chunk: bytes) -> None:
        self._chunk = chunk
        self._out: list[bytes] = []
        self._done = 0  # where the bytes begin that were not put out yet
        self._begin = 0  # where the event begins that is not complete

    def put(self, data: bytes) -> None:
        """Put out bytes that were held back. They precede the chunk."""
        self._out.append(data)

    def end_event(self, at: int, hidden: bool) -> None:
        """Note that an event ends at the offset *at*."""
        if hidden:
            self._out.append(self._chunk[self._done : self._begin])
            self._done = at
        self._begin = at

    def length_to(self, at: int) -> int:
        """Return how many bytes the event that is not complete has before the offset *at*."""
        return at - self._begin

    def rest(self) -> bytes:
        """Return the bytes of the event that is not complete."""
        return self._chunk[self._begin :]

    def all(self) -> bytes:
        """Return all bytes that were not hidden."""
        return self._joined(self._chunk[self._done :])

    def without_rest(self) -> bytes:
        """Return all bytes that were not hidden, but for those of the event that is not complete."""
        return self._joined(self._chunk[self._done : self._begin])

    def _joined(self, last: bytes) -> bytes:
        return b"".join((*self._out, last)) if self._out else last


class ArrayReader:
    """
    Read the elements of a JSON array as they come.

    Args:
        on_element: Gets the JSON text of each element that is an object.
        limit: Bytes of the longest element that is read.
    """

    is_broken: ClassVar[bool] = False

    def __init__(self, on_element: Callable[[bytes], object], *, limit: int) -> None:
        self._on_element = on_element
        self._limit = limit
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._element = bytearray()
        self._is_skipped = True  # no element is open, or it is too long, or it is no object
        self.is_done = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk, and return it."""
        at = begin = 0
        if self._is_escaped and chunk:
            at, self._is_escaped = 1, False
        while not self.is_done:
            if self._in_string:
                at = self._end_string(chunk, at)
            matched = _STRUCTURE.search(chunk, at)
            if matched is None:
                break
            at, byte = matched.end(), matched.group()
            if byte == b'"':
                self._in_string = True
            elif byte in b"[{":
                begin = self._open(byte, at - 1, begin)
            else:
                self._close(chunk, begin, at)
        if not self._is_skipped:
            self._keep(chunk[begin:])
        return chunk

    def _end_string(self, chunk: bytes, at: int) -> int:
        """Return where the string ends that a chunk begins in, or the end of the chunk if it does not end."""
        inside = _STRING.match(chunk, at)
        end = at if inside is None else inside.end()
        self._in_string = chunk[end : end + 1] != b'"'
        self._is_escaped = chunk[end : end + 1] == b"\\"
        return len(chunk) if self._in_string else end + 1

    def finish(self) -> bytes:
        """Return no bytes, since none are held back. An element that is not complete is not read."""
        return b""

    def _open(self, byte: bytes, at: int, begin: int) -> int:
        self._depth += 1
        self.is_done = self._depth > _MAX_DEPTH
        if self._depth == 2 and byte == b"{":
            self._is_skipped = False
            return at
        return begin

    def _close(self, chunk: bytes, begin: int, end: int) -> None:
        self._depth -= 1
        if self._depth == 1 and not self._is_skipped:
            self._keep(chunk[begin:end])
            if not self._is_skipped:
                self._on_element(bytes(self._element))
            self._element.clear()
            self._is_skipped = True
        self.is_done = self._depth == 0

    def _keep(self, part: bytes) -> None:
        self._element += part
        if len(self._element) > self._limit:
            self._element.clear()
            self._is_skipped = True
