"""
The metrics of a limiter, as a table that every exporter reads.

Names have dots as in OpenTelemetry, units are those of UCUM. The number of label values does not grow with the traffic:
labels are sources, reasons, causes and states, and at most 200 fields, and models with a format, never a key, token,
project or limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from enforcement.stats import Stats
from enforcement.store_calls.instances import STATES

Labels = dict[str, str]
Values = Iterable[tuple[Labels, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """
    One metric.

    Attributes:
        name: With dots. Exporters put ``sluicegate`` before it.
        kind: A ``counter`` never decreases while the process lives.
        unit: ``s``, ``1``, or in braces what is counted.
        text: One sentence for people.
        read: Returns the values in a snapshot.
        labels: Names of the labels of each value.
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


def _fields(stats: Stats) -> Values:
    for name, count in stats.refused_fields.items():
        yield {"field": name}, count


def _broken(stats: Stats) -> Values:
    for (model, format), count in stats.broken_bounds.items():
        yield {"model": model, "format": format}, count


def _state(stats: Stats) -> Values:
    for state in STATES:
        yield {"state": state}, float(stats.state == state)


METRICS: Final = (
    Metric(
        "decisions",
        "counter",
        "{request}",
        "Decisions by source and reason.",
        _decisions,
        ("source", "reason", "allowed"),
    ),
    _counter(
        "decisions.would_deny",
        "{request}",
        "Admitted requests with a token that a shadow limit would have denied.",
        "would_deny",
    ),
    Metric("state", "gauge", "1", "1 for the current state of the limiter, 0 for the others.", _state, ("state",)),
    Metric("store.failures", "counter", "{call}", "Calls to the store that failed, by cause.", _failures, ("cause",)),
    _gauge("revision", "1", "The published revision in use.", "revision"),
    _gauge("documents.age", "s", "Time since the store last confirmed the documents in use.", "documents_age_seconds"),
    _gauge("store.servers_away", "{server}", "Servers of the store that are unavailable.", "servers_away"),
    _counter("store.outages", "{outage}", "How often a server became unavailable.", "outages"),
    _gauge(
        "journal.entries",
        "{entry}",
        "Counters and windows with charges that the store has yet to get.",
        "journal_entries",
    ),
    _counter(
        "journal.dropped",
        "{permit}",
        "Permits admitted without the store that it will never be charged for.",
        "journal_dropped",
    ),
    _gauge("lease.permits.held", "{permit}", "Permits of leases that are not used yet.", "lease_permits_held"),
    _counter("lease.permits.used", "{permit}", "Permits of leases that were used.", "lease_permits_used"),
    _counter("overflow.decisions", "{request}", "Decisions by an overflow counter.", "overflow_decisions"),
    _gauge(
        "reservations.open",
        "{reservation}",
        "Metered requests that this process has not settled yet.",
        "reservations_open",
    ),
    _counter("usage.dropped", "{request}", "Decisions missing from usage reports.", "usage_dropped"),
    _counter(
        "metered.dropped",
        "{request}",
        "Settlements of metered requests missing from usage reports.",
        "metered_dropped",
    ),
    Metric(
        "refused.fields",
        "counter",
        "{request}",
        "Requests that a bound refused, by the field that nobody has priced or allowed.",
        _fields,
        ("field",),
    ),
    Metric(
        "bounds.broken",
        "counter",
        "{request}",
        "Requests that used more input, output or money than a bound had reserved, by model and format.",
        _broken,
        ("model", "format"),
    ),
    _counter("disk.failures", "{failure}", "Failures to write or read the documents on disk.", "disk_failures"),
    _gauge("clock.offset", "s", "The time of the store minus that of this host.", "clock_offset_seconds"),
    _gauge("fleet.size", "{instance}", "The highest number of live instances in ten minutes.", "fleet_size"),
)

STORE_CALL: Final = "store.call.duration"
STORE_CALL_TEXT: Final = "Time from a call to the store to its reply or its timeout."
