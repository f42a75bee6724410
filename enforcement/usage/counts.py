"""
Count decisions by minute, token and limit, and collect the counts in batches that may be sent twice.

Every request is counted, so the usual case only adds one number under one lock. It is a request with the same costs and
in the same minute as the one before. Everything else is computed when the counts are drained.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from enforcement.model.documents import TokenDocument
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs
from enforcement.plan.reply import Reply
from enforcement.usage.batch import OutgoingBatch, as_json
from enforcement.usage.denial_sample import DenialSample
from enforcement.usage.shards import MIN_ROWS_A_SHARD, by_shard
from enforcement.usage.spread import SpreadLog

if TYPE_CHECKING:
    from enforcement.metering.tally import MeteredTally
    from enforcement.metering.tally import Row as SettledRow

MAX_ROWS_PER_BATCH: Final = 1_000
MAX_UNDELIVERED: Final = 8
"""Batches that are not yet delivered. If there are more, rows wait, and those with one key are added up."""
MAX_WAITING_ROWS: Final = 50_000
MAX_METERED_ROWS_PER_BATCH: Final = 1_000
MAX_SAMPLES_PER_BATCH: Final = 1_000

Unit = tuple[str, str, str]
"""Policy id, limit name, unit."""
Key = tuple[int, str, str, str, str, str]
"""Minute, project, token, policy, limit, unit."""
State = tuple[int, bool, bool, int]
"""Index of a limit, whether it admits the request, whether it is a shadow, and the permits charged."""
Counts = list[int]
"""Allowed, denied, would deny, cost."""

TOTAL: Final[Unit] = ("", "", "requests")
_ALLOWED, _DENIED, _WOULD_DENY, _COST = range(4)


class TokenUsage:
    """
    The decisions about one token under one set of limits. Any thread may count.

    :meth:`UsageLog.of` makes it. Methods refer to a limit by its index in *units*.
    """

    __slots__ = (
        "_costs",
        "_denials",
        "_denied",
        "_listed",
        "_log",
        "_minute",
        "_minutes",
        "_repeats",
        "_requests",
        "project",
        "token",
        "units",
    )

    def __init__(self, log: UsageLog, project: str, token: str, units: Sequence[Unit]) -> None:
        self.project = project
        self.token = token
        self.units = tuple(units)
        self._log = log
        self._listed = False
        self._minutes: dict[int, list[Counts]] = {}
        self._minute = -1
        self._requests = 0
        self._costs: Sequence[tuple[int, int]] = ()
        self._repeats = 0
        self._denied: tuple[int, Sequence[State]] = (-1, ())
        self._denials = 0

    def passed(self, minute: int, requests: int, costs: Sequence[tuple[int, int]], times: int = 1) -> None:
        """
        Add a request that every limit admitted, or several equal ones, to the counts of a minute.

        Args:
            minute: Minutes since the epoch.
            requests: The cost of one request in requests.
            costs: Index of each limit that applies, and the permits charged. Callers must not change it afterwards.
            times: How many equal requests there were.
        """
        with self._log.lock:
            if minute == self._minute and requests == self._requests and costs == self._costs:
                self._repeats += times
                return
            self._fold()
            self._list()
            self._minute, self._requests, self._costs, self._repeats = minute, requests, costs, times

    def decided(self, minute: int, passed: bool, requests: int, states: Sequence[State]) -> None:
        """
        Add a request that a limit denied, or would have denied, to the counts of a minute.

        Args:
            minute: Minutes since the epoch.
            passed: Whether the request was admitted.
            requests: Its cost in requests. It is counted only if the request was admitted.
            states: The state of each limit that applies.
        """
        with self._log.lock:
            self._list()
            rows = self._rows(minute)
            # A request that an enforced limit denies is not counted here, because enforcing a shadow changes nothing.
            would_deny = passed and any(shadow and not admits for _, admits, shadow, _ in states)
            self._log.would_deny += would_deny
            _add(rows[-1], passed, not passed, would_deny, requests if passed else 0)
            for index, admits, shadow, cost in states:
                _add(rows[index], passed, not (admits or shadow), shadow and not admits, cost)

    def denied_again(self, minute: int, states: Sequence[State]) -> None:
        """
        Add a remembered denial to the counts. *states* is as for :meth:`decided`, and is the same object each time.
        """
        with self._log.lock:
            known_minute, known = self._denied
            if states is known and minute == known_minute:
                self._denials += 1
                return
            self._fold_denials()
            self._list()
            self._denied, self._denials = (minute, states), 1

    def amend(self, minute: int, index: int, cost_delta: int) -> None:
        """
        Add *cost_delta* to the cost of a limit in a minute, which may be drained already. Index -1 is the total in
        requests.
        """
        with self._log.lock:
            self._list()
            self._rows(minute)[index][_COST] += cost_delta

    def _fold(self) -> None:
        """Add the repeated decisions to the counts of their minute. The caller holds the lock of the log."""
        repeats = self._repeats
        if not repeats:
            return
        self._repeats = 0
        rows = self._rows(self._minute)
        _add(rows[-1], repeats, 0, 0, repeats * self._requests)
        for index, cost in self._costs:
            row = rows[index]
            row[_ALLOWED] += repeats
            row[_COST] += repeats * cost

    def _fold_denials(self) -> None:
        """Add the repeated denials to the counts of their minute. The caller holds the lock of the log."""
        repeats, (minute, states) = self._denials, self._denied
        if not repeats:
            return
        self._denials = 0
        rows = self._rows(minute)
        _add(rows[-1], 0, repeats, 0, 0)
        for index, admits, shadow, _ in states:
            _add(rows[index], 0, 0 if admits or shadow else repeats, repeats if shadow and not admits else 0, 0)

    def _rows(self, minute: int) -> list[Counts]:
        """
        Return the counts of a minute, one list for each limit and then the total, and add them at 0 if there are none.
        """
        rows = self._minutes.get(minute)
        if rows is None:
            rows = self._minutes[minute] = [[0, 0, 0, 0] for _ in range(len(self.units) + 1)]
        return rows

    def _list(self) -> None:
        if not self._listed:
            self._listed = True
            self._log.listed.append(self)

    def take(self) -> dict[int, list[Counts]]:
        """Return the counts as a dictionary by minute, and set them to 0. The caller holds the lock of the log."""
        self._fold()
        self._fold_denials()
        self._denied = (-1, ())
        taken, self._minutes = self._minutes, {}
        self._minute, self._listed = -1, False
        return taken


class KnownToken(Protocol):
    """The part of a :class:`~enforcement.state.token_cache.TokenEntry` that counting needs."""

    token: TokenDocument | None
    usage: TokenUsage | None


class UsageLog:
    """
    All usage of one process. Any thread may count and call ``of``. ``drain`` and ``delivered`` are for one thread.

    Args:
        instance: Name of this process in the fleet.
        late: Called before counts are drained. It counts decisions that were not counted one by one.
        now_us: Returns the time, in microseconds since the epoch. None: when requests came is not noted.

    Attributes:
        dropped: Decisions that are missing in every batch, because too many rows were waiting. Settlements are not
            part of it, see :attr:`metered_dropped`.
        allowed: Admitted requests that were drained so far.
        denied: Denied requests that were drained so far.
        would_deny: Admitted requests that a shadow limit would have denied, drained or not.
        sample: Some of the denials, which are delivered with the usage.
        metered: What metered requests were charged. None until :meth:`metering` is called.
    """

    def __init__(
        self, instance: str, late: Callable[[], None] = lambda: None, now_us: Callable[[], int] | None = None
    ) -> None:
        self.instance = instance
        self._late = late
        self._now_us = now_us
        self.lock = threading.Lock()
        self.sample = DenialSample()
        self.listed: list[TokenUsage] = []
        self.dropped = 0
        self.allowed = 0
        self.denied = 0
        self.would_deny = 0
        self.metered: MeteredTally | None = None
        self._begin()

    @property
    def metered_dropped(self) -> int:
        """Settlements of metered requests that are missing in every batch, because too many rows were waiting."""
        return 0 if self.metered is None else self.metered.dropped

    @property
    def refused_fields(self) -> Mapping[str, int]:
        """Requests that a bound refused, by the field that was the reason."""
        return {} if self.metered is None else dict(self.metered.refusals.total)

    @property
    def broken_bounds(self) -> Mapping[tuple[str, str], int]:
        """Requests that used more than a bound had reserved, by model and format."""
        return {} if self.metered is None else dict(self.metered.broken.total)

    def most_broken(self) -> list[tuple[str, str, int]]:
        """Return model, format and requests of those that most often used more than a bound."""
        return [] if self.metered is None else self.metered.broken.most()

    def recent_refusals(self, at_us: int) -> Mapping[str, list[tuple[str, int]]]:
        """Return the fields of the last seven days, see :class:`~enforcement.metering.refusals.FieldRefusals`."""
        return {} if self.metered is None else self.metered.refusals.recent(at_us)

    def refusals_by_day(self, at_us: int) -> Mapping[str, Mapping[str, list[tuple[str, int]]]]:
        """Return those of today and the day before, by the number of the day since the epoch."""
        return {} if self.metered is None else self.metered.refusals.by_day(at_us)

    @property
    def is_waiting(self) -> bool:
        """Whether there are rows that the last call of :meth:`drain` has put into no batch."""
        return bool(self._waiting or self.metered)

    def metering(self) -> MeteredTally:
        """Return the counts of metered requests, which are delivered with the usage from the first call on."""
        if self.metered is None:
            from enforcement.metering.tally import MeteredTally  # most processes meter nothing

            self.metered = MeteredTally()
        return self.metered

    def _begin(self) -> None:
        # A process that restarts with its old name must not use the ids of earlier batches again.
        self._life = secrets.token_hex(4)
        self._made = 0
        self._waiting: dict[Key, Counts] = {}
        self._undelivered: list[OutgoingBatch] = []
        self._spread = None if self._now_us is None else SpreadLog(self._now_us)

    def of(self, entry: KnownToken, units: Sequence[Unit]) -> TokenUsage:
        """
        Return the counts of a known token under the limits that *units* names, and begin new ones if those changed.
        """
        token, usage = entry.token, entry.usage
        if token is None:
            raise ValueError("entry: must be a known token.")
        if usage is None or usage.units != tuple(units) or usage.project != token.project:
            usage = entry.usage = TokenUsage(self, token.project, token.id, units)
        return usage

    def drain(self, shards: Callable[[], int] = lambda: 0) -> list[OutgoingBatch]:
        """
        Put what was counted into new batches, and return a list of all that are not yet delivered, the oldest first.

        A batch is returned again, unchanged, until it is passed to :meth:`delivered`.

        Args:
            shards: Returns the number of shards, or 0 to divide nothing. Called only if there are rows enough for two.
        """
        self._late()
        self._collect()
        if len(self._waiting) >= 2 * MIN_ROWS_A_SHARD:
            self._divide(shards())
        while (self._waiting or self.metered) and len(self._undelivered) < MAX_UNDELIVERED:
            keys = list(islice(self._waiting, MAX_ROWS_PER_BATCH))
            self._undelivered.append(self._batch(keys, self._take_metered()))
        return list(self._undelivered)

    def delivered(self, batch: OutgoingBatch) -> None:
        """Drop a batch that the store has accepted."""
        self._undelivered = [other for other in self._undelivered if other.id != batch.id]

    def after_fork(self, instance: str) -> None:
        """Drop all counts in a child process, because the parent reports what was counted before."""
        self.lock = threading.Lock()
        self.sample.after_fork()
        for usage in self.listed:
            usage.take()
        self.instance, self.listed, self.metered = instance, [], None
        self.dropped = self.allowed = self.denied = self.would_deny = 0
        self._begin()

    def _collect(self) -> None:
        if self._spread is not None:
            self._spread.begin()
        with self.lock:
            listed, self.listed = self.listed, []
        for usage in listed:
            # The lock is taken for each token, so that no request waits for all of them.
            with self.lock:
                taken = usage.take()
            for minute, rows in taken.items():
                self._file(usage, minute, rows)

    def _file(self, usage: TokenUsage, minute: int, rows: Sequence[Counts]) -> None:
        self.allowed += rows[-1][_ALLOWED]
        self.denied += rows[-1][_DENIED]
        for (policy, limit, unit), counts in zip((*usage.units, TOTAL), rows, strict=True):
            if not any(counts):
                continue
            key = (minute, usage.project, usage.token, policy, limit, unit)
            waiting = self._waiting.get(key)
            if waiting is not None:
                _add(waiting, *counts)
            elif len(self._waiting) < MAX_WAITING_ROWS:
                self._waiting[key] = counts
            elif limit == "":
                self.dropped += counts[_ALLOWED] + counts[_DENIED]
                continue
            if limit == "" and self._spread is not None:
                self._spread.add(key, rows[-1][_ALLOWED] + rows[-1][_DENIED])

    def _divide(self, shards: int) -> None:
        """Put the waiting rows into batches of one shard each, if there are rows enough and all shards have room."""
        room = max(MAX_UNDELIVERED, 2 * shards) - len(self._undelivered)
        if not shards or len(self._waiting) < shards * MIN_ROWS_A_SHARD or room < shards:
            return
        divided = by_shard(self._waiting, shards)
        metered = by_shard(self._take_metered(), shards)
        # Each shard has a batch first, so that no settlement is left over. Then come those that have the most rows.
        for shard in sorted(divided.keys() | metered.keys()):
            self._undelivered.append(self._batch(divided.get(shard, []), metered.get(shard, []), shard))
            room -= 1
        while room and self._waiting:
            shard = max(divided, key=lambda number: len(divided[number]))
            self._undelivered.append(self._batch(divided[shard], [], shard))
            room -= 1

    def _take_metered(self) -> list[SettledRow]:
        return self.metered.take(MAX_METERED_ROWS_PER_BATCH) if self.metered else []

    def _batch(self, waiting: list[Key], metered: list[SettledRow], shard: int | None = None) -> OutgoingBatch:
        """Return a new batch of the first ones of the *waiting* keys, which are removed there, and of metered rows."""
        keys = waiting[:MAX_ROWS_PER_BATCH]
        del waiting[:MAX_ROWS_PER_BATCH]
        rows = [[*key, *self._waiting.pop(key)] for key in keys]
        spread = self._spread.take(keys) if self._spread is not None else None
        self._made += 1
        name = f"{self.instance}-{self._life}-{self._made}"
        broken = None if self.metered is None else self.metered.broken.take()
        samples = None if self.metered is None else self.metered.take_samples(MAX_SAMPLES_PER_BATCH)
        further = [as_json(values) if values else "" for values in (metered, spread, broken, samples)]
        return OutgoingBatch(name, self.instance, as_json(rows), further[0], further[1], further[2], further[3], shard)


def _add(row: Counts, allowed: int, denied: int, would_deny: int, cost: int) -> None:
    row[_ALLOWED] += allowed
    row[_DENIED] += denied
    row[_WOULD_DENY] += would_deny
    row[_COST] += cost


def states_of(bounds: Sequence[BoundLimit], costs: Costs, reply: Reply, passed: bool) -> tuple[State, ...]:
    """Return the state of each limit in a reply, as :meth:`TokenUsage.decided` takes it."""
    return tuple(
        (bound.index, wait == 0, bound.limit.shadow, bound.cost_of(costs) if passed and wait == 0 else 0)
        for bound, wait in zip(bounds, reply.waits(), strict=True)
    )
