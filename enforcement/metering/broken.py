"""
Note the answers that used more than a bound had reserved for them, and reserve more for the next requests.

A bound holds as long as a provider adds no more tokens to a request than is known. What it reports beyond that is the
first that anybody hears of more, so each process then adds as many to its next requests of the same models.
"""

from __future__ import annotations

import logging
import threading
from itertools import islice
from typing import Final

from enforcement.logs import RateLimitedLogger
from enforcement.metering.amounts import count_of, input_of
from enforcement.metering.opening import WITH_PARTS, Opening
from enforcement.metering.price_documents import MAX_ADDED_TOKENS
from enforcement.metering.refusals import OTHER
from enforcement.metering.request import MeteredRequest
from enforcement.metering.settlement import Settlement
from enforcement.model.instants import SECOND_US

MAX_PAIRS: Final = 200
"""Models with a format that are told apart. The models of all others count as :data:`OTHER`."""
MAX_MODEL_LENGTH: Final = 128
MAX_RAISED: Final = 1_000
"""Patterns for which a process adds more tokens than is published. Without prices, clients choose their names."""
BEYOND: Final = MAX_ADDED_TOKENS + 1
"""More tokens than may be added. Requests have no bound then."""

BROKEN_NAMES: Final = ("minute", "project", "model", "format", "pattern", "requests", "added")
"""
The fields of a row: the minute of the last request since the epoch, whose it was, the pattern of its price or an empty
string, the number of requests, and the most tokens that the provider adds by itself, as they say. 0: none of them says
it, as only their output or money was above its bound, or the input of those with other parts than text.
"""
Row = list[int | str]

_US_A_MINUTE: Final = 60 * SECOND_US
# A wrong price breaks the bound of every request.
_SAY: Final = RateLimitedLogger(logging.getLogger("sluicegate.reservations"), seconds=60.0)


class BrokenBounds:
    """
    The broken bounds of one process. Any thread may look and take.

    Attributes:
        total: Requests since the process began, by model and format.
        raised: Tokens that this process adds by the pattern of a price, or by the model without one, at most
            :data:`BEYOND`. Those for requests with other parts than text are apart, see
            :data:`~enforcement.metering.opening.WITH_PARTS`. It changes while it is read.
    """

    def __init__(self) -> None:
        self.total: dict[tuple[str, str], int] = {}
        self.raised: dict[str, int] = {}
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, str, str], list[int]] = {}

    def look(self, project: str, at_us: int, opening: Opening, settlement: Settlement) -> None:
        """
        Count a settled request if it used more than its bound.

        Args:
            at_us: The instant of its reservation, in microseconds since the epoch.
        """
        estimate, counts, asked = opening.estimate, settlement.counts, opening.asked
        if estimate is None or counts is None or not isinstance(asked, MeteredRequest):
            return
        if not is_broken(opening, settlement):
            return
        more_input, more_output = input_of(counts) - estimate.input, count_of(counts, "output") - estimate.output
        added = min(estimate.added + more_input, BEYOND) if more_input > 0 else 0
        self._note(project, at_us // _US_A_MINUTE, asked, estimate.pattern, added)
        _SAY.warning(
            f"{estimate.pattern} {asked.format}",
            "A bound was broken: a request of %s for %.200r used %d tokens of input more than were reserved, and %d "
            "of output.",
            asked.format,
            asked.attributes.get("model", ""),
            max(0, more_input),
            max(0, more_output),
        )

    def _note(self, project: str, minute: int, asked: MeteredRequest, pattern: str, added: int) -> None:
        model = _printable(asked.attributes.get("model", "")[:MAX_MODEL_LENGTH])
        known = pattern if pattern.isprintable() else ""  # those of prices are
        reported, raised = (0, f"{pattern}{WITH_PARTS}") if asked.parts else (added, pattern)
        with self._lock:
            if (model, asked.format) not in self.total and len(self.total) >= MAX_PAIRS:
                model = OTHER
            self.total[model, asked.format] = self.total.get((model, asked.format), 0) + 1
            row = self._rows.get((project, model, asked.format, known))
            if row is not None:
                row[:] = max(row[0], minute), row[1] + 1, max(row[2], reported)
            elif len(self._rows) < MAX_RAISED:
                self._rows[project, model, asked.format, known] = [minute, 1, reported]
            if added and (raised in self.raised or len(self.raised) < MAX_RAISED):
                self.raised[raised] = max(added, self.raised.get(raised, 0))

    def take(self) -> list[Row]:
        """Return what was noted since the last call, as rows of ``BROKEN_NAMES``. A new list, empty if nothing was."""
        if not self._rows:
            return []
        with self._lock:
            rows, self._rows = self._rows, {}
        return [[minute, *key, requests, added] for key, (minute, requests, added) in rows.items()]

    def most(self, at_most: int = 20) -> list[tuple[str, str, int]]:
        """Return model, format and requests of those with the most requests, for the heartbeat."""
        with self._lock:
            ranked = sorted(self.total.items(), key=lambda item: (-item[1], item[0]))
        return [(*pair, count) for pair, count in islice(ranked, at_most)]


def is_broken(opening: Opening, settlement: Settlement) -> bool:
    """Return whether a request used more than its bound: more input, more output, or more of a limit."""
    estimate, counts = opening.estimate, settlement.counts
    if estimate is None or not estimate.bound or counts is None:
        return False
    if input_of(counts) > estimate.input or count_of(counts, "output") > estimate.output:
        return True
    return _is_dearer(settlement, opening)


def _is_dearer(settlement: Settlement, opening: Opening) -> bool:
    """Return whether a limit was charged more than was reserved."""
    for cost, most in zip(settlement.costs, opening.estimated_costs, strict=True):
        if cost is not None and most is not None and cost > most:
            return True
    return False


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
