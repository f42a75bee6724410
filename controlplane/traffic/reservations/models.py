from datetime import datetime, timedelta
from typing import Any

from django.db import models
from django.utils import timezone

from controlplane.core.records import RecordedModel
from controlplane.objects.projects.models import isoformat
from enforcement.metering.tally import MAX_MODEL_LENGTH
from enforcement.model.instants import from_us
from enforcement.model.keys import GLOBAL_TAG
from enforcement.plan.records import MAX_LIFE_SECONDS
from enforcement.store_calls.reservations import OpenReservation

OPEN, LOST, SETTLING, SETTLED, RELEASED = STATES = ("open", "lost", "settling", "settled", "released")
UNSETTLED = (OPEN, LOST)
# The time in which a reservation can be settled. After it, the record is gone.
SETTLED_WITHIN = timedelta(seconds=MAX_LIFE_SECONDS)
# How long those that were settled stay in the list.
SETTLED_KEPT = timedelta(days=30)
MAX_ID_LENGTH = 64


class Reservation(RecordedModel):
    """
    A reservation that its process has lost, or that an operator has settled.

    All others are only in the store. The row has plain ids and no foreign keys, because it is kept after the objects
    are deleted.
    """

    id = models.CharField(primary_key=True, max_length=MAX_ID_LENGTH, editable=False)
    project_id = models.CharField(max_length=40, blank=True, db_index=True)
    token_id = models.CharField(max_length=40, blank=True, db_index=True)
    instance = models.CharField(max_length=128, blank=True)
    model = models.CharField(max_length=MAX_MODEL_LENGTH, blank=True)
    at = models.DateTimeField()
    expires_at = models.DateTimeField()
    # One {policy, limit, unit, permits} for each limit.
    amounts = models.JSONField(default=list)
    # The estimate of a metered request: {input, output, price_revision}.
    estimate = models.JSONField(default=dict)
    state = models.CharField(max_length=8, choices=[(state, state) for state in STATES], default=LOST)
    settled_as = models.CharField(max_length=16, blank=True)
    settled_at = models.DateTimeField(null=True, blank=True)
    settled_by = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    # The order of an operator: {costs, counts, changes}. Costs of null give everything back.
    order = models.JSONField(default=dict)

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["state", "-at", "-id"], name="reservations_state")]

    def __str__(self) -> str:
        return f"reservation {self.pk}"

    @classmethod
    def of(cls, found: OpenReservation) -> "Reservation":
        """Return a new row, which is not saved, for a reservation in the store."""
        about, tag = found.about, found.id.partition(".")[0]
        names = ("input", "output", "price_revision")
        return cls(
            id=found.id,
            # Accounts of the store that are limited to a project write what they like in its records.
            project_id=_text(about.get("project"), 40) if tag == GLOBAL_TAG else tag,
            token_id=_text(found.token, 40),
            instance=_text(found.instance, 128),
            model=_text(about.get("model"), MAX_MODEL_LENGTH),
            at=from_us(found.at_us),
            expires_at=from_us(found.expires_at_us),
            amounts=[
                {"policy": _text(it.policy, 63), "limit": _text(it.limit, 64), "unit": it.unit, "permits": it.permits}
                for it in found.amounts
            ],
            estimate={name: about[name] for name in names if type(about.get(name)) is int},
            state=LOST if found.lost else OPEN,
        )

    def as_record(self) -> dict[str, Any]:
        given = {"state": self.state, "settled_as": self.settled_as, "settled_by": self.settled_by}
        # Without the instance, whose name may hold that of a host, because members of the project read the record.
        whose = {"project": self.project_id, "token": self.token_id, "model": self.model}
        when = {"at": isoformat(self.at), "settled_at": isoformat(self.settled_at)}
        return {"id": self.pk, **whose, **when, "amounts": self.amounts, **given, "order": self.order}

    @property
    def may_settle(self) -> bool:
        return self.state in UNSETTLED

    @property
    def settled_until(self) -> datetime:
        return self.at + SETTLED_WITHIN


class ReservationCount(models.Model):
    """How many reservations a project had that were not settled, when the store was last asked."""

    project_id = models.CharField(primary_key=True, max_length=40)  # or "global"
    open = models.PositiveIntegerField(default=0)
    lost = models.PositiveIntegerField(default=0)
    lost_since = models.DateTimeField(null=True, blank=True)
    # The most that one token had, of both.
    of_token = models.PositiveIntegerField(db_default=0, default=0)
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.open} open, {self.lost} lost of {self.project_id}"


def _text(value: object, width: int) -> str:
    """Return a string that every database can store, from what an enforcer has written."""
    text = value if isinstance(value, str) else ""
    return "".join(char if char.isprintable() else "?" for char in text)[:width]
