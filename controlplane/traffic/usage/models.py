from bisect import bisect_right
from dataclasses import astuple
from typing import Self

from django.db import models
from django.utils import timezone

from controlplane.core.periods import PERIODS
from controlplane.objects.prices.samples import EstimateSample as EstimateSample
from enforcement.metering.tally import MAX_MODEL_LENGTH
from enforcement.store_calls.checkpoints import Carried, StoredCheckpoint


class UsageBatch(models.Model):
    """An entry of the usage stream that is counted. Its unique id prevents that it is counted twice."""

    batch_id = models.CharField(max_length=200, unique=True)
    instance = models.CharField(max_length=128, blank=True)
    received_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        verbose_name_plural = "usage batches"

    def __str__(self) -> str:
        return self.batch_id


class UsageRow(models.Model):
    """
    The usage of one token under one limit in one period.

    The row has plain ids and no foreign keys, because it is kept after the objects are deleted.
    """

    KEY = ("period", "at", "project_id", "token_id", "policy_id", "limit_name", "unit")
    # The numbers of requests, and above them those of denials, at which activity has the next value.
    STEPS = tuple(4**step for step in range(12))

    period = models.CharField(max_length=6, choices=[(period, period) for period in PERIODS])
    at = models.DateTimeField()
    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    policy_id = models.CharField(max_length=40, blank=True)
    limit_name = models.CharField(max_length=64, blank=True)
    unit = models.CharField(max_length=64)
    allowed = models.BigIntegerField(default=0)
    denied = models.BigIntegerField(default=0)
    would_deny = models.BigIntegerField(default=0)
    cost = models.BigIntegerField(default=0)
    # Sorts the tokens of a minute, those with denials above all others. It is 0 in other rows, and is a rough number
    # because each change of it also changes the indexes. A drain of an earlier version does not write it.
    activity = models.SmallIntegerField(default=0, db_default=0, editable=False)

    class Meta:
        ordering = ["at", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["period", "at", "project_id", "token_id", "policy_id", "limit_name", "unit"],
                name="usage_row_once_a_key",
            )
        ]
        indexes = [
            models.Index(fields=["period", "at"]),
            models.Index(fields=["project_id", "period", "at"]),
            models.Index(fields=["token_id", "period", "at"]),
            # For those who are near a limit. No index has the counts as columns: each update would change it.
            models.Index(
                fields=["period", "at", "activity", "id"],
                name="usage_row_activity",
                condition=models.Q(policy_id="", limit_name=""),
            ),
            # Few rows have denials. Only an update that changes their number changes this one.
            models.Index(fields=["period", "at"], name="usage_row_denials", condition=models.Q(denied__gt=0)),
        ]

    def __str__(self) -> str:
        return f"{self.period} {self.at:%Y-%m-%d %H:%M} {self.token_id or self.project_id}"

    @classmethod
    def activity_of(cls, allowed: int, denied: int) -> int:
        """Return the activity of a token in a minute with these numbers of requests."""
        return len(cls.STEPS) + bisect_right(cls.STEPS, denied) if denied else bisect_right(cls.STEPS, allowed)

    @classmethod
    def activity_in_sql(cls, allowed: str, denied: str) -> str:
        """Return :meth:`activity_of` as an expression in SQL."""
        steps = [(number, step) for number, step in enumerate(cls.STEPS, 1)][::-1]
        few = " ".join(f"WHEN {allowed} >= {step} THEN {number}" for number, step in steps)
        more = " ".join(f"WHEN {denied} >= {step} THEN {len(cls.STEPS) + number}" for number, step in steps)
        return f"CASE WHEN {denied} > 0 THEN CASE {more} END ELSE CASE {few} ELSE 0 END END"


class MeteredRow(models.Model):
    """
    The metered requests of one token for one model in one period, by how they were settled.

    The fields are those of `enforcement.metering.tally`. The row has plain ids and no foreign keys, because it is kept
    after the objects are deleted.
    """

    KEY = ("period", "at", "project_id", "token_id", "model", "settled_as", "approximate", "price_revision")

    period = models.CharField(max_length=6, choices=[(period, period) for period in PERIODS])
    at = models.DateTimeField()
    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    model = models.CharField(max_length=MAX_MODEL_LENGTH, blank=True)
    settled_as = models.CharField(max_length=16)
    approximate = models.BooleanField(default=False)
    price_revision = models.BigIntegerField(default=0)
    requests = models.BigIntegerField(default=0)
    input = models.BigIntegerField(default=0)
    cached_input = models.BigIntegerField(default=0)
    cache_write = models.BigIntegerField(default=0)
    output = models.BigIntegerField(default=0)
    micros = models.BigIntegerField(default=0)
    estimated_input = models.BigIntegerField(default=0)
    calls = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        ordering = ["at", "id"]
        verbose_name = "metered usage"
        verbose_name_plural = "metered usage"
        constraints = [
            models.UniqueConstraint(
                fields=[
                    *("period", "at", "project_id", "token_id"),
                    *("model", "settled_as", "approximate", "price_revision"),
                ],
                name="usage_metered_once_a_key",
            )
        ]
        indexes = [
            models.Index(fields=["period", "at"], name="usage_metered_period"),
            models.Index(fields=["project_id", "period", "at"], name="usage_metered_project"),
            models.Index(fields=["model", "period", "at"], name="usage_metered_model"),
        ]

    def __str__(self) -> str:
        return f"{self.period} {self.at:%Y-%m-%d %H:%M} {self.model or '(unknown model)'}"


class DecisionCount(models.Model):
    """
    The decisions about the requests of one project in one period, by the limits of one policy or as a whole.

    It has for all tokens together what UsageRow has for each of them, so that pages with many projects and policies
    do not depend on the number of tokens. Without a policy, each request counts once. With one, each of its limits
    counts. There are no hours of policies. How long rows are kept is in ``rollup``.
    """

    KEY = ("period", "at", "policy_id", "project_id")

    period = models.CharField(max_length=6, choices=[(period, period) for period in PERIODS])
    at = models.DateTimeField()
    policy_id = models.CharField(max_length=40, blank=True)
    project_id = models.CharField(max_length=40)
    allowed = models.BigIntegerField(default=0)
    denied = models.BigIntegerField(default=0)
    would_deny = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["period", "at", "policy_id", "project_id"], name="usage_policy_once_a_key")
        ]
        indexes = [
            models.Index(fields=["policy_id", "period", "at"], name="usage_policy_period"),
            models.Index(
                fields=["period", "at", "project_id"], name="usage_project_period", condition=models.Q(policy_id="")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.period} {self.at:%Y-%m-%d %H:%M} {self.policy_id or self.project_id}"


class DeniedRequest(models.Model):
    """
    One denial from the samples of the enforcers. Most denials are in no sample, so rows must not be counted.

    The row has plain ids and no foreign keys, because it is kept after the objects are deleted.
    """

    decision = models.CharField(max_length=200, unique=True)
    at = models.DateTimeField(db_index=True)
    instance = models.CharField(max_length=128, blank=True)
    reason = models.CharField(max_length=32)
    project_id = models.CharField(max_length=40, blank=True)
    token_id = models.CharField(max_length=40, blank=True, db_index=True)
    policy_id = models.CharField(max_length=40, blank=True)
    limit_name = models.CharField(max_length=64, blank=True)
    attributes = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-at", "-id"]
        verbose_name = "sampled denial"
        # A key that is limited to projects reads only theirs, and a quiet project has few of millions of rows.
        indexes = [models.Index(fields=["project_id", "-at", "-id"], name="usage_denial_project")]

    def __str__(self) -> str:
        return self.decision


class Checkpoint(models.Model):
    """
    The value of a durable counter when it was last read.

    The fields are those of `store_calls.checkpoints.StoredCheckpoint`. The name of a counter is a digest, so
    only the documents of a policy show to whom it belongs.
    """

    VALUES = ("used", "ends_us", "last_us", "stamp", "carried", "kept_until_us")

    tag = models.CharField(max_length=40)  # a project's id, or "global"
    counter = models.CharField(max_length=40)
    used = models.BigIntegerField()
    ends_us = models.BigIntegerField(db_index=True)
    last_us = models.BigIntegerField()
    stamp = models.BigIntegerField()
    # Only of a counter with a rollover, carried has the fields of Carried as a list.
    carried = models.JSONField(null=True)
    kept_until_us = models.BigIntegerField(null=True, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tag", "counter"], name="usage_checkpoint_once_a_counter")]

    def __str__(self) -> str:
        return f"{self.counter} of {self.tag}"

    @classmethod
    def of(cls, tag: str, checkpoint: StoredCheckpoint) -> Self:
        """Return a new row, which is not saved, for a counter with this hash tag."""
        carried = None if checkpoint.carried is None else astuple(checkpoint.carried)
        values = {name: getattr(checkpoint, name) for name in cls.VALUES}
        return cls(tag=tag, counter=checkpoint.counter, **{**values, "carried": carried})

    def as_kept(self) -> StoredCheckpoint:
        """Return the row as a new ``StoredCheckpoint`` of the library."""
        carried = None if self.carried is None else Carried(*self.carried)
        return StoredCheckpoint(self.counter, self.used, self.ends_us, self.last_us, self.stamp, carried)


class CheckpointRun(models.Model):
    """The last complete run over all durable counters, in one row."""

    at = models.DateTimeField()
    counters = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.counters} counters at {self.at:%Y-%m-%d %H:%M:%S}"


class DailyReport(models.Model):
    day = models.DateField(unique=True)
    created_at = models.DateTimeField(default=timezone.now)
    csv = models.TextField()
    html = models.TextField()
    summary = models.JSONField(default=dict)

    class Meta:
        ordering = ["-day"]

    def __str__(self) -> str:
        return f"report of {self.day}"
