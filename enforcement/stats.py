"""One process' enforcement in numbers: a snapshot, made of counts that are kept anyway. Exporters read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enforcement.latency import Histogram


@dataclass(frozen=True, slots=True)
class DecisionCount:
    """How many decisions one source made for one reason; both as in :class:`~enforcement.plan.decision.Decision`."""

    source: str
    reason: str
    count: int

    @property
    def allowed(self) -> bool:
        """Whether they let the request pass."""
        return self.reason == "ok"


@dataclass(frozen=True, slots=True)
class Stats:
    """
    What one limiter has done since its process began, and how it is. Counts never go down, but in a forked child.

    Attributes:
        instance: Its name in the fleet; ``version`` is the library's.
        state: ``starting``, ``ok`` or ``degraded``.
        revision: The published revision that it obeys, ``store_id`` the store that this came from; 0 and "": none yet.
        documents_age_seconds: Since the store last confirmed that these documents are its present ones; None: not yet.
        fleet_size: The most instances seen alive in ten minutes.
        clock_offset_us: The store's time less this host's, microseconds.
        decisions: Requests decided, by source and reason; looking without charging is none.
        store_failures: Calls that the store gave no usable answer to, by cause: ``timeout``, ``oom`` ...
        servers_away: Servers of the store without which requests are decided: of a single store 0 or 1.
        outages: How often one was found away.
        journal_entries: Counters and windows that the store is owed a charge for, from the time without it.
        journal_dropped: Permits that were admitted without it and will not be charged, because the journal was full or
            their counter cannot be read.
        lease_permits_held: Permits taken ahead and not handed out; ``lease_permits_used`` is how many were.
        overflow_decisions: Decisions by counters that values beyond a project's cap share.
        usage_dropped: Decisions that no report will show, because nobody took the reports.
        disk_failures: Times that the last good documents could not be kept or read.
        store_calls: How long the store took; None: not measured, see ``time_store_calls()``.
    """

    instance: str
    version: str
    state: str
    revision: int
    store_id: str
    documents_age_seconds: float | None
    fleet_size: int
    clock_offset_us: int
    decisions: tuple[DecisionCount, ...]
    store_failures: Mapping[str, int]
    servers_away: int
    outages: int
    journal_entries: int
    journal_dropped: int
    lease_permits_held: int
    lease_permits_used: int
    overflow_decisions: int
    usage_dropped: int
    disk_failures: int
    store_calls: Histogram | None

    def decided(self, *, source: str | None = None, allowed: bool | None = None) -> int:
        """Return the number of decisions, of one source or outcome if one is named."""
        return sum(
            row.count
            for row in self.decisions
            if source in (None, row.source) and (allowed is None or allowed is row.allowed)
        )

    @property
    def clock_offset_seconds(self) -> float:
        """The store's time less this host's."""
        return self.clock_offset_us / 1_000_000

    @property
    def lease_share(self) -> float:
        """What part of all decisions was made by permits at hand, 0 to 1."""
        total = self.decided()
        return self.decided(source="lease") / total if total else 0.0


__all__ = ["DecisionCount", "Stats"]
