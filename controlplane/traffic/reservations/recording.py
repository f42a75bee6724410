"""
Keep the lost reservations in SQL, and count those that are open or lost.

The store forgets a record after seven days, and drops a lost one from its list once a project has very many. SQL has
each of them once, by its unique id, until some weeks after it was settled.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import batched

import redis
from django.db import transaction

from controlplane.core import store
from controlplane.core.locks import hold
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.traffic.reservations import actions
from controlplane.traffic.reservations.models import (
    LOST,
    MAX_ID_LENGTH,
    SETTLED,
    SETTLED_KEPT,
    SETTLED_WITHIN,
    SETTLING,
    Reservation,
    ReservationCount,
)
from enforcement.metering.settlement import ESTIMATED
from enforcement.model.instants import from_us
from enforcement.model.keys import GLOBAL_TAG
from enforcement.model.metered import USUAL_LOST_AFTER
from enforcement.plan.records import ReservationRecord
from enforcement.store.errors import StoreError
from enforcement.store_calls.reservations import (
    ReservationCounts,
    count_reservations,
    lost_reservations,
    present_reservations,
    read_reservations,
)

logger = logging.getLogger(__name__)

LOCK, OVERDUE_LOCK = "reservations", "reservations-overdue"
# Each of the two other parts of a run stops after this time and the next run continues, as other tasks wait for the
# worker.
MOST_SECONDS = 15
# The time for which a killed run blocks the next one. It is longer than a run.
LOCK_TTL_MS = 55_000
IDS_AT_ONCE = 500


def record(now: datetime, client: redis.Redis | None = None) -> int:
    """
    Save the lost reservations that SQL does not have, mark those as settled whose record is gone, finish what operators
    have ordered, and return the number of new ones.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The next run is the retry.
    """
    client = client or store.connection()
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS) as fence:
        if fence is None:
            return 0
        actions.finish_pending(now, client)
        tags = [*Project.objects.values_list("pk", flat=True), GLOBAL_TAG]
        counts = count_reservations(client, store.keys(), tags)
        _save_counts(counts, now)
        lost: dict[str, int] = {}
        for tag in [tag for tag, count in counts.items() if count.lost]:
            lost |= lost_reservations(client, store.keys(), tag)
        new = _save_lost(client, lost)
        _mark_settled(client, lost.keys(), now)
    if new:
        logger.warning("%d reservations were lost by their process. Their estimates stay charged", new)
    return new


def settle_overdue(now: datetime, client: redis.Redis | None = None) -> int:
    """
    Settle as their estimate those metered requests that are lost for longer than their policies say, and return their
    number. Of several policies, the longest time counts. Other reservations have a life of their own, and stay lost.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The next run is the retry.
    """
    client = client or store.connection()
    with hold(client, OVERDUE_LOCK, ttl_ms=LOCK_TTL_MS) as fence:
        if fence is None:
            return 0
        spans = lost_spans()
        least = timedelta(seconds=min([USUAL_LOST_AFTER, *spans.values()]))
        rows = Reservation.objects.filter(state=LOST, expires_at__lte=now - least).exclude(model="").order_by("at")
        done = 0
        for some in _in_time(rows.values_list("pk", flat=True)):
            for row in _overdue(client, some, spans, now):
                try:
                    done += actions.settle_as_estimated(row, client, now)
                except StoreError as exc:
                    logger.warning("The settlement of %s is not finished: %s", row.pk, exc)
    if done:
        logger.warning("%d lost reservations were settled as their estimates", done)
    return done


def _overdue(client: redis.Redis, ids: Sequence[str], spans: Mapping[str, int], now: datetime) -> Iterator[Reservation]:
    """Yield those of some lost reservations whose time is over. One without a record is left to :func:`record`."""
    rows = Reservation.objects.in_bulk(ids)
    for tag in sorted({one.partition(".")[0] for one in ids}):
        lost = {one: 0 for one in ids if one.partition(".")[0] == tag}
        for reservation in read_reservations(client, store.keys(), lost):
            row = rows.get(reservation.id)
            if row and final_at(row, reservation.record, spans) <= now:
                yield row


def lost_spans() -> dict[str, int]:
    """Return by policy, for those with rules of their own, the seconds after which lost requests are settled."""
    return {policy.pk: policy.rules.lost_after for policy in Policy.objects.exclude(metering={})}


def final_at(row: Reservation, record: ReservationRecord, spans: Mapping[str, int]) -> datetime:
    """Return when a lost metered reservation keeps its estimate, and nobody can settle it any more."""
    policies = {charge.bound.policy_id for charge in record.charges}
    after = max((spans.get(policy, USUAL_LOST_AFTER) for policy in policies), default=USUAL_LOST_AFTER)
    return min(row.expires_at + timedelta(seconds=after), row.settled_until)


def prune(now: datetime) -> int:
    """Delete the settled reservations that are no longer kept, and return their number."""
    old = Reservation.objects.exclude(state__in=(LOST, SETTLING)).filter(settled_at__lt=now - SETTLED_KEPT)
    return old.delete()[0]


def _save_counts(counts: dict[str, ReservationCounts], now: datetime) -> None:
    rows = [
        ReservationCount(
            project_id=tag,
            open=count.open,
            lost=count.lost,
            of_token=count.of_token,
            lost_since=None if count.lost_since_us is None else from_us(count.lost_since_us),
            at=now,
        )
        for tag, count in counts.items()
    ]
    with transaction.atomic():
        ReservationCount.objects.all().delete()
        ReservationCount.objects.bulk_create(rows, batch_size=IDS_AT_ONCE)


def _save_lost(client: redis.Redis, lost: dict[str, int]) -> int:
    """Save those that SQL does not have, and return their number."""
    saved = 0
    for ids in _in_time([one for some in batched(lost, IDS_AT_ONCE) for one in _unknown(some)]):
        by_tag: dict[str, dict[str, int]] = {}
        for one in ids:
            by_tag.setdefault(one.partition(".")[0], {})[one] = lost[one]
        for some in by_tag.values():
            found = [Reservation.of(reservation) for reservation in read_reservations(client, store.keys(), some)]
            rows = [row for row in found if row.project_id]
            # An operator may settle one at this moment, whose row then stays.
            Reservation.objects.bulk_create(rows, ignore_conflicts=True)
            saved += len(rows)
    return saved


def _unknown(ids: Sequence[str]) -> Iterator[str]:
    """Yield those of some ids that SQL does not have and can keep."""
    known = set(Reservation.objects.filter(pk__in=ids).values_list("pk", flat=True))
    return (one for one in ids if one not in known and len(one) <= MAX_ID_LENGTH)


def _mark_settled(client: redis.Redis, lost: Iterable[str], now: datetime) -> None:
    """Mark the lost ones whose record is gone as settled, and forget those that their process prolongs again."""
    listed = set(lost)
    rows = Reservation.objects.filter(state=LOST).values_list("pk", flat=True)
    for ids in _in_time(pk for pk in rows if pk not in listed):
        present = present_reservations(client, store.keys(), ids)
        for pk in ids:
            if pk not in present:
                _settled(pk, now)
        Reservation.objects.filter(pk__in=[pk for pk, is_open in present.items() if is_open], state=LOST).delete()


def _in_time(ids: Iterable[str]) -> Iterator[Sequence[str]]:
    """Yield ids in batches until MOST_SECONDS are over."""
    deadline = time.monotonic() + MOST_SECONDS
    for some in batched(ids, IDS_AT_ONCE):
        yield some
        if time.monotonic() > deadline:
            return


def _settled(pk: str, now: datetime) -> None:
    """Mark a lost reservation as settled, by its estimate if nobody could settle it any more."""
    row = Reservation.objects.filter(pk=pk, state=LOST).first()
    if row is None:
        return
    is_final = now >= row.at + SETTLED_WITHIN
    with transaction.atomic():
        changed = Reservation.objects.filter(pk=pk, state=LOST).update(
            state=SETTLED, settled_at=now, settled_as=ESTIMATED if is_final else ""
        )
        if changed and is_final and (counts := actions.estimated_counts(row)):
            actions.add_metered(row, ESTIMATED, counts, now)
