"""Decode compressed answers for reading, within bounds. The compressed bytes themselves pass untouched."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Final

READ_ALWAYS: Final = frozenset({"gzip"})
"""Encodings that are decoded unless a caller names others."""

ALL_ENCODINGS: Final = frozenset({"gzip", "deflate", "br", "zstd"})
"""Encodings that can be decoded; the last two only where a package for them is installed."""

MAX_RATIO: Final = 256
"""How many bytes may come out for each byte that went in."""

FREE_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may come out whatever went in: what a processor decodes in some 50 ms."""

_STEP: Final = 64 * 1024
_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class UndecodableAnswer(Exception):
    """Bytes that are not in their encoding, or of which far too many bytes come out."""


class Decoder:
    """
    Decode the bytes of one answer, piece by piece.

    Subclasses decode one encoding each. They hold no more than one piece of what comes out.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._left = FREE_BYTES

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """
        Yield what comes out of a chunk, in pieces of at most 64 KiB.

        Raises:
            UndecodableAnswer: The chunk cannot be decoded, or too much comes out.
        """
        self._left += MAX_RATIO * len(chunk)
        for piece in self._pieces(chunk):
            self._left -= len(piece)
            if self._left < 0:
                raise UndecodableAnswer(f"more than {MAX_RATIO} bytes come out of each byte")
            if piece:
                yield piece

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        raise NotImplementedError


class ZlibDecoder(Decoder):
    """
    Decode gzip or deflate.

    Args:
        window_bits: As :func:`zlib.decompressobj` takes them; they name the format.
    """

    def __init__(self, window_bits: int) -> None:
        super().__init__()
        self._window_bits = window_bits
        self._decompress = zlib.decompressobj(window_bits)

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            if self.is_complete:
                if self._window_bits != _GZIP or not chunk.startswith(b"\x1f"):
                    return  # what follows the last member is no part of the answer
                self._decompress, self.is_complete = zlib.decompressobj(_GZIP), False
            try:
                yield self._decompress.decompress(chunk, _STEP)
            except zlib.error as exc:
                raise UndecodableAnswer(str(exc)) from exc
            self.is_complete = self._decompress.eof
            chunk = self._decompress.unused_data if self.is_complete else self._decompress.unconsumed_tail


class DeflateDecoder(Decoder):
    """Decode deflate, which some servers send without the zlib header that HTTP asks for (RFC 9110, 8.4.1.2)."""

    def __init__(self) -> None:
        super().__init__()
        self._inner: ZlibDecoder | None = None

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        if self._inner is None and chunk:
            self._inner = ZlibDecoder(_ZLIB if chunk[0] & 0x0F == 8 else _RAW)
        if self._inner is not None:
            yield from self._inner._pieces(chunk)
            self.is_complete = self._inner.is_complete


class BrotliDecoder(Decoder):
    """Decode br, with the package brotli, or raise ImportError if it is not installed."""

    def __init__(self) -> None:
        super().__init__()
        import brotli  # an extra, which most answers do not need

        self._error = brotli.error
        self._decompressor = brotli.Decompressor()

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        while not self.is_complete:
            try:
                piece = self._decompressor.process(chunk, output_buffer_limit=_STEP)
            except (self._error, TypeError) as exc:  # versions before 1.2 have no such limit
                raise UndecodableAnswer(str(exc)) from exc
            self.is_complete = self._decompressor.is_finished()
            yield piece
            if self._decompressor.can_accept_more_data():
                return
            chunk = b""


class ZstdDecoder(Decoder):
    """Decode zstd, with Python 3.14 or the package backports.zstd, or raise ImportError if there is neither."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from compression import zstd
        except ImportError:
            from backports import zstd
        # RFC 8878, 3.1.1.1.2: a decoder has to take windows of 8 MiB, and may refuse larger ones.
        self._options = {zstd.DecompressionParameter.window_log_max: 23}
        self._zstd = zstd
        self._decompressor = zstd.ZstdDecompressor(options=self._options)

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        while True:
            if self.is_complete:
                if not chunk.startswith(_ZSTD_MAGIC):
                    return
                self._decompressor, self.is_complete = self._zstd.ZstdDecompressor(options=self._options), False
            try:
                piece = self._decompressor.decompress(chunk, _STEP)
            except self._zstd.ZstdError as exc:
                raise UndecodableAnswer(str(exc)) from exc
            self.is_complete = self._decompressor.eof
            yield piece
            if self._decompressor.needs_input:
                return
            chunk = self._decompressor.unused_data if self.is_complete else b""


_MAKE: Final[dict[str, Callable[[], Decoder]]] = {
    "gzip": lambda: ZlibDecoder(_GZIP),
    "deflate": DeflateDecoder,
    "br": BrotliDecoder,
    "zstd": ZstdDecoder,
}


def decoder_for(encoding: str | None, allowed: frozenset[str]) -> Decoder | None:
    """
    Return a new decoder for the value of a ``Content-Encoding`` field, or None if the answer is not encoded.

    Raises:
        UndecodableAnswer: The encoding is unknown or not allowed, there are several, or its package is not installed.
    """
    if not encoding:
        return None
    names = [name.strip().lower().removeprefix("x-") for name in encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return None
    if len(names) == 1 and names[0] in allowed and names[0] in _MAKE:
        try:
            return _MAKE[names[0]]()
        except ImportError as exc:
            raise UndecodableAnswer(f"content-encoding: {names[0]} needs a package: {exc}") from exc
    raise UndecodableAnswer(f"content-encoding: cannot read {encoding}")
