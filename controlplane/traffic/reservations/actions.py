"""Settle reservations by hand, in place of the processes that have lost them. Admin, REST and a task use this."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any

import redis
from django.db import DatabaseError, IntegrityError, transaction
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core import store
from controlplane.objects.projects.models import Project
from controlplane.traffic.reservations import listing
from controlplane.traffic.reservations.models import LOST, RELEASED, SETTLED, SETTLING, Reservation
from controlplane.traffic.stream.batches import Row, SettledRow
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.drain import foreign_to
from enforcement.metering.charges import Counts
from enforcement.metering.settlement import ESTIMATED, EXACT, NOTHING
from enforcement.metering.tally import COUNT_NAMES, MeteredCounts
from enforcement.model.keys import GLOBAL_TAG
from enforcement.model.metered import MONEY
from enforcement.plan.costs import check_costs
from enforcement.plan.records import Conclusion, RecordedCharge, ReservationRecord
from enforcement.store.client import STORE_ERRORS, with_library
from enforcement.store.errors import StoreError
from enforcement.store_calls.reservations import OpenReservation, costs_of_usage, settle_reservation, was_marked

logger = logging.getLogger(__name__)

# The process that began a settlement is dead or has given up by then.
RETRIED_AFTER = timedelta(seconds=10)
# Another part of the same task waits for what is finished here.
MOST_SECONDS = 10
# How long the store knows who has settled one. The worker has asked by then, also after an outage.
MARKED_FOR_MS = 7 * 86_400_000
COUNTERS_AWAY = (*STORE_ERRORS, StoreError)
# This stands for a person if a reservation was settled because the time in its policy was over.
BY_POLICY = "policy"


class AlreadySettled(Exception):
    """Raised for a reservation that somebody else has settled. Nothing was changed."""


class SettlementUnfinished(Exception):
    """Raised after a settlement was recorded, if the store became unavailable then. The worker finishes it."""


class InvalidOrder(ValueError):
    """Raised for costs or tokens that this reservation cannot be settled by. ``field`` names the wrong one."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(rule)
        self.field = field


class AddsToGlobal(Exception):
    """Raised for a settlement that charges more to a counter of all projects, or may return what nobody charged."""


@dataclass(frozen=True, slots=True)
class SettlementOrder:
    """
    The charge that an operator orders for a reservation.

    Attributes:
        costs: Permits by unit. A unit that is left out keeps its estimate.
        usage: The tokens that the provider has reported, in place of *costs*.

    Without either, everything is given back but the request of a metered reservation, which was made.
    """

    costs: Mapping[str, int] | None = None
    usage: Counts | None = None

    @property
    def is_release(self) -> bool:
        return self.costs is None and self.usage is None

    def costs_for(self, record: ReservationRecord) -> dict[str, int] | None:
        """
        Return what the reservation costs, by unit or by the names of its limits, or None if it is given back.

        Raises:
            InvalidOrder: The order does not suit the reservation.
        """
        if self.usage is not None:
            try:
                return costs_of_usage(record, self.usage)
            except ValueError as exc:
                raise InvalidOrder("usage", str(exc).partition(": ")[2]) from exc
        if self.costs is None:
            return None
        units = {charge.bound.limit.unit for charge in record.charges if charge.bound.letter != "c"}
        try:
            check_costs(self.costs)
        except ValueError as exc:
            raise InvalidOrder("costs", str(exc).partition(": ")[2]) from exc
        for unit in self.costs:
            if unit not in units:
                rule = (
                    f"No limit of this reservation counts {unit!r}. It counts {', '.join(sorted(units)) or 'nothing'}."
                )
                raise InvalidOrder("costs", rule)
        return dict(self.costs)


def settle(tx: OpenChange, reservation_id: str, order: SettlementOrder, *, charges_global: bool = True) -> Reservation:
    """
    Record the settlement of a reservation, and correct its counters right after the commit.

    The row is the turn: of two operators, the second finds it taken. The counters follow once, as the store removes the
    record in the call that corrects them. If that call fails, the worker repeats it.

    Args:
        charges_global: Whether counters that all projects share may be charged more than the estimate.
    Returns:
        The row, whose state is ``settled`` or ``released`` after the change.
    Raises:
        listing.Unknown: There is no such reservation.
        AlreadySettled: It was settled. Also raised by the end of the change if a process settles it at that moment.
        InvalidOrder: The order does not suit the reservation.
        AddsToGlobal: See *charges_global*.
        SettlementUnfinished: Raised by the end of the change.
        One of STORE_ERRORS: The store is unavailable. Nothing was changed.
    """
    row, found = listing.read(reservation_id)
    if found is None:
        raise AlreadySettled
    costs = order.costs_for(found.record)
    charged = [(c, delta) for c, delta in Conclusion.by_hand(found.record, costs).charged() if c.bound.letter != "c"]
    if not charges_global and _adds_to_global(row, charged):
        raise AddsToGlobal
    changes = [
        {
            "policy_id": charge.bound.policy_id,
            "policy": charge.bound.policy_slug,
            "limit": charge.bound.limit.name,
            "unit": charge.bound.limit.unit,
            "permits": delta,
        }
        for charge, delta in charged
        if delta
    ]
    taken = _take(row, tx, {"costs": costs, "counts": _counted(order, found, costs), "changes": changes})
    action = "release" if order.is_release else "settle"
    tx.record(f"reservation.{action}", taken, before=row.as_record(), after=taken.as_record())
    transaction.on_commit(lambda: _finish_now(taken, tx))
    return taken


def _adds_to_global(row: Reservation, charged: Iterable[tuple[RecordedCharge, int]]) -> bool:
    """
    Return whether a settlement charges counters of all projects more than was charged before.

    What is given back counts, too, if an account of the store is limited to the project: its records may say that much
    was charged. The name of the counter tells whose it is, as the scope in a record may be another one.
    """
    shared = store.keys().scope(GLOBAL_TAG)
    deltas = [delta for charge, delta in charged if charge.bound.key.startswith(shared) and delta]
    may_lie = any(deltas) and Project.objects.filter(pk=row.project_id, has_intake=True).exists()
    return may_lie or any(delta > 0 for delta in deltas)


def _counted(order: SettlementOrder, found: OpenReservation, costs: Mapping[str, int] | None) -> MeteredCounts | None:
    """Return what the usage of a settlement is, or None if the request was not metered."""
    if not found.record.is_metered:
        return None
    used = order.usage or Counts()
    # Costs by unit say nothing of the tokens, so they must not be compared with the estimate.
    estimated = found.about.get("input", 0) if order.usage else 0
    units = {charge.bound.cost_name: charge.bound.limit.unit for charge in found.record.charges}
    money = [cost for name, cost in (costs or {}).items() if units.get(name, name) == MONEY]
    return MeteredCounts(
        requests=1,
        input=used.input,
        cached_input=used.cached_input,
        cache_write=used.cache_write,
        output=used.output,
        micros=max(money, default=0),
        estimated_input=estimated,
        calls=used.calls,
    )


def _take(row: Reservation, tx: OpenChange, order: dict[str, Any]) -> Reservation:
    """Return the saved row of a reservation that is being settled, or raise AlreadySettled."""
    fields = {
        "state": SETTLING,
        "settled_as": NOTHING if order["costs"] is None else EXACT,
        "settled_at": timezone.now(),
        "settled_by": tx.actor.name[:200],
        "reason": tx.reason[:500],
        "order": order,
    }
    taken = Reservation(**{field.attname: getattr(row, field.attname) for field in Reservation._meta.concrete_fields})
    for name, value in fields.items():
        setattr(taken, name, value)
    try:
        with transaction.atomic():
            taken.save(force_insert=True)
    except IntegrityError:
        # The row is there. Of several at once, the condition lets one pass.
        if not Reservation.objects.filter(pk=row.pk, state="lost").update(**fields):
            raise AlreadySettled from None
    return taken


def _finish_now(row: Reservation, tx: OpenChange) -> None:
    try:
        changed = _correct(row, listing.client())
    except COUNTERS_AWAY as exc:
        logger.warning("The settlement of %s is not finished: %s", row.pk, exc)
        raise SettlementUnfinished from exc
    try:
        finish(row, timezone.now(), by_us=changed)
    except DatabaseError as exc:
        raise SettlementUnfinished from exc
    if not changed:
        with suppress(DatabaseError):
            tx.record("reservation.settled_elsewhere", row, before=None, after=row.as_record())
        raise AlreadySettled


def _correct(row: Reservation, client: redis.Redis) -> bool:
    """
    Correct the counters of a reservation, unless that was done, and return whether it was settled by this order, and
    not by its process. Raises one of COUNTERS_AWAY.
    """
    keys, costs = store.keys(), row.order["costs"]
    done = with_library(client, lambda: settle_reservation(client, keys, row.pk, costs, marked_for_ms=MARKED_FOR_MS))
    return done is not None or was_marked(client, keys, row.pk)


def settle_as_estimated(row: Reservation, client: redis.Redis, now: datetime) -> bool:
    """
    Settle a lost reservation as its estimate, which is charged already, and return whether this call did.

    An operator who is faster, or a process that brings the provider's last word, wins. If the store fails meanwhile,
    :func:`finish_pending` goes on.

    Raises:
        One of COUNTERS_AWAY: The store is unavailable, or the record cannot be read.
    """
    fields = {
        "state": SETTLING,
        "settled_as": ESTIMATED,
        "settled_at": now,
        "settled_by": BY_POLICY,
        "reason": "lost for as long as lost_after says",
        # No cost is named, so that each limit keeps the estimate.
        "order": {"costs": {}, "counts": estimated_counts(row), "changes": []},
    }
    if not Reservation.objects.filter(pk=row.pk, state=LOST).update(**fields):
        return False
    row.refresh_from_db()
    by_us = _correct(row, client)
    finish(row, now, by_us=by_us)
    return by_us


def estimated_counts(row: Reservation) -> MeteredCounts | None:
    """Return what the usage of a reservation that keeps its estimate is. None: it was not metered."""
    if not row.model:
        return None
    money = max((amount["permits"] for amount in row.amounts if amount["unit"] == MONEY), default=0)
    read, written = row.estimate.get("input", 0), row.estimate.get("output", 0)
    return MeteredCounts(requests=1, input=read, output=written, micros=money, estimated_input=read)


def finish(row: Reservation, now: datetime, *, by_us: bool) -> None:
    """
    Save that the counters of a reservation are corrected, and add the corrections to the usage, once.

    Args:
        by_us: Whether the order was executed. Otherwise its process has settled it at the same moment.
    """
    state = (RELEASED if row.order["costs"] is None else SETTLED) if by_us else SETTLED
    fields: dict[str, Any] = {"state": state} if by_us else {"state": state, **_elsewhere()}
    with transaction.atomic():
        if not Reservation.objects.filter(pk=row.pk, state=SETTLING).update(**fields):
            return  # the worker was faster
        if by_us:
            add_usage(row, now)
    for name, value in fields.items():
        setattr(row, name, value)


def _elsewhere() -> dict[str, Any]:
    return {"settled_as": "", "settled_by": "", "reason": "", "order": {}}


def add_usage(row: Reservation, now: datetime) -> None:
    """Add what a settlement has changed to the usage of the minute of the reservation."""
    minute = row.at.replace(second=0, microsecond=0)
    names = [
        (row.project_id, row.token_id, one["policy_id"], one["limit"], one["unit"]) for one in row.order["changes"]
    ]
    is_foreign = foreign_to(names, row.project_id)
    changes = zip(names, row.order["changes"], strict=True)
    rollup.add((Row(minute, of, (0, 0, 0, one["permits"])) for of, one in changes if not is_foreign(of)), now)
    if row.order["counts"]:
        # The order of a version before or after this one has fewer or more of them.
        counts = MeteredCounts(*row.order["counts"][: len(COUNT_NAMES)])
        add_metered(row, row.settled_as, counts, now)


def add_metered(row: Reservation, settled_as: str, counts: MeteredCounts, now: datetime) -> None:
    """
    Add one metered request to the usage of the minute of its reservation, unless its record names the token of another
    project, as whoever may write records of a project can.
    """
    names = (row.project_id, row.token_id, row.model, settled_as)
    if foreign_to([names[:2]], row.project_id)(names[:2]):
        return
    revision = row.estimate.get("price_revision", 0)
    minute = row.at.replace(second=0, microsecond=0)
    rollup.add_metered([SettledRow(minute, names, False, revision, counts)], now)


def finish_pending(now: datetime, client: redis.Redis, *, seconds: float = MOST_SECONDS) -> int:
    """
    Finish the settlements whose process has died or could not reach the store, for at most some *seconds*, and return
    their number. Those of one project do not keep those of others waiting: they take turns, the oldest of each first.

    If the record of one is gone, either the call of that process has reached the store, and only its reply was lost, or
    the process of the reservation has settled it meanwhile. The mark in the store tells.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    done, deadline = 0, time.monotonic() + seconds
    pending = Reservation.objects.filter(state=SETTLING, settled_at__lt=now - RETRIED_AFTER).order_by("settled_at")
    by_project: dict[str, list[str]] = defaultdict(list)
    for pk, project in pending.values_list("pk", "project_id"):
        by_project[project].append(pk)
    for pk in (pk for turn in zip_longest(*by_project.values()) for pk in turn if pk):
        if time.monotonic() > deadline:
            break
        row = Reservation.objects.filter(pk=pk, state=SETTLING).first()
        if row is None:
            continue
        try:
            by_us = _correct(row, client)
        except StoreError as exc:
            logger.warning("The settlement of %s is not finished: %s", row.pk, exc)
            continue
        finish(row, now, by_us=by_us)
        if not by_us:
            with change(actor=Actor("record_lost", "task")) as tx:
                tx.record("reservation.settled_elsewhere", row, before=None, after=row.as_record())
        done += 1
    return done
