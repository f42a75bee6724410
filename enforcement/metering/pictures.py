"""
Bound the tokens of a picture in a request by the formula that its provider publishes.

The size in pixels stands in the header of a PNG, JPEG, GIF or WebP. A picture of which only the address is known, or
that has another header, counts as the most that the provider publishes for one. A picture for a model of an unknown
provider has no bound.

Sources: OpenAI "Images and vision", Anthropic "Vision", Google "Image understanding" and "Media resolution",
xAI "Image understanding", Mistral "Vision".
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

HEADER_BYTES: Final = 512 * 1024
"""Bytes of a picture in which its size is looked for. A JPEG may have much before it."""

Size = tuple[int, int]
"""Width and height in pixels."""


class _Formula(NamedTuple):
    """How a provider counts a picture: the tokens of one by its size, and the most that one may have."""

    tokens: Callable[[int, int], int]
    most: int


def picture_tokens(model: str, size: Size | None) -> int | None:
    """
    Return the most tokens that a model counts for one picture, or None if that is not published.

    Args:
        model: The name of the model, also one with a prefix, such as ``openai/gpt-4o``.
        size: Its width and height. None: they are not known.
    """
    name = model.lower()
    formula = next((formula for pattern, formula in _FORMULAS if pattern.search(name)), None)
    if formula is None:
        return None
    return formula.most if size is None else min(formula.tokens(*size), formula.most)


def size_in(data: str) -> Size | None:
    """
    Return the size of a picture, or None if its header is not known.

    Args:
        data: The picture in base64, also in its alphabet for URLs, or as a ``data:`` URL.
    """
    at = 0
    if data.startswith("data:"):
        at = data.find(",", 0, _HEAD_OF_URL) + 1
        if not data[:at].endswith(";base64,"):
            return None
    begin = data[at : at + HEADER_BYTES // 3 * 4]
    is_cut = len(begin) < len(data) - at
    begin = "".join(begin.split()).translate(_PLAIN_ALPHABET)
    try:
        header = base64.b64decode(begin[: len(begin) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):
        return None
    found = _size_of(header, is_cut)
    return found if found and min(found) > 0 else None


_PLAIN_ALPHABET: Final = {ord("-"): "+", ord("_"): "/"}
_HEAD_OF_URL: Final = 1_024
_GIF_PICTURE, _GIF_EXTENSION, _GIF_ENDS = b",!;"
# Tables, remarks of programs, and comments, which may stand before the size.
_JPEG_SEGMENTS: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))


def _size_of(header: bytes, is_cut: bool) -> Size | None:
    if header.startswith(b"\x89PNG\r\n\x1a\n") and header[12:16] == b"IHDR" and len(header) >= 24:
        return struct.unpack(">II", header[16:24]) if _has_one_head(header, is_cut) else None
    if header[:6] in (b"GIF87a", b"GIF89a"):
        return _size_of_gif(header)
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP" and len(header) >= 30:
        return _size_of_webp(header)
    return _size_of_jpeg(header) if header.startswith(b"\xff\xd8") else None


def _has_one_head(png: bytes, is_cut: bool) -> bool:
    """Return whether a PNG, or its begin, says its size once. Of two sizes, some programs take the last."""
    at = 8
    while (kind := png[at + 4 : at + 8]).isalpha() and len(kind) == 4:
        if kind == b"IDAT" or (kind == b"IHDR" and at > 8):
            return kind == b"IDAT"
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return not is_cut or at + 8 <= len(png)  # or it goes on where nobody looks


def _size_of_gif(header: bytes) -> Size | None:
    """Return the greatest width and height of the screen and of all pictures, some of which may be wider than it."""
    try:
        width, height, flags = struct.unpack_from("<HHB", header, 6)
        at = 13 + _length_of_colors(flags)
        while (kind := header[at]) != _GIF_ENDS:
            if kind == _GIF_PICTURE:
                left, top, wide, high, flags = struct.unpack_from("<HHHHB", header, at + 1)
                width, height = max(width, left + wide), max(height, top + high)
                at += 11 + _length_of_colors(flags)
            elif kind == _GIF_EXTENSION:
                at += 2
            else:
                return None
            while header[at]:
                at += 1 + header[at]
            at += 1
    except (struct.error, IndexError):
        return None
    return width, height


def _length_of_colors(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _size_of_webp(header: bytes) -> Size | None:
    kind = header[12:16]
    if kind == b"VP8X":
        return int.from_bytes(header[24:27], "little") + 1, int.from_bytes(header[27:30], "little") + 1
    if kind == b"VP8L" and header[20] == 0x2F:
        bits = int.from_bytes(header[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and header[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", header[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _size_of_jpeg(header: bytes) -> Size | None:
    at = 2
    while at + 9 <= len(header) and header[at] == 0xFF:
        marker = header[at + 1]
        if marker == 0xFF:  # filler
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", header[at + 5 : at + 9])
            return width, height
        elif marker in _JPEG_SEGMENTS:
            at += 2 + int.from_bytes(header[at + 2 : at + 4], "big")
        else:
            return None  # what programs skip in different ways
    return None


def _up(number: float, unit: float) -> int:
    return int(-(-number // unit))


def _tiles(base: int, each: int) -> _Formula:
    """Return OpenAI's count by tiles of 512 pixels, of a picture that fits 2048 and whose shorter side is 768."""

    def tokens(width: int, height: int) -> int:
        shrunk = min(1.0, 2_048 / max(width, height))
        shrunk = min(shrunk, 768 / min(width, height))
        return base + each * _up(width * shrunk, 512) * _up(height * shrunk, 512)

    return _Formula(tokens, base + each * 8)


def _patches(per_mille: int, most: int) -> _Formula:
    """Return OpenAI's count by patches of 32 pixels."""
    return _Formula(
        lambda width, height: _up(_up(width, 32) * _up(height, 32) * per_mille, 1_000), _up(most * per_mille, 1_000)
    )


def _by_claude(width: int, height: int) -> int:
    return max(_up(width * height, 750), _up(width, 28) * _up(height, 28))


def _by_gemini(width: int, height: int) -> int:
    """Return 258 tokens for each tile, and for the whole picture."""
    if max(width, height) <= 384:
        return 258
    unit = min(max(min(width, height) // 1.5, 256), 768)
    return 258 * (1 + _up(width, unit) * _up(height, unit))


def _greatest(*formulas: _Formula) -> _Formula:
    return _Formula(lambda *size: max(it.tokens(*size) for it in formulas), max(it.most for it in formulas))


# By the first pattern that a name has. The last of each provider is for its models that are not known here.
_FORMULAS: Final = tuple(
    (re.compile(pattern), formula)
    for pattern, formula in (
        ("claude", _Formula(_by_claude, 4_784)),
        ("gemini-[12]", _Formula(_by_gemini, 258 * 17)),
        # Each size has the tokens of its media resolution, of which "ultra high" has the most.
        ("gemini", _Formula(lambda width, height: 2_240, 2_240)),
        ("gpt-4o-mini", _tiles(2_833, 5_667)),
        ("(?:gpt-4[.]1|gpt-5(?:[.][0-9])?)-nano", _patches(2_460, 1_536)),
        ("(?:gpt-4[.]1|gpt-5(?:[.][0-9])?)-mini", _patches(1_620, 1_536)),
        ("o4-mini", _patches(1_720, 1_536)),
        ("gpt-4o|gpt-4[.]1|gpt-4[.]5|gpt-4-turbo|gpt-4-vision", _tiles(85, 170)),
        (r"\bo[13]\b", _tiles(75, 150)),
        (r"\bgpt-|\bo[0-9]\b|chatgpt", _greatest(_tiles(85, 170), _patches(1_200, 10_000))),
        ("grok", _Formula(lambda width, height: 1_792, 1_792)),
        ("pixtral|mistral|ministral|magistral", _Formula(lambda width, height: 4_160, 4_160)),
    )
)
