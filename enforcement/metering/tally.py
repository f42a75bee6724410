"""
Count how metered requests were settled, by minute, token and model, until the counts are delivered.

Settlements are added several at a time, as what adds one of them is seldom in the caches of the processor. One lock
guards the counts. A settlement adds eight numbers under it, and further ones if estimates can be learned from it.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from operator import add
from typing import Final, NamedTuple

from enforcement.metering.amounts import CLASSES, TokenCounts, count_of, input_of
from enforcement.metering.broken import BrokenBounds
from enforcement.metering.charges import micros_of
from enforcement.metering.opening import Opening
from enforcement.metering.reasoning import Reasoners
from enforcement.metering.refusals import FieldRefusals
from enforcement.metering.request import MeteredRequest
from enforcement.metering.samples import FeatureSums
from enforcement.metering.settlement import DRAINED, EXACT, Settlement

UNMETERED: Final = "unmetered"
"""How a request was settled that no meter can read."""
MAX_MODEL_LENGTH: Final = 128
MAX_MODELS: Final = 200
"""Models of one project that a process tells apart within a day. Clients choose the names."""
MAX_ROWS: Final = 10_000
MAX_ADDED: Final = 32
"""Settlements that are added at once."""
MAX_BODY: Final = 65_536
"""Bytes of the longest body of a request whose settlement waits for others, as they keep it."""
MINUTES_PER_DAY: Final = 1_440

_TOKENS: Final = CLASSES[:-1]
_LAST_WORDS: Final = frozenset((EXACT, DRAINED))

Key = tuple[int, str, str, str, str, int, int]
"""Minute since the epoch, project, token, model, settled as, 1 if the price is approximate, revision of the prices."""
ROW_NAMES: Final = ("minute", "project", "token", "model", "settled_as", "approximate", "price_revision")


class MeteredCounts(NamedTuple):
    """The counts of settled requests. Rows of usage have them in this order. A later version adds to the end."""

    requests: int = 0
    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    micros: int = 0
    estimated_input: int = 0
    calls: int = 0


COUNT_NAMES: Final = MeteredCounts._fields
Row = list[int | str]


class MeteredTally:
    """
    The sums that the metered requests of one process were charged. Any thread may count.

    A row has the fields of ``ROW_NAMES`` and ``COUNT_NAMES``. Its model is empty if no meter can read
    the requests, or if the project has asked for too many models.

    Attributes:
        refusals: The fields for which a bound has refused requests.
        broken: The bounds that an answer has exceeded.
        reasoners: The models whose answers have shown that they reason.
        samples: From what estimates are learned.
    """

    def __init__(self) -> None:
        self._dropped = 0
        self.refusals = FieldRefusals()
        self.broken = BrokenBounds()
        self.reasoners = Reasoners()
        self.samples = FeatureSums()
        self._lock = threading.Lock()
        self._rows: dict[Key, list[int]] = {}
        self._models: dict[str, set[str]] = {}
        self._names: dict[tuple[str, str], str] = {}  # of today, by project and model
        self._day = -1
        self._waiting: deque[tuple[tuple[str, str], int, Opening, Settlement]] = deque()

    def settled(self, subject: tuple[str, str], at_us: int, opening: Opening, settlement: Settlement) -> None:
        """
        Add one settled request.

        Args:
            subject: Ids of the project and of the token.
            at_us: The instant of its reservation, in microseconds since the epoch.
        """
        estimate, asked = opening.estimate, opening.asked
        if estimate is not None and estimate.bound:
            self.broken.look(subject[0], at_us, opening, settlement)
        waiting = self._waiting
        waiting.append((subject, at_us, opening, settlement))
        if len(waiting) >= MAX_ADDED or (isinstance(asked, MeteredRequest) and len(asked.body) > MAX_BODY):
            with self._lock:
                self._add_all()

    @property
    def dropped(self) -> int:
        """Settlements that are in no row, because too many rows were waiting."""
        with self._lock:
            self._add_all()
            return self._dropped

    def _add_all(self) -> None:
        """Add the settlements that wait. The caller holds the lock."""
        waiting = self._waiting
        while waiting:
            self._add(*waiting.popleft())

    def _add(self, subject: tuple[str, str], at_us: int, opening: Opening, settlement: Settlement) -> None:
        minute, counts = at_us // 60_000_000, settlement.counts
        asked, estimate = opening.asked, opening.estimate
        model = asked.attributes.get("model", "") if estimate and isinstance(asked, MeteredRequest) else ""
        word = settlement.settled_as if estimate else UNMETERED
        approximate = settlement.approximate
        if estimate is None or counts is None:
            added = [1, 0, 0, 0, 0, 0, estimate.input if estimate else 0, 0]
        else:
            if counts.is_plain:
                fresh, cached, written, output = counts.input, counts.cached_input, counts.cache_write, counts.output
            else:
                fresh, cached, written, output = [count_of(counts, name) for name in _TOKENS]
            price, micros = settlement.price or opening.price, 0
            if price is not None:
                micros = micros_of(price, counts)
                approximate = approximate or price.approximates(counts)
            added = [1, fresh, cached, written, output, micros, estimate.input, counts.calls]
        known = self._names.get((subject[0], model)) if minute // MINUTES_PER_DAY <= self._day else None
        named = self._named(subject[0], minute, model) if known is None else known
        key = (minute, *subject, named, word, int(approximate), opening.price_revision)
        row = self._rows.get(key)
        if row is not None:
            row[:] = map(add, row, added)
        elif len(self._rows) < MAX_ROWS:
            self._rows[key] = added
        else:
            self._dropped += 1
        if model and named and counts is not None and word in _LAST_WORDS and isinstance(asked, MeteredRequest):
            self._learn(minute // MINUTES_PER_DAY, subject, named, asked, opening, counts)

    def _learn(
        self,
        day: int,
        subject: tuple[str, str],
        named: str,
        asked: MeteredRequest,
        opening: Opening,
        counts: TokenCounts,
    ) -> None:
        """Add a request to the samples if its tokens say something of estimates. The caller holds the lock."""
        tokens = input_of(counts)
        if asked.is_only_text and opening.estimate is not None:
            self.samples.add(day, subject, named, asked, opening.estimate, tokens)
        elif (
            len(asked.own_tools) == 1 and asked.text_bytes and not asked.keeps_context and not any(asked.parts.values())
        ):
            self.samples.add_tool(day, subject, named, asked, counts, tokens)

    def take_samples(self, at_most: int) -> list[Row]:
        """Return rows of the samples, as :meth:`take` does."""
        with self._lock:
            self._add_all()
            return self.samples.take(at_most)

    def _named(self, project: str, minute: int, model: str) -> str:
        """Return the model as rows name it. The caller holds the lock."""
        day = minute // MINUTES_PER_DAY
        if day > self._day:
            self._day, self._models, self._names = day, {}, {}
        name = model[:MAX_MODEL_LENGTH]
        if not name.isprintable():
            name = "".join(char if char.isprintable() else "?" for char in name)
        known = self._models.setdefault(project, set())
        if name not in known and len(known) >= MAX_MODELS:
            return ""
        known.add(name)
        if name == model:  # others may have the same name, however many they are
            self._names[project, model] = name
        return name

    def take(self, at_most: int) -> list[Row]:
        """Return the oldest rows, and forget them. A new list, empty if nothing was counted."""
        with self._lock:
            self._add_all()
            keys = list(islice(self._rows, at_most))
            return [[*key, *self._rows.pop(key)] for key in keys]

    def __len__(self) -> int:
        with self._lock:
            self._add_all()
            return len(self._rows) or len(self.samples)
