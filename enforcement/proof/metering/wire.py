"""Write an answer in the ways that providers and the proxies between them are known to write answers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Final

DONE: Final = "[DONE]"
"""In place of an event: the text that ends the streams of some formats."""

_LINE_ENDS: Final = (b"\n", b"\n", b"\r\n", b"\r")
_COMMENTS: Final = (b": keep-alive", b":", b"id: 7", b"retry: 3000", b"event: ping")


def event_stream(events: Iterable[tuple[str, object]], dice: Random) -> list[bytes]:
    """
    Return the events of a stream as bytes, one piece for each.

    Lines end in LF, CR LF or CR. Some events have comments and further fields, and some spread their JSON over many
    lines of data.

    Args:
        events: The name of each event, which may be empty, and its data as a JSON value or :data:`DONE`.
    """
    end, space = dice.choice(_LINE_ENDS), dice.choice((b" ", b" ", b""))
    strange = dice.random() < 0.3
    return [_event(name, data, end, space, dice if strange else None) for name, data in events]


def _event(name: str, data: object, end: bytes, space: bytes, dice: Random | None) -> bytes:
    lines = [b"event: " + name.encode()] if name else []
    spread = dice is not None and dice.random() < 0.3
    if dice is not None and dice.random() < 0.3:
        lines.insert(0, dice.choice(_COMMENTS))
    ascii_only = dice is not None and dice.random() < 0.3
    text = data if data == DONE else json.dumps(data, ensure_ascii=ascii_only, indent=1 if spread else None)
    lines += [b"data:" + space + line.encode() for line in text.split("\n")]
    return end.join([*lines, b"", b""])


def array_stream(values: Iterable[object], dice: Random) -> list[bytes]:
    """Return JSON values as the elements of one array, one piece for each."""
    between = dice.choice((b",", b",\r\n", b"\n,\n"))
    found = [json.dumps(value, ensure_ascii=False, indent=dice.choice((None, 2))).encode() for value in values]
    pieces = [(b"[" if at == 0 else between) + item for at, item in enumerate(found)]
    return [*pieces, dice.choice((b"]", b"\n]\n"))]


def compressed(encoding: str, pieces: Sequence[bytes]) -> list[bytes]:
    """Return the pieces of a body in an encoding. Each can be decoded as soon as it has arrived."""
    if encoding == "gzip":
        deflating = zlib.compressobj(wbits=31)
    elif encoding == "deflate":
        deflating = zlib.compressobj()
    else:
        return [gzip.compress(b"".join(pieces))[::-1]]  # nobody can read it
    flushed = [deflating.compress(piece) + deflating.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*flushed, deflating.flush()]


def split(pieces: Sequence[bytes], dice: Random) -> Iterator[bytes]:
    """Yield the bytes of all pieces: as they are, all at once, byte by byte, or cut anywhere."""
    way, whole = dice.random(), b"".join(pieces)
    if way < 0.4:
        yield from filter(None, pieces)
    elif way < 0.5:
        yield whole
    elif way < 0.6 and len(whole) < 4_000:
        yield from (whole[at : at + 1] for at in range(len(whole)))
    else:
        at = 0
        while at < len(whole):
            length = dice.choice((1, 2, 3, 17, 100, 1_000))
            yield whole[at : at + length]
            at += length
