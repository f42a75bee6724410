"""
Take an event stream of AWS apart (``application/vnd.amazon.eventstream``).

A message has its length, that of its headers, a checksum of these two, its headers, its payload, and a checksum of all.
Chunks may end anywhere. What is longer than a limit is skipped whole, and what a reader keeps is bounded by that limit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final
from zlib import crc32

MAX_MESSAGE: Final = 24 * 1024 * 1024
"""Bytes of the longest message that there may be: 16 MiB of payload in the services, and a margin."""

_PRELUDE: Final = struct.Struct(">III")
_CHECKSUM: Final = struct.Struct(">I")
_LEAST: Final = _PRELUDE.size + _CHECKSUM.size
# Bytes of the value of a header by its type. Bytes and strings have a length of two bytes before them.
_FIXED: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_WITH_LENGTH: Final = (6, 7)
_STRING: Final = 7
# Headers that are kept after they were read: how many at most, and bytes of the longest. The same of messages, by all
# that is before their payload.
_MOST_KEPT: Final = 8
_MAX_KEPT: Final = 512
_MOST_KNOWN: Final = 256

ReadPayload = Callable[[bytes], object]


class FrameReader:
    """
    Read the messages of a stream. Once a checksum or a length is wrong, nothing more is read.

    Args:
        reader_for: Returns what reads the payload of messages with these headers, of which it gets those that are
            strings. It is asked once for headers that many messages repeat.
        limit: Bytes of the longest message that is read.
    Attributes:
        is_broken: Whether the stream is no such stream, or was damaged.
    """

    def __init__(self, reader_for: Callable[[dict[str, str]], ReadPayload], *, limit: int) -> None:
        self._reader_for = reader_for
        self._limit = limit
        self._kept = b""
        self._readers: dict[bytes, ReadPayload] = {}  # by headers that were read, which most messages repeat
        # Length, reader, and checksum so far, by prelude and headers, and how long these were last.
        self._known: dict[bytes, tuple[int, ReadPayload, int]] = {}
        self._before = 0
        self._skips = 0  # bytes of a long message that are still to come
        self.is_broken = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk, and return it."""
        if self._kept or self._skips or self.is_broken:
            skipped = min(self._skips, len(chunk))
            self._skips -= skipped
            if not self.is_broken and skipped < len(chunk):
                self._read(self._kept + chunk[skipped:])
            return chunk
        # Most chunks are one message that begins like another one did.
        known = self._known.get(chunk[: self._before])
        if known and known[0] == len(chunk):
            payload = chunk[self._before : -4]
            if crc32(payload, known[2]) == int.from_bytes(chunk[-4:]):
                known[1](payload)
                return chunk
        self._read(chunk)
        return chunk

    def finish(self) -> bytes:
        """Return no bytes, since none are held back. A message that is not complete is not read."""
        return b""

    def _read(self, rest: bytes) -> None:
        at = 0
        while len(rest) - at >= _PRELUDE.size:
            total, headers, checksum = _PRELUDE.unpack_from(rest, at)
            is_long = total > self._limit
            if not _LEAST + headers <= total <= MAX_MESSAGE or crc32(rest[at : at + 8]) != checksum:
                self._break()
                return
            if is_long or len(rest) - at < total:
                break
            if not self._read_message(rest[at : at + total], headers):
                self._break()
                return
            at += total
        else:
            is_long = False
        if is_long:
            self._skips = max(0, total - (len(rest) - at))
            at = min(len(rest), at + total)
        self._kept = rest[at:]
        if is_long and self._kept:
            self._read(self._kept)

    def _read_message(self, message: bytes, headers: int) -> bool:
        """Read one message, and return whether it is whole and well formed."""
        end = len(message) - _CHECKSUM.size
        if crc32(message[:end]) != _CHECKSUM.unpack_from(message, end)[0]:
            return False
        head = message[_PRELUDE.size : _PRELUDE.size + headers]
        read = self._readers.get(head)
        if read is None:
            names = _headers_in(head)
            if names is None:
                return False
            read = self._reader_for(names)
            if len(self._readers) < _MOST_KEPT and headers <= _MAX_KEPT:
                self._readers[head] = read
        if head in self._readers:
            self._before = _PRELUDE.size + headers
            if len(self._known) < _MOST_KNOWN:
                begin = message[: self._before]
                self._known[begin] = len(message), read, crc32(begin)
        read(message[_PRELUDE.size + headers : end])
        return True

    def _break(self) -> None:
        self.is_broken, self._kept = True, b""


def _headers_in(data: bytes) -> dict[str, str] | None:
    """Return the headers that are strings, or None if the headers are malformed."""
    result: dict[str, str] = {}
    at, end = 0, len(data)
    while at < end:
        name_end = at + 1 + data[at]
        if name_end >= end:
            return None
        name, kind, at = data[at + 1 : name_end], data[name_end], name_end + 1
        if kind in _WITH_LENGTH and at + 2 <= end:
            begin = at + 2
            at = begin + int.from_bytes(data[at:begin], "big")
        elif kind in _FIXED:
            begin = at
            at += _FIXED[kind]
        else:
            return None
        if at > end:
            return None
        if kind == _STRING:
            result[name.decode("utf-8", "replace")] = data[begin:at].decode("utf-8", "replace")
    return result
