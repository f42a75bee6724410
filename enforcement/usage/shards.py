"""
Divide the rows of usage into shards, so that several drains of the control plane never add to the same rows of SQL.

All rows of a token are in one shard. Which one it is has no meaning beyond that: any row may be in any stream, and is
counted once. So the number of shards may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar
from zlib import crc32

Row = TypeVar("Row", bound=Sequence[object])

MAX_SHARDS: Final = 32
"""The largest number of shards that a control plane may announce."""
MIN_ROWS_A_SHARD: Final = 50
"""
Rows that a batch of one shard has on average, at least. The costs of a batch are about those of one row, so smaller
batches would cost the store and the drain noticeably more. Usage with fewer rows stays one batch.
"""


def read_shards(text: str | bytes | None) -> int:
    """Return the number of shards that the control plane announces, or 0 if there are none or *text* is not valid."""
    try:
        shards = int(text or 0)
    except ValueError:
        return 0
    return shards if 2 <= shards <= MAX_SHARDS else 0


def by_shard(rows: Iterable[Row], shards: int) -> dict[int, list[Row]]:
    """
    Return rows in a new list for each shard that has any.

    Args:
        rows: Each begins with a minute, the id of the project, and the id of the token, which may be empty.
        shards: The number of shards.
    """
    divided: dict[int, list[Row]] = {}
    for row in rows:
        divided.setdefault(crc32(f"{row[1]} {row[2]}".encode()) % shards, []).append(row)
    return divided
