from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import models

from enforcement.model.documents import StateName, epoch_of
from enforcement.store_calls.health import InstanceReport
from enforcement.store_calls.instances import DEGRADED, HEARTBEAT_LIFETIME_MS, OK, STARTING

HEARTBEAT_LIFETIME = timedelta(milliseconds=HEARTBEAT_LIFETIME_MS)


class InstanceQuerySet(models.QuerySet["Instance"]):
    def running(self, now: datetime) -> "InstanceQuerySet":
        """Return a query of the instances whose last heartbeat is still valid."""
        return self.filter(seen_at__gt=now - HEARTBEAT_LIFETIME)

    def last_known(self) -> "InstanceQuerySet":
        """Return the instances that were running when the last heartbeat of all was saved."""
        last = self.aggregate(at=models.Max("seen_at"))["at"]
        return self.running(last) if last else self.none()


class Instance(models.Model):
    """
    An enforcer, as its last heartbeat described it.

    ``overflowing`` is not saved. It has the project id, the policy id and the name of each limit that recently had more
    values than the project's cap allows. ``unmetered`` has ``policy/limit`` for each limit that counts nothing, because
    the instance charges no cost in its unit. ``unsupported`` has a dictionary of ``limit`` and ``reason`` for each
    limit that the instance cannot enforce, so that it refuses requests under it. ``field_days``, not saved either, has
    what :class:`FieldCount` keeps, by day.
    """

    overflowing: Sequence[tuple[str, ...]] = ()
    field_days: Mapping[int, Mapping[str, Any]] = {}

    STATES = tuple((state, state) for state in (STARTING, OK, DEGRADED))

    id = models.CharField(primary_key=True, max_length=128)
    host = models.CharField(max_length=255, blank=True)
    pid = models.BigIntegerField(null=True)
    version = models.CharField(max_length=64, blank=True)
    revision = models.BigIntegerField(default=0)
    # When it got this revision, by the store's clock. None if its release does not report that.
    revision_at = models.DateTimeField(null=True)
    state = models.CharField(max_length=10, choices=STATES, default=STARTING)
    started_at = models.DateTimeField(null=True)
    seen_at = models.DateTimeField(db_index=True)
    degraded_since = models.DateTimeField(null=True)
    # The revision of the prices that it uses. None if it uses none, as it meters nothing.
    price_revision = models.BigIntegerField(null=True)
    # Until when it runs with every limit as a shadow. None: it enforces its limits.
    glass_until = models.DateTimeField(null=True)
    # The mode of its limits in code. Empty: they hold.
    in_code = models.CharField(
        max_length=8, choices=[("shadow", "shadow"), ("off", "off")], blank=True, default="", db_default=""
    )
    store_id = models.CharField(max_length=64, blank=True)
    decisions = models.JSONField(default=dict)
    unmetered = models.JSONField(default=list, db_default=[])
    unsupported = models.JSONField(default=list, db_default=[])
    problems = models.JSONField(default=list, db_default=[])

    objects = InstanceQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.id

    def report(self) -> InstanceReport:
        """Return what is judged of the health of this instance."""
        unsupported = {(row["limit"], row["reason"]) for row in self.unsupported}
        return InstanceReport(self.id, self.revision, self.state, self.problems, self.unmetered, unsupported)

    def runs(self, revision: int, epoch: int) -> bool:
        """
        Return whether it runs this published state or a later one. After a restore, an earlier epoch may have a higher
        revision.
        """
        own = epoch_of(self.store_id) if self.store_id else epoch  # not every release reports it
        return StateName(own, self.revision) >= StateName(epoch, revision)


class FieldCount(models.Model):
    """
    How many requests a process refused, or would have refused, on one day because of fields that a bound does not know.

    ``process`` is the id of an instance with the instant at which it started, as the next process may have the same id.
    ``day`` counts from the epoch. ``counts`` has lists of names with numbers by "refused" and "would_refuse".
    """

    process = models.CharField(max_length=160)
    day = models.IntegerField()
    counts = models.JSONField(default=dict)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["day", "process"], name="fleet_fields_once_a_day")]

    def __str__(self) -> str:
        return f"{self.process} on day {self.day}"
