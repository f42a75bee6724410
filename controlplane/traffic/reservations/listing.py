"""The reservations that the store and SQL know, as one list."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import redis
from django.conf import settings
from django.db.models import QuerySet

from controlplane.core import store
from controlplane.objects.projects.models import Project
from controlplane.traffic.reservations.models import LOST, OPEN, SETTLING, UNSETTLED, Reservation, ReservationCount
from enforcement.model.keys import GLOBAL_TAG
from enforcement.plan.records import MAX_RESERVATIONS, RecordKeys
from enforcement.store.errors import StoreError
from enforcement.store_calls.reservations import (
    MAX_LISTED,
    OpenReservation,
    count_reservations,
    each_reservation,
    find_reservation,
)

# How many a list reads from the store, in the search for those of its filter. SQL finds lost ones beyond that.
MOST_READ = 5_000


class Unknown(LookupError):
    """Raised for an id that no reservation has, or has any more."""


class Unreadable(Exception):
    """Raised for a reservation whose record the store has in a form that this release cannot read."""


@dataclass(frozen=True, slots=True)
class ReservationQuery:
    """
    The filters of a list of reservations.

    Attributes:
        states: Some of ``open`` and ``lost``.
        projects: Ids. None: those of every project.
        token: Id, or empty for every token.
        older_than: The least age. None: any.
    """

    states: Collection[str] = UNSETTLED
    projects: Collection[str] | None = None
    token: str = ""
    older_than: timedelta | None = None

    def accepts(self, row: Reservation, now: datetime) -> bool:
        """Return whether a reservation is in the list."""
        return (
            row.state in self.states
            and (self.projects is None or row.project_id in self.projects)
            and self.token in ("", row.token_id)
            and (self.older_than is None or row.at <= now - self.older_than)
        )


@dataclass(frozen=True, slots=True)
class UnsettledList:
    """
    Reservations that can be settled, the oldest first.

    Attributes:
        truncated: Whether there are more than could be read.
    """

    rows: list[Reservation]
    truncated: bool


def client() -> redis.Redis:
    """Return the shared client for requests, with a short timeout because a person waits."""
    return store.connection(settings.PUBLISH_TIMEOUT_SECONDS)


def unsettled(query: ReservationQuery, now: datetime) -> UnsettledList:
    """
    Return at most MAX_LISTED open and lost reservations of a query, from the store and from SQL.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    stored = _stored(query)
    accepted = (row for row in islice(stored, MOST_READ) if query.accepts(row, now))
    found = {row.pk: row for row in islice(accepted, MAX_LISTED)}
    kept = list(_kept_of(query, now)[: MAX_LISTED + 1])
    unread = next(accepted, None) is not None or next(stored, None) is not None
    for row in kept:
        if row.state == SETTLING or row.pk not in found:
            found[row.pk] = row
    rows = sorted(found.values(), key=lambda row: (row.at, row.pk))
    return UnsettledList(rows[:MAX_LISTED], unread or len(rows) > MAX_LISTED)


def _stored(query: ReservationQuery) -> Iterator[Reservation]:
    """Yield the reservations of a query that the store lists, and others of the same projects."""
    states, keys, shared = query.states, store.keys(), client()
    chosen = {"lost_only": OPEN not in states, "open_only": LOST not in states}
    # The index of all projects comes last, as most of it may be of others.
    for tag in sorted(count_reservations(shared, keys, _tags(query)), key=lambda tag: (tag == GLOBAL_TAG, tag)):
        for row in each_reservation(shared, keys, tag, **chosen, at_most=MAX_RESERVATIONS):
            if row.about.get("project"):
                yield Reservation.of(row)


def _tags(query: ReservationQuery) -> list[str]:
    """Return the hash tags that may have reservations of a query."""
    projects: Iterable[str] = query.projects or ()
    if query.projects is None:
        every = Project.objects.values_list("pk", flat=True)
        # The project of a token that was deleted is unknown.
        projects = every.filter(tokens=query.token) or every if query.token else every
    return [*projects, GLOBAL_TAG]


def _kept_of(query: ReservationQuery, now: datetime) -> QuerySet[Reservation]:
    """Return the rows of a query that SQL has, the oldest first."""
    rows = Reservation.objects.filter(state__in=[SETTLING, *(state for state in query.states if state == LOST)])
    if query.projects is not None:
        rows = rows.filter(project_id__in=query.projects)
    if query.token:
        rows = rows.filter(token_id=query.token)
    if query.older_than is not None:
        rows = rows.filter(at__lte=now - query.older_than)
    return rows.order_by("at", "pk")


def reservation_counts(at_most: int) -> list[tuple[str, ReservationCount]]:
    """
    Return the slugs of the projects with most lost and open reservations, each with its numbers, and at the end those
    of all others together, with an empty slug. The numbers are those of the last run of the task.
    """
    rows = list(ReservationCount.objects.order_by("-lost", "-open", "project_id"))
    slugs = dict(Project.objects.filter(pk__in=[row.pk for row in rows[:at_most]]).values_list("pk", "slug"))
    rest = rows[at_most:]
    others = ReservationCount(
        open=sum(row.open for row in rest),
        lost=sum(row.lost for row in rest),
        of_token=max((row.of_token for row in rest), default=0),
        lost_since=min((row.lost_since for row in rest if row.lost_since), default=None),
    )
    return [*((slugs.get(row.pk, row.pk), row) for row in rows[:at_most]), ("", others)]


def read(reservation_id: str) -> tuple[Reservation, OpenReservation | None]:
    """
    Return a reservation, and what the store has of it, or None if it was settled.

    Raises:
        Unknown: There is none with this id.
        Unreadable: Its record cannot be read.
        One of STORE_ERRORS: The store is unavailable.
    """
    row = _kept(reservation_id)
    found = None if row and not row.may_settle else in_store(reservation_id)
    if found is None:
        # Whoever settles one by hand saves its row before the store removes the record.
        row = _kept(reservation_id)
        if row is None:
            raise Unknown
        return row, None
    return row or Reservation.of(found), found


def _kept(reservation_id: str) -> Reservation | None:
    return Reservation.objects.filter(pk=reservation_id).first()


def in_store(reservation_id: str) -> OpenReservation | None:
    """Return what the store has of a reservation of a project, or None. Raises as :func:`read` does."""
    try:
        tag = RecordKeys.from_id(store.keys(), reservation_id).id.partition(".")[0]
        # Those of limits in code belong to no project, and nobody can settle them here.
        found = find_reservation(client(), store.keys(), reservation_id) if _is_ours(tag) else None
    except ValueError:
        return None
    except StoreError as exc:
        raise Unreadable(str(exc)) from exc
    return found if found and found.about.get("project") else None


def _is_ours(tag: str) -> bool:
    return tag == GLOBAL_TAG or tag.startswith("proj_")
