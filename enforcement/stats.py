"""Describe what one limiter has done, in numbers. Exporters read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from enforcement.latency import Histogram
from enforcement.model.instants import SECOND_US


@dataclass(frozen=True, slots=True)
class DecisionCount:
    """How many decisions have one source and one reason, as in :class:`~enforcement.plan.decision.Decision`."""

    source: str
    reason: str
    count: int

    @property
    def allowed(self) -> bool:
        """Whether the requests were allowed."""
        return self.reason == "ok"


@dataclass(frozen=True, slots=True)
class Stats:
    """
    The counts of one limiter since its process began, and its present state.

    Counts never decrease, except in a forked child, where they begin at 0.

    Attributes:
        instance: Its name in the fleet.
        version: Version of the library.
        state: ``starting``, ``ok`` or ``degraded``.
        revision: The published revision that it uses. 0: none yet.
        store_id: Identity of the store that this revision came from. Empty: none yet.
        documents_age_seconds: Seconds since the store confirmed that these documents are up to date. None: not yet.
        fleet_size: The most instances that were alive at one time in the last ten minutes.
        clock_offset_us: The store's time minus this host's time, in microseconds.
        decisions: Decisions by source and reason. A call that does not charge is not counted.
        would_deny: Admitted requests with a token that a shadow limit of a published policy would have denied.
        store_failures: Calls without a usable reply, by cause, such as ``timeout`` or ``oom``.
        servers_away: Servers of the store that are unavailable. 0 or 1 for a single server.
        outages: How often a server became unavailable.
        journal_entries: Counters and windows with charges that the store has not received yet.
        journal_dropped: Permits admitted during an outage that will never be charged, because the journal was full or
            their counter could not be read.
        lease_permits_held: Permits charged in advance and not used yet.
        lease_permits_used: Permits charged in advance and used.
        overflow_decisions: Decisions by counters that values beyond a project's cap share.
        reservations_open: Reservations of metered requests that this process has not settled yet.
        usage_dropped: Decisions missing in every report, because the reports could not be delivered in time.
        metered_dropped: Settlements of metered requests missing in every report, for the same reason. Their limits were
            charged all the same.
        refused_fields: Requests that a bound refused for a field that nobody has priced or allowed, by its name.
        broken_bounds: Requests that used more than a bound had reserved, by model and format.
        disk_failures: How often the last good documents could not be written or read.
        store_calls: How long calls to the store took. None: not measured, see ``time_store_calls()``.
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
    would_deny: int
    store_failures: Mapping[str, int]
    servers_away: int
    outages: int
    journal_entries: int
    journal_dropped: int
    lease_permits_held: int
    lease_permits_used: int
    overflow_decisions: int
    reservations_open: int
    usage_dropped: int
    metered_dropped: int
    disk_failures: int
    store_calls: Histogram | None
    refused_fields: Mapping[str, int] = field(default_factory=dict)
    broken_bounds: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def decided(self, *, source: str | None = None, allowed: bool | None = None) -> int:
        """Return the number of decisions, or only of those with a source or an outcome."""
        return sum(
            row.count
            for row in self.decisions
            if source in (None, row.source) and (allowed is None or allowed is row.allowed)
        )

    @property
    def clock_offset_seconds(self) -> float:
        """The store's time minus this host's time, in seconds."""
        return self.clock_offset_us / SECOND_US

    @property
    def lease_share(self) -> float:
        """The share of decisions that used a leased permit, from 0 to 1."""
        total = self.decided()
        return self.decided(source="lease") / total if total else 0.0
