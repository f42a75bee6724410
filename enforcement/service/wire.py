"""
Read and write the few protobuf messages of the service.

The Python package of protobuf is not needed for them. A message is a sequence of fields, each with a number and a wire
type. What a message holds beyond the fields that are asked for is skipped, as protobuf demands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
_FIXED: Final = {FIXED_64: 8, FIXED_32: 4}
_MOST_VARINT_BYTES: Final = 10
MAX_FIELDS: Final = 2_000
"""Fields of a message. To read more would keep everybody else waiting."""
_LARGEST: Final = 2**64 - 1
_FIRST, _SECOND = 1 << 3 | BYTES, 2 << 3 | BYTES  # how the key and the value of an entry begin


class Malformed(ValueError):
    """The bytes are no protobuf message, or a field has another type than its number says."""


def fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """
    Yield the number, the wire type and the value of each field of a message.

    Raises:
        Malformed: The bytes break off, have an unknown wire type or too many fields.
    """
    at, end, left = 0, len(message), MAX_FIELDS
    while at < end:
        if not left:
            raise Malformed(f"it has more than {MAX_FIELDS} fields")
        left -= 1
        # Nearly all of these numbers have one byte. To call a function for each takes as long as all the rest.
        key = message[at]
        if key < 0x80:
            at += 1
        else:
            key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise Malformed("a field has the number 0")
        value: int | bytes
        if kind == BYTES:
            if at < end and message[at] < 0x80:
                length, at = message[at], at + 1
            else:
                length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind == VARINT:
            value, at = _varint(message, at)
        elif kind in _FIXED:
            value, at = message[at : at + _FIXED[kind]], at + _FIXED[kind]
        else:
            raise Malformed(f"field {number} has the wire type {kind}")
        if at > end:
            raise Malformed(f"field {number} breaks off")
        yield number, kind, value


class Fields:
    """
    The fields of a message by their number, read once.

    Raises:
        Malformed: See :func:`fields`. The methods raise it if a field that is asked for has another wire type.
    """

    __slots__ = ("_found",)

    def __init__(self, message: bytes) -> None:
        self._found: dict[int, list[int | bytes]] = {}
        for number, kind, value in fields(message):
            self._found.setdefault(number, []).append(value if kind == BYTES else kind)

    def parts(self, number: int) -> list[bytes]:
        """Return what :func:`parts` returns."""
        result = self._found.get(number, [])
        for value in result:
            if type(value) is not bytes:
                raise Malformed(f"field {number} has the wire type {value!r}")
        return result  # type: ignore[return-value]

    def part(self, number: int) -> bytes:
        """Return what :func:`part` returns for one number."""
        found = self.parts(number)
        return found[0] if len(found) == 1 else b"".join(found)

    def text(self, number: int) -> str:
        """Return what :func:`text` returns."""
        found = self.parts(number)
        return decoded(found[-1]) if found else ""


def by_shape(message: bytes, number: int = 0) -> tuple[dict[bytes, bytes], dict[int, bytes]] | None:
    """
    Return the entries of a map of strings, and the other fields of the message that has it by their number.

    A map is a field for each of its entries, which are messages with a key and a value. Nearly all of them are written
    alike, so that one look at a few bytes takes an entry apart, where :class:`Fields` reads a message for each.

    Args:
        number: That of the map. 0: the message has none.
    Returns:
        None if the message is written otherwise: as :class:`Fields` has to read it, or refuse it.
    """
    entries: dict[bytes, bytes] = {}
    others: dict[int, bytes] = {}
    tag, at, end = number << 3 | BYTES, 0, len(message)
    try:
        while at < end:
            key, size, at = message[at], message[at + 1], at + 2
            if size >= 0x80:
                if message[at] >= 0x80:
                    return None
                size, at = size + (message[at] << 7) - 0x80, at + 1
            stop = at + size
            if key == tag:
                length, middle = message[at + 1], at + 2 + message[at + 1]
                left, begin = message[middle + 1], middle + 2
                if left >= 0x80:
                    # A third byte of this length would make it longer than the entry, whose own has two.
                    left, begin = left + (message[begin] << 7) - 0x80, begin + 1
                if message[at] != _FIRST or length >= 0x80 or message[middle] != _SECOND or begin + left != stop:
                    return None
                if (name := message[at + 2 : middle]) in entries:
                    return None
                entries[name] = message[begin:stop]
            elif key & 7 != BYTES or not 8 <= key < 0x80 or key >> 3 in others:
                return None
            else:
                others[key >> 3] = message[at:stop]
            at = stop
    except IndexError:
        return None
    return (entries, others) if at == end else None


def parts(message: bytes, number: int) -> list[bytes]:
    """
    Return the values of all fields with a number, which are strings, bytes or messages.

    Raises:
        Malformed: See :func:`fields`; or such a field is an integer.
    """
    result = []
    for field, kind, value in fields(message):
        if field == number:
            if kind != BYTES or not isinstance(value, bytes):
                raise Malformed(f"field {number} has the wire type {kind}")
            result.append(value)
    return result


def part(message: bytes, *path: int) -> bytes:
    """
    Return the message at a path of field numbers, or empty bytes if a field on the way is missing. Raises Malformed.

    A message that is there several times is merged, as protobuf demands. The bytes of its parts in a row are the whole.
    """
    for number in path:
        found = parts(message, number)
        message = found[0] if len(found) == 1 else b"".join(found)
    return message


def text(message: bytes, number: int) -> str:
    """
    Return the last string of the fields with a number, or an empty string if there is none. Raises Malformed.

    A proxy copies header fields into strings, and their bytes may be no UTF-8. They are then read as Latin-1, which has
    a character for each byte. A caller must not be able to make a message unreadable.
    """
    return decoded((parts(message, number) or [b""])[-1])


def decoded(value: bytes) -> str:
    """Return bytes as a string, read as UTF-8, or as Latin-1 if they are no UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def integer(message: bytes, number: int) -> int | None:
    """Return the last integer of the fields with a number, or None if there is none. Raises Malformed."""
    result = None
    for field, kind, value in fields(message):
        if field == number:
            if kind != VARINT or not isinstance(value, int):
                raise Malformed(f"field {number} has the wire type {kind}")
            result = value
    return result


def write(number: int, value: bytes) -> bytes:
    """Return a field that holds a string, bytes or a message, encoded."""
    return _encoded(number << 3 | BYTES) + _encoded(len(value)) + value


def write_integer(number: int, value: int) -> bytes:
    """Return a field that holds an integer of at least 0, encoded. 0 is the default, and is left out."""
    return _encoded(number << 3) + _encoded(value) if value else b""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the integer that begins at an index, and the index of what follows it."""
    value = shift = 0
    for byte in message[at : at + _MOST_VARINT_BYTES]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _LARGEST, at
        shift += 7
    raise Malformed("an integer breaks off or is too long")


def _encoded(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
