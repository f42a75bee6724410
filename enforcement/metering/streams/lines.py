"""Read an answer that is one JSON body, or JSON in lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from enforcement.metering.streams.meter import object_in


class BodyReader:
    """
    Keep an answer that is one JSON body.

    Args:
        limit: Bytes of the longest body that is kept.
    """

    is_broken: ClassVar[bool] = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = bytearray()
        self._is_long = False

    def feed(self, chunk: bytes) -> bytes:
        """Keep a chunk, and return it."""
        if not self._is_long:
            self._body += chunk
            if len(self._body) > self._limit:
                self._is_long, self._body = True, bytearray()
        return chunk

    def finish(self) -> bytes:
        """Return no bytes, since none are held back."""
        return b""

    def value(self) -> dict[str, object] | None:
        """Return the JSON object of the body, or None if it is none or was too long."""
        return None if self._is_long else object_in(self._body)


class LinesReader:
    """
    Read an answer that is JSON in lines. If its first line is no JSON object, the answer is one body.

    Args:
        on_line: Gets each line.
        body: Keeps the answer until that is known.
        limit: Bytes of the longest line that is read.
    """

    is_broken: ClassVar[bool] = False

    def __init__(self, on_line: Callable[[bytes], object], body: BodyReader, *, limit: int) -> None:
        self._on_line = on_line
        self._body: BodyReader | None = body
        self._is_decided = False
        self._limit = limit
        self._line = bytearray()
        self._is_long = False

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk, and return it."""
        if self._body is not None:
            self._body.feed(chunk)
            if self._is_decided:
                return chunk
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            self._keep(line)
            if not self._is_decided and (self._line or self._is_long):
                self._decide()
            if self._body is None and self._line:
                self._on_line(bytes(self._line))
            self._line.clear()
            self._is_long = False
        self._keep(rest)
        return chunk

    def finish(self) -> bytes:
        """Return no bytes, since none are held back."""
        return b""

    def whole(self) -> BodyReader | None:
        """Read a last line without an end, and return the body if the answer has no lines."""
        if self._body is None and self._line:
            self._on_line(bytes(self._line))
            self._line.clear()
        return self._body

    def _keep(self, part: bytes) -> None:
        if not self._is_long:
            self._line += part
            if len(self._line) > self._limit:
                self._is_long = True
                self._line.clear()

    def _decide(self) -> None:
        self._is_decided = True
        if not self._is_long and object_in(self._line) is not None:
            self._body = None
