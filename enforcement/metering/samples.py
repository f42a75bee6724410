"""
Sum up what is counted in metered requests and what the provider reports, from which numbers for estimates are learned.

A request counts if it has nothing but text and the provider has said its tokens. The sums are those of the normal
equations of least squares, in which each request weighs the less, the more tokens it is expected to have. A sum of a
request with one tool of the provider is what it reported beyond its text, by the kind of tool.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from enforcement.metering.amounts import TokenCounts
from enforcement.metering.estimated import Estimate
from enforcement.metering.request import MeteredRequest
from enforcement.metering.typical import shipped_numbers, shipped_tokens, tool_kind

MAX_ROWS: Final = 2_000
MAX_SUM: Final = 2**50
MAX_TIMES: Final = 4
"""How many times its expected tokens a request may report, and how small a part of them. The rest is left out."""
LEAST_TOKENS: Final = 20
"""A request that is expected to have fewer tokens weighs as if it had so many."""
PER_TOKEN: Final = 1_000
MAX_TOOL_LENGTH: Final = 40

Key = tuple[int, str, str, str, str, str]
"""Day since the epoch, project, token, model, format, kind of the provider's tool or nothing."""
SAMPLE_NAMES: Final = ("day", "project", "token", "model", "interface", "tool")
SAMPLE_COUNTS: Final = ("requests", "uses", "reported", "error")
"""Requests, uses of the tool, tokens that were reported (of a tool: by its uses), and differences to the estimates."""
PAIRS: Final = (
    *("bytes_bytes", "bytes_objects", "bytes_one", "objects_objects", "objects_one", "one_one"),
    *("bytes_tools", "objects_tools", "tools_tools", "tools_any", "bytes_any", "objects_any", "any_any"),
)
"""Each sum is the product of these two counts, by the expected tokens, in thousandths. Objects and bytes are whole."""
TOKENS: Final = ("bytes_tokens", "objects_tokens", "one_tokens", "tools_tokens", "any_tokens")
"""The same of one count and the reported tokens."""
SUMS: Final = (*PAIRS, *TOKENS)
Row = list[int | str]


class FeatureSums:
    """
    The sums of one process. The caller holds a lock around each call.

    A row has the fields of ``SAMPLE_NAMES``, ``SAMPLE_COUNTS`` and ``SUMS``.
    """

    def __init__(self) -> None:
        self._rows: dict[Key, list[float]] = {}

    def add(
        self, day: int, subject: tuple[str, str], model: str, asked: MeteredRequest, estimate: Estimate, tokens: int
    ) -> None:
        """
        Add one settled request with nothing but text, or with one tool of the provider beside it.

        Args:
            day: Days since the epoch.
            subject: Ids of the project and of the token.
            model: The model, as rows name it.
            tokens: The input that the provider has reported.
        """
        key = day, *subject, model, asked.format, ""
        row = self._row(key)
        if row is None:
            return
        expected = shipped_tokens(asked)
        row[0] += 1
        row[2] += tokens
        row[3] += abs(tokens - (expected if estimate.bound else estimate.input))
        weight = PER_TOKEN / max(expected, LEAST_TOKENS)
        tokens = min(max(tokens, expected // MAX_TIMES), expected * MAX_TIMES)
        size, objects, tools = asked.text_bytes, asked.objects, asked.tools
        by_size, by_objects, by_tokens = weight * size, weight * objects, weight * tokens
        row[4] += by_size * size
        row[5] += by_size * objects
        row[6] += by_size
        row[7] += by_objects * objects
        row[8] += by_objects
        row[9] += weight
        row[17] += by_size * tokens
        row[18] += by_objects * tokens
        row[19] += by_tokens
        if tools:
            row[10] += by_size * tools
            row[11] += by_objects * tools
            row[12] += weight * tools * tools
            row[13] += weight * tools
            row[14] += by_size
            row[15] += by_objects
            row[16] += weight
            row[20] += by_tokens * tools
            row[21] += by_tokens

    def add_tool(
        self, day: int, subject: tuple[str, str], model: str, asked: MeteredRequest, counts: TokenCounts, tokens: int
    ) -> None:
        """Add a settled request that allowed one tool of the provider. The arguments are as above."""
        kind = tool_kind(next(iter(asked.own_tools)))[:MAX_TOOL_LENGTH]
        row = self._row((day, *subject, model, asked.format, kind)) if kind.isprintable() and kind else None
        if row is not None:
            numbers = shipped_numbers(asked.attributes["model"], asked.format)
            row[0] += 1
            row[1] += max(1, counts.calls)
            row[2] += max(0, tokens - numbers.tokens(asked.text_bytes, asked.objects, asked.tools))

    def _row(self, key: Key) -> list[float] | None:
        row = self._rows.get(key)
        if row is None and len(self._rows) < MAX_ROWS:
            row = self._rows[key] = [0.0] * (len(SAMPLE_COUNTS) + len(SUMS))
        return row

    def take(self, at_most: int) -> list[Row]:
        """Return the oldest rows in integers, and forget them. A new list, empty if nothing was counted."""
        keys = list(islice(self._rows, at_most))
        return [[*key, *map(_whole, self._rows.pop(key))] for key in keys]

    def __len__(self) -> int:
        return len(self._rows)


def _whole(value: float) -> int:
    return min(round(value), MAX_SUM)
