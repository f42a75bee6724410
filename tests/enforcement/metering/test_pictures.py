"""The size of a picture is read from its header, and its tokens are bounded by its provider's formula."""

import base64
import struct

import pytest

from enforcement.metering.pictures import picture_tokens, size_in

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480)
JPEG = b"\xff\xd8\xff\xe1\x00\x0a" + b"x" * 8 + b"\xff\xff\xc2\x00\x11\x08" + struct.pack(">HH", 480, 640)
GIF = b"GIF89a" + struct.pack("<HHBBB", 640, 480, 0x80, 0, 0) + b"\0" * 6
GIF += b"!\xfe\2ab\0" + b"," + struct.pack("<HHHHB", 0, 0, 640, 480, 0) + b"\2\1x\0;"
VP8 = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 640, 480)
VP8L = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + ((479 << 14) | 639).to_bytes(4, "little") + b"\0" * 5
VP8X = b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + (639).to_bytes(3, "little") + (479).to_bytes(3, "little")


@pytest.mark.parametrize("header", [PNG, JPEG, GIF, VP8, VP8L, VP8X])
@pytest.mark.parametrize("form", ["{}", "data:image/x;base64,{}"])
def test_the_size_stands_in_the_header(header, form):
    data = base64.b64encode(header + b"\0" * 40).decode()
    assert size_in(form.format(data)) == (640, 480)
    assert size_in(form.format(data.replace("+", "-").replace("/", "_"))) == (640, 480)


@pytest.mark.parametrize(
    "data",
    ["", "AAAA", "data:image/png,abc", "https://example.org/a.png", base64.b64encode(PNG[:20]).decode()]
    + [
        base64.b64encode(header).decode()
        for header in (PNG[:16] + b"\0" * 8, JPEG[:20], b"\xff\xd8\xff\xff\xff", b"BM")
    ],
)
def test_a_header_that_is_not_known_says_nothing(data):
    """So does one without an area."""
    assert size_in(data) is None


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gpt-4o", (1_024, 1_024), 765),
        ("openai/gpt-4o-2024-11-20", (2_048, 4_096), 1_105),
        ("gpt-4o-mini", (512, 512), 8_500),
        ("gpt-4.1-mini", (1_024, 1_024), 1_659),
        ("gpt-4.1-nano", (4_096, 4_096), 3_779),
        ("gpt-4o", None, 1_445),
        ("claude-sonnet-4-5", (1_000, 1_000), 1_334),
        ("us.anthropic.claude-opus-4-7", (8_000, 8_000), 4_784),
        ("gemini-2.5-flash", (384, 384), 258),
        ("gemini-2.0-flash", (960, 540), 258 * 7),
        ("gemini-3-pro", (10, 10), 2_240),
        ("grok-4", None, 1_792),
        ("llama-3", (10, 10), None),
    ],
)
def test_the_formula_is_that_of_the_provider(model, size, tokens):
    """It is a bound, so it may be above what the provider counts, but not below."""
    assert picture_tokens(model, size) == tokens


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5-mini", "gpt-9", "claude-x", "gemini-2.5-pro", "gemini-3-flash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (60_000, 20)])
def test_no_size_has_more_than_the_most(model, size):
    assert 0 < picture_tokens(model, size) <= picture_tokens(model, None)


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + b"\0" * 4


IHDR = chunk(b"IHDR", struct.pack(">II", 1, 1) + b"\x08\2\0\0\0")
SMALL = b"\xff\xc0\0\x11\x08\0\1\0\1" + b"\0" * 10


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xd8\xff\0\0\6" + SMALL,
        b"\xff\xd8\xff\xd9" + SMALL,
        b"\xff\xd8\xff\xda\0\2" + SMALL,
        b"\xff\xd8\xff\xd0" + SMALL,
        b"\x89PNG\r\n\x1a\n" + IHDR + IHDR + chunk(b"IDAT"),
        b"\x89PNG\r\n\x1a\n" + IHDR + chunk(b"tEXt", b"x" * 600_000) + IHDR + chunk(b"IDAT"),
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0),
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"x;",
    ],
)
def test_a_header_that_programs_may_read_in_two_ways_says_nothing(header):
    assert size_in(base64.b64encode(header).decode()) is None


def test_a_gif_is_as_large_as_its_largest_picture():
    """Its screen may be smaller."""
    gif = GIF[:6] + struct.pack("<HH", 1, 1) + GIF[10:]
    assert size_in(base64.b64encode(gif).decode()) == (640, 480)


def test_a_png_may_have_remarks_before_its_pixels():
    png = b"\x89PNG\r\n\x1a\n" + IHDR + chunk(b"tEXt", b"x" * 99) + chunk(b"IDAT", b"x" * 600_000)
    assert size_in(base64.encodebytes(png).decode()) == (1, 1)
