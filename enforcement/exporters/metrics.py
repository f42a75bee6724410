"""
The metrics of one limiter, as a table that every exporter reads.

Names are dotted, as OpenTelemetry has them, and units are UCUM's. Labels take few values whatever the traffic: sources,
reasons, causes, states. No key, token, project or limit is ever one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from enforcement.stats import Stats

STATES: Final = ("starting", "ok", "degraded")

Labels = dict[str, str]
Values = Iterable[tuple[Labels, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """
    One metric.

    Attributes:
        name: Dotted, below ``sluicegate.``.
        kind: A ``counter`` never goes down while the process lives.
        unit: ``s``, or in braces what is counted.
        labels: Names of the labels of each value.
        read: Gives the values of a snapshot.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    text: str
    read: Callable[[Stats], Values]
    labels: tuple[str, ...] = ()


def _gauge(name: str, unit: str, text: str, field: str) -> Metric:
    return Metric(name, "gauge", unit, text, _reader(field))


def _counter(name: str, unit: str, text: str, field: str) -> Metric:
    return Metric(name, "counter", unit, text, _reader(field))


def _reader(field: str) -> Callable[[Stats], Values]:
    def read(stats: Stats) -> Values:
        value = getattr(stats, field)
        return () if value is None else (({}, float(value)),)

    return read


def _decisions(stats: Stats) -> Values:
    for row in stats.decisions:
        yield {"source": row.source, "reason": row.reason, "allowed": str(row.allowed).lower()}, row.count


def _failures(stats: Stats) -> Values:
    for cause, count in stats.store_failures.items():
        yield {"cause": cause}, count


def _state(stats: Stats) -> Values:
    for state in STATES:
        yield {"state": state}, float(stats.state == state)


METRICS: Final = (
    Metric(
        "decisions",
        "counter",
        "{request}",
        "Requests decided, by where the decision was made and why it is so.",
        _decisions,
        ("source", "reason", "allowed"),
    ),
    Metric("state", "gauge", "1", "1 for the present state of the limiter.", _state, ("state",)),
    Metric("store.failures", "counter", "{call}", "Calls that the store did not answer usably.", _failures, ("cause",)),
    _gauge("revision", "1", "The published revision that is obeyed.", "revision"),
    _gauge("documents.age", "s", "Time since the store confirmed the documents obeyed.", "documents_age_seconds"),
    _gauge("store.servers_away", "{server}", "Servers of the store that requests do without.", "servers_away"),
    _counter("store.outages", "{outage}", "How often one was found away.", "outages"),
    _gauge("journal.entries", "{entry}", "Counters and windows that the store is owed for.", "journal_entries"),
    _counter("journal.dropped", "{permit}", "Permits that the store will never be charged for.", "journal_dropped"),
    _gauge("lease.permits.held", "{permit}", "Permits taken ahead and not handed out.", "lease_permits_held"),
    _counter("lease.permits.used", "{permit}", "Permits handed out of those taken ahead.", "lease_permits_used"),
    _counter("overflow.decisions", "{request}", "Requests counted by an overflow counter.", "overflow_decisions"),
    _counter("usage.dropped", "{request}", "Decisions that no report shows.", "usage_dropped"),
    _counter("disk.failures", "{failure}", "Times that documents could not be kept or read.", "disk_failures"),
    _gauge("clock.offset", "s", "The store's time less this host's.", "clock_offset_seconds"),
    _gauge("fleet.size", "{instance}", "The most instances alive in ten minutes.", "fleet_size"),
)

STORE_CALL: Final = "store.call.duration"
STORE_CALL_TEXT: Final = "Time from a call to the store to its answer, or to giving up."

__all__ = ["METRICS", "STORE_CALL", "STORE_CALL_TEXT", "Metric"]
