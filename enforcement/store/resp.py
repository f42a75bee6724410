"""Encode commands, and read the packed integers that the function library returns."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import hiredis

from enforcement.store.errors import StoreError


def pack(arguments: Iterable[str | int]) -> bytes:
    """Return a command as the bytes to send."""
    packed: bytes = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]
    return packed


def numbers(reply: object) -> tuple[int, ...]:
    """
    Return the integers in the reply of a decision or a lease.

    Args:
        reply: 64-bit integers, big-endian, in one string.
    Raises:
        StoreError: The reply is something else.
    """
    if type(reply) is bytes:
        size = len(reply)
        reader = _READERS.get(size)
        if reader is not None:
            return reader(reply)
        if size and size % 8 == 0:
            return struct.unpack(f">{size // 8}q", reply)
    raise StoreError("protocol", f"a reply is not a string of integers: {reply!r:.80}")


def items(reply: object, count: int) -> list[Any]:
    """Return a reply that must be a list of *count* items. Raises StoreError if it is something else."""
    if not isinstance(reply, list) or len(reply) != count:
        raise StoreError("protocol", f"a reply is not a list of {count} items: {reply!r:.80}")
    return reply


# The sizes of one to three limits, with and without marks: no format string is parsed for these.
_READERS: Final = {8 * count: struct.Struct(f">{count}q").unpack for count in (2, 6, 7, 10, 12, 14, 17)}
