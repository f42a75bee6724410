"""The instances that run, read from their heartbeats in the store."""

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any

import redis
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Q

from controlplane.core import optional, store
from controlplane.traffic.fleet import outages
from controlplane.traffic.fleet.fields import note, read_days
from controlplane.traffic.fleet.models import HEARTBEAT_LIFETIME, Instance
from enforcement.logs import RateLimitedLogger
from enforcement.model.documents import InvalidDocument, StateName, epoch_of, loads
from enforcement.model.instants import from_us, to_us
from enforcement.store.client import STORE_ERRORS
from enforcement.store_calls.instances import PROBLEMS

logger = logging.getLogger(__name__)
# They are read every two seconds, and one page reads them too.
often = RateLimitedLogger(logger)

# A stopped instance is kept for two days, so that people can find when it was last seen, and so that the report of its
# last day counts it.
KEPT = timedelta(days=2)
LOST_SHOWN = timedelta(days=1)
MOST_INSTANCES = 10_000
# An account of a project may add any ids, so reading ends after this number of lists of MOST_INSTANCES ids.
MOST_LISTS = 10
READ_AT_ONCE = 500
# People begin epochs, so a backup of SQL is behind the fleet by few of them. Whoever may send heartbeats can use up
# this number with each reconciliation.
MOST_EPOCHS_AHEAD = 10
# The instants of a heartbeat are in this time, by the store's clock, which instances follow. A glass lasts for a day.
EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
MOST_AHEAD = timedelta(hours=1)
# The store notes a heartbeat by its own clock, which is read a moment earlier.
MOST_LATE = timedelta(seconds=1)
GLASS_AHEAD = timedelta(days=1) + MOST_AHEAD
MOST_REVISIONS_AHEAD = 10_000_000
COUNTERS = ("allowed", "denied", "fallback")
FIELDS = tuple(field.name for field in Instance._meta.concrete_fields if not field.primary_key)


def live_instances(client: redis.Redis | None = None) -> list[Instance]:
    """
    Return a new unsaved Instance for each heartbeat in the store, ordered by id.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The saved rows hold the last known state.
    """
    client = client or store.connection()
    instances: dict[str, Instance] = {}
    for some in batched(_ids(client), READ_AT_ONCE):
        instances |= {instance.id: instance for instance in _read(client, some)}
        if len(instances) >= MOST_INSTANCES:
            often.warning("instances", "There are more than %d heartbeats, and some are not shown", MOST_INSTANCES)
            break
    return [instances[ident] for ident in sorted(instances)]


def _ids(client: redis.Redis) -> Iterator[str]:
    """
    Yield the ids of instances that sent heartbeats, the last heard first, and perhaps some of them twice.

    Whoever may send heartbeats may note any instant. An id of the future would stand before all others for as long.
    """
    latest_us = to_us(store.time_of(client) + MOST_LATE)
    for start in range(0, MOST_LISTS * MOST_INSTANCES, MOST_INSTANCES):
        rows = client.zrevrange(store.keys().instances, start, start + MOST_INSTANCES - 1, withscores=True)
        yield from (str(row[0]) for row in rows if isinstance(row, list | tuple) and row[1] <= latest_us)
        if len(rows) < MOST_INSTANCES:
            return


def highest_state(known: StateName, client: redis.Redis) -> StateName:
    """
    Return the highest epoch and the highest revision that a live instance reports, or zeros if there is none.

    A number that is far above the *known* one is left out and logged. No control plane can have published so much, and
    a wrong number would use up those that are left.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    epoch, revision = 0, 0
    for instance in live_instances(client):
        its_epoch = epoch_of(instance.store_id)
        if its_epoch > known.epoch + MOST_EPOCHS_AHEAD or not is_plausible(instance.revision, known):
            logger.warning("The revision that %r reports is not plausible: %d", instance.id, instance.revision)
            continue
        epoch, revision = max(epoch, its_epoch), max(revision, instance.revision)
    return StateName(epoch, revision)


def is_plausible(revision: int, known: StateName) -> bool:
    """Return whether a control plane at the *known* state can have published so much that its backup lacks it."""
    return revision <= known.revision + MOST_REVISIONS_AHEAD


class Fleet(list[Instance]):
    """
    The live instances.

    While the store is unavailable, these are the ones that ran when it last answered, and ``unknown`` says why nobody
    knows whether they still do. Otherwise it is empty.
    """

    unknown = ""

    @property
    def seen_at(self) -> datetime | None:
        """The instant of the last heartbeat, or None without any."""
        return max((instance.seen_at for instance in self), default=None)


def _unknown() -> Fleet:
    fleet = Fleet()
    fleet.unknown = "The heartbeats of instances cannot be read."
    return fleet


@optional.optional(optional.HEARTBEATS, _unknown)
def fleet_now() -> Fleet:
    """Return the live instances from the store, or, while the store is unavailable, the last known ones."""
    try:
        return Fleet(live_instances(store.connection(settings.PUBLISH_TIMEOUT_SECONDS)))
    except STORE_ERRORS as exc:
        optional.note(optional.HEARTBEATS, exc)
        fleet = Fleet(Instance.objects.last_known())
        fleet.unknown = store.reason_of(exc)
        return fleet


def lost_instances(now: datetime, client: redis.Redis | None = None) -> list[Instance]:
    """
    Return the instances that sent no heartbeat for some time within the last day and have not said goodbye.

    An instance that stops in order removes itself from the set in the store.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    silent = Instance.objects.filter(seen_at__gt=now - LOST_SHOWN, seen_at__lte=now - HEARTBEAT_LIFETIME)
    if not silent:
        return []
    client = client or store.connection(settings.PUBLISH_TIMEOUT_SECONDS)
    known = set(_ids(client))
    gone = [instance for instance in silent.order_by("-seen_at") if instance.pk in known]
    # The rows are old, too, if the worker that saves heartbeats is late.
    ids = [instance.pk for instance in gone]
    alive = {instance.pk for some in batched(ids, READ_AT_ONCE) for instance in _read(client, some)}
    return [instance for instance in gone if instance.pk not in alive]


@optional.optional(optional.HEARTBEATS, lambda slug: [])
def refused(slug: str) -> list[tuple[str, str, list[Instance]]]:
    """
    Return name and reason of each limit of a policy that instances cannot enforce, with these instances.

    They are read from the saved rows, so that a page of a policy needs no store.

    Args:
        slug: That of the policy.
    """
    found: dict[tuple[str, str], list[Instance]] = {}
    for instance in Instance.objects.last_known():
        for row in instance.unsupported:
            policy, _, name = row["limit"].partition("/")
            if policy == slug:
                found.setdefault((name, row["reason"]), []).append(instance)
    return [(*limit, instances) for limit, instances in sorted(found.items())]


def is_live(instance: Instance, now: datetime) -> bool:
    """Return whether the last heartbeat of the instance is still valid."""
    return instance.seen_at > now - HEARTBEAT_LIFETIME


def acknowledged(revision: int, epoch: int, instances: Iterable[Instance]) -> tuple[int, int]:
    """Return the number of *instances* that run this published state or a later one, and the number of all."""
    instances = list(instances)
    return sum(instance.runs(revision, epoch) for instance in instances), len(instances)


def price_acknowledged(revision: int, instances: Iterable[Instance]) -> tuple[int, int]:
    """Return the number of *instances* that use the prices of *revision* or later ones, and of all that use prices."""
    using = [instance.price_revision for instance in instances if instance.price_revision is not None]
    return sum(used >= revision for used in using), len(using)


def collect(now: datetime, client: redis.Redis | None = None) -> int:
    """
    Save the present heartbeats, delete instances that were not seen for two days, and return the number of live ones.

    Two runs at the same time write the same rows. If the slower run writes an older heartbeat, the next run repairs it.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The rows do not change.
    """
    client = client or store.connection()
    present = store.time_of(client)
    # Whoever is seen in the future would count as alive until then.
    client.zremrangebyscore(store.keys().instances, f"({to_us(present + MOST_LATE)}", "+inf")
    live = live_instances(client)
    known = Instance.objects.in_bulk([instance.id for instance in live])
    for instance in live:
        outages.note(instance, known.get(instance.id))
    Instance.objects.bulk_create(
        live, batch_size=READ_AT_ONCE, update_conflicts=True, unique_fields=["id"], update_fields=FIELDS
    )
    note(live, now, client)
    client.zremrangebyscore(store.keys().instances, "-inf", to_us(now - KEPT))
    Instance.objects.filter(Q(seen_at__lt=now - KEPT) | Q(seen_at__gt=present + MOST_AHEAD)).delete()
    return len(live)


def _read(client: redis.Redis, ids: Iterable[str]) -> Iterator[Instance]:
    ids = list(ids)
    if not ids:
        return
    now = store.time_of(client)
    for instance_id, text in zip(ids, client.mget(map(store.keys().instance, ids)), strict=True):
        if text is None:
            continue  # the heartbeat has expired, and the set keeps ids for longer
        try:
            yield _parse(instance_id, loads(text), now)
        except (InvalidDocument, ValidationError) as exc:
            often.warning("heartbeat", "The heartbeat of %r is not valid: %s", instance_id[:128], exc)


def _parse(instance_id: str, fields: dict[str, Any], now: datetime) -> Instance:
    """
    Return a heartbeat as a new Instance that is not saved, or raise InvalidDocument. Unknown fields are ignored,
    because enforcers may be newer.

    Raises:
        InvalidDocument: It is the heartbeat of another instance, or an instant or a counter is not a number, or an
            instant is in a time that no instance can have seen.
        ValidationError: Another field has a value that the row cannot hold.
    """
    if fields.get("id") != instance_id:
        raise InvalidDocument(f"id: must be the instance's own, got {str(fields.get('id'))[:128]!r}")
    instance = Instance(
        id=instance_id,
        host=fields.get("host", ""),
        pid=fields.get("pid"),
        version=fields.get("version", ""),
        revision=fields.get("revision", 0),
        revision_at=_instant(fields, "revision_at_us", now + MOST_AHEAD),
        price_revision=fields.get("price_revision"),
        state=fields.get("state", ""),
        started_at=_instant(fields, "started_at_us", now + MOST_AHEAD),
        # So that a row ages by the store's clock alone.
        seen_at=min(_within("seen_at_us", fields.get("seen_at_us"), now + MOST_AHEAD), now),
        degraded_since=_instant(fields, "degraded_since_us", now + MOST_AHEAD),
        glass_until=_instant(fields, "glass_until_us", now + GLASS_AHEAD),
        in_code=fields.get("in_code") or "",
        store_id=fields.get("store_id") or "",
        decisions=_counters(fields.get("decisions", {})),
        problems=_problems(fields.get("problems", [])),
    )
    instance.clean_fields(exclude=_maybe_empty(instance))

    instance.overflowing = _limits(fields, "overflowing")
    instance.field_days = read_days(fields.get("field_days"))
    instance.unmetered = sorted({f"{policy}/{name}" for _, policy, name in _limits(fields, "unmetered")})
    unsupported = {(f"{policy}/{name}", reason) for _, policy, name, reason in _limits(fields, "unsupported", size=4)}
    instance.unsupported = [{"limit": limit, "reason": reason} for limit, reason in sorted(unsupported)]
    return instance


def _maybe_empty(instance: Instance) -> list[str]:
    # A heartbeat may leave these fields empty, although their columns have no blank=True.
    times = ("started_at", "degraded_since", "revision_at", "glass_until")
    reports = ("unmetered", "unsupported", "problems")
    optional = ("pid", "price_revision", *times, "decisions", "store_id", *reports)
    return [name for name in optional if getattr(instance, name) in (None, {}, [], "")]


def _instant(fields: dict[str, Any], name: str, latest: datetime) -> datetime | None:
    return None if fields.get(name) is None else _within(name, fields[name], latest)


def _within(name: str, value: Any, latest: datetime) -> datetime:
    """Return an instant of a heartbeat, or raise InvalidDocument unless it is one from EARLIEST to *latest*."""
    try:
        instant = from_us(value)
    except (TypeError, OverflowError) as exc:
        raise InvalidDocument(f"{name}: must be microseconds since the epoch") from exc
    if not EARLIEST <= instant <= latest:
        raise InvalidDocument(f"{name}: must be from {EARLIEST:%Y} to {latest:%Y-%m-%d %H:%M} UTC, got {value}")
    return instant


def _limits(fields: dict[str, Any], name: str, size: int = 3) -> list[tuple[str, ...]]:
    rows = fields.get(name, [])
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == size and all(isinstance(part, str) for part in row) for row in rows
    ):
        raise InvalidDocument(f"{name}: must be a list of limits")
    return [tuple(row) for row in rows]


def _problems(value: Any) -> list[str]:
    """Return the names of problems that this release knows. An enforcer may be newer."""
    if not isinstance(value, list):
        raise InvalidDocument("problems: must be a list of names")
    return [name for name in PROBLEMS if name in value]


def _counters(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        raise InvalidDocument("decisions: must be an object")
    counters = {name: value.get(name, 0) for name in COUNTERS}
    if not all(type(number) is int and number >= 0 for number in counters.values()):
        raise InvalidDocument("decisions: each number must be an integer of at least 0")
    return counters
