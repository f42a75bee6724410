"""
The bytes of a recorded day.

A chunk has one entry for each minute in which the token sent a request, as columns of equal width, compressed. The
heads of 24 hours lie beside it, so that whoever looks for the busiest tokens need not read the chunks.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from enforcement.usage.spread import PARTS

MINUTES = 24 * 60
PARTS_OF_DAY = MINUTES * PARTS
VERSION = b"\x01"
MOST = 2**32 - 1
# The head of an hour: all its requests, and the most in ten seconds, in twenty, in a minute and in two.
HEAD = ("requests", "part", "parts", "minute", "minutes")
_COLUMNS = (("minutes", "<u2", 1), ("demand", "<u4", 1), ("allowed", "<u4", 1), ("seconds", "<u8", 1))
_PARTS = ("<u4", PARTS)
# The type of each column, its numbers a row, and their bytes.
_STORED = [(kind, each, np.dtype(kind).itemsize * each) for kind, each in (*((it[1:]) for it in _COLUMNS), _PARTS)]
_WIDTH = sum(size for *_, size in _STORED)


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    The recorded minutes of a day, in order.

    Attributes:
        minutes: Minutes of the day, 0 to 1439; n different ones.
        demand: Requests in each, allowed or denied.
        allowed: Those of them that were allowed.
        seconds: A bit for each active second of the minute.
        parts: Requests in each ten seconds, n rows of six. They are 0 for requests at an unknown second.
    """

    minutes: np.ndarray
    demand: np.ndarray
    allowed: np.ndarray
    seconds: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int, Sequence[int]]]) -> Self:
        """
        Return a new chunk of rows of (minute of the day, demand, allowed, seconds, parts). Rows of one minute add up.
        """
        minutes = np.array([row[0] for row in rows], np.int64)
        seconds = np.array([row[3] for row in rows], np.uint64)
        numbers = np.array([(row[1], row[2], *row[4]) for row in rows], np.int64).reshape(len(rows), 2 + PARTS)
        return cls._added(minutes, numbers, seconds)

    @classmethod
    def _added(cls, minutes: np.ndarray, numbers: np.ndarray, seconds: np.ndarray) -> Self:
        unique, places = np.unique(minutes, return_inverse=True)
        sums = np.zeros((len(unique), 2 + PARTS), np.int64)
        np.add.at(sums, places, numbers)
        bits = np.zeros(len(unique), np.uint64)
        np.bitwise_or.at(bits, places, seconds)
        sums = np.minimum(sums, MOST)
        return cls(unique, sums[:, 0], sums[:, 1], bits, sums[:, 2:])

    @classmethod
    def read(cls, body: bytes | memoryview) -> Self:
        """Return the chunk that :meth:`body` has written, or an empty one of no bytes."""
        minutes, demand, allowed, seconds, parts = _columns_of(body)
        minutes, demand, allowed, parts = (column.astype(np.int64) for column in (minutes, demand, allowed, parts))
        return cls(minutes, demand, allowed, seconds.astype(np.uint64), parts.reshape(len(minutes), PARTS))

    def whole(self) -> Self:
        """Return the chunk itself, as :meth:`StoredChunk.whole` returns the one that it stands for."""
        return self

    def by_minute(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the minutes and the requests in each."""
        return self.minutes, self.demand

    def body(self) -> bytes:
        """Return the chunk as bytes."""
        columns = (self.minutes, self.demand, self.allowed, self.seconds)
        data = [column.astype(kind).tobytes() for column, (_, kind, _) in zip(columns, _COLUMNS, strict=True)]
        return VERSION + zlib.compress(b"".join([*data, self.parts.astype(_PARTS[0]).tobytes()]), 1)

    def with_rows(self, rows: Sequence[tuple[int, int, int, int, Sequence[int]]]) -> Self:
        """Return a new chunk with the rows of this one and *rows*, as :meth:`of` takes them."""
        return self.joined([self, self.of(rows)])

    @classmethod
    def joined(cls, chunks: Sequence[Self]) -> Self:
        """Return one chunk with the minutes of all, of which those that are the same add up."""
        held = DaySum()
        for chunk in chunks:
            held.add(chunk)
        return cls(*held.columns())

    @property
    def unplaced(self) -> np.ndarray:
        """The requests of each minute that came at an unknown second."""
        return np.maximum(self.demand - self.parts.sum(axis=1), 0)

    def hours(self) -> bytes:
        """
        Return the heads of the 24 hours as bytes, in the order of HEAD.

        Requests at an unknown second count for each ten seconds of their minute, so a span never has more.
        """
        parts, minutes = np.zeros((MINUTES, PARTS), np.int64), np.zeros(MINUTES, np.int64)
        parts[self.minutes] = self.parts + self.unplaced[:, None]
        minutes[self.minutes] = self.demand
        by_hour = parts.reshape(24, -1)
        heads = np.zeros((24, len(HEAD)), np.int64)
        heads[:, 0] = minutes.reshape(24, 60).sum(axis=1)
        heads[:, 1], heads[:, 2] = by_hour.max(axis=1), (by_hour[:, 1:] + by_hour[:, :-1]).max(axis=1)
        of_hour = minutes.reshape(24, 60)
        heads[:, 3], heads[:, 4] = of_hour.max(axis=1), (of_hour[:, 1:] + of_hour[:, :-1]).max(axis=1)
        return np.minimum(heads, MOST).astype("<u4").tobytes()


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as its bytes, which take a tenth of the memory, for many callers of which few are looked at twice."""

    stored: bytes

    def whole(self) -> Chunk:
        """Read and return the chunk. It is not cached."""
        return Chunk.read(self.stored)

    def by_minute(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the minutes and the requests in each, without the other columns."""
        minutes, demand, *_ = _columns_of(self.stored, 2)
        return minutes.astype(np.int64), demand


def _columns_of(body: bytes | memoryview, first: int | None = None) -> list[np.ndarray]:
    """Return the columns of a written chunk as they are stored, or only the *first* ones. No bytes have no rows."""
    raw = memoryview(body)
    data = zlib.decompress(raw[1:]) if raw[:1] == VERSION else b""
    count, at, result = len(data) // _WIDTH, 0, []
    for kind, each, size in _STORED[:first]:
        result.append(np.frombuffer(data, kind, count * each, at))
        at += size * count
    return result


class DaySum:
    """The sum of many chunks of one day, of which it keeps none."""

    def __init__(self) -> None:
        self._demand, self._allowed = np.zeros(MINUTES, np.int64), np.zeros(MINUTES, np.int64)
        self._seconds, self._parts = np.zeros(MINUTES, np.uint64), np.zeros((MINUTES, PARTS), np.int64)
        self._is_there = np.zeros(MINUTES, bool)

    def add(self, chunk: Chunk) -> None:
        """Add the minutes of a chunk, each of which it has once."""
        minutes = chunk.minutes
        self._is_there[minutes] = True
        self._demand[minutes] += chunk.demand
        self._allowed[minutes] += chunk.allowed
        self._seconds[minutes] |= chunk.seconds
        self._parts[minutes] += chunk.parts

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the fields of a chunk."""
        minutes = np.flatnonzero(self._is_there)
        demand, allowed, parts = (
            np.minimum(column[minutes], MOST) for column in (self._demand, self._allowed, self._parts)
        )
        return minutes, demand, allowed, self._seconds[minutes], parts

    def chunk(self) -> Chunk:
        """Return the sum as a chunk."""
        return Chunk(*self.columns())


def read_hours(rows: Sequence[bytes | memoryview]) -> np.ndarray:
    """Return the heads of several days as integers, by day, hour and the names of HEAD."""
    return np.frombuffer(b"".join(map(bytes, rows)), "<u4").astype(np.int64).reshape(len(rows), 24, len(HEAD))
