"""
Keep for the doctor which fields of requests bounds refuse, or would refuse, when the processes that counted have ended.

A living process says it in its heartbeat for seven days, and its counts end with it.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import redis

from controlplane.core import store
from controlplane.traffic.fleet.models import FieldCount, Instance
from enforcement.metering.refusals import DAYS
from enforcement.model.instants import to_us
from enforcement.model.strict_json import dumps

DAY_US = 86_400_000_000
MOST_NAMES = 200
# The worker writes the document again with each run.
KEPT_MS = 3_600_000
KINDS = ("refused", "would_refuse")


def note(live: Iterable[Instance], now: datetime, client: redis.Redis) -> None:
    """Save the counts of live instances by day, and in the store, for the doctor, those of the ones that have ended."""
    today = to_us(now) // DAY_US
    known = {_process(instance): instance.field_days for instance in live}
    rows = [
        FieldCount(process=process, day=day, counts=counts)
        for process, days in known.items()
        for day, counts in days.items()
        if today - DAYS < day <= today + 1  # clocks differ
    ]
    FieldCount.objects.bulk_create(
        rows, batch_size=500, update_conflicts=True, unique_fields=["day", "process"], update_fields=["counts"]
    )
    FieldCount.objects.filter(day__lte=today - DAYS).delete()
    if found := _sums(FieldCount.objects.all(), known):
        client.set(store.keys().last_fields, dumps({"fields": found}), px=KEPT_MS)


def _process(instance: Instance) -> str:
    return f"{instance.id} {to_us(instance.started_at) if instance.started_at else 0}"


def _sums(rows: Iterable[FieldCount], known: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """Return the counts of all days of the processes that are not *known* to live, the highest first."""
    sums: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for row in rows:
        for kind in KINDS if row.process not in known else ():
            for name, count in row.counts.get(kind, ()):
                sums[kind][name] = sums[kind].get(name, 0) + count
    ranked = {kind: sorted(counts.items(), key=lambda item: (-item[1], item[0])) for kind, counts in sums.items()}
    return {kind: [[name, count] for name, count in rows[:MOST_NAMES]] for kind, rows in ranked.items() if rows}


def read_days(value: Any) -> dict[int, dict[str, list[list[Any]]]]:
    """Return the counts by day that a heartbeat has. What makes no sense is left out."""
    result = {}
    for day, counts in value.items() if isinstance(value, dict) else ():
        if day.isdecimal() and len(day) < 9 and isinstance(counts, dict):
            kinds = {kind: _pairs(counts.get(kind)) for kind in KINDS}
            result[int(day)] = {kind: pairs for kind, pairs in kinds.items() if pairs}
    return result


def _pairs(rows: Any) -> list[list[Any]]:
    return [
        row
        for row in (rows[:MOST_NAMES] if isinstance(rows, list) else ())
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and type(row[1]) is int and row[1] > 0
    ]
