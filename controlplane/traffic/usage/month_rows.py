"""The sums of usage by month."""

from django.db import models

from controlplane.core.periods import COUNTS
from enforcement.metering.tally import MAX_MODEL_LENGTH


class MonthRow(models.Model):
    """
    The usage of one token under one limit in one month, which begins at midnight in the time zone of the project.

    The row has plain ids and no foreign keys, because it is kept after the objects are deleted.

    Attributes:
        correction: Of usage that arrived after the month was closed, the day on which it arrived, such as
            "2026-12-05". Empty otherwise. So what a statement said when it was closed never changes.
    """

    KEY = ("month", "project_id", "token_id", "policy_id", "limit_name", "unit", "correction")
    COUNTS = COUNTS

    month = models.DateField()
    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    policy_id = models.CharField(max_length=40, blank=True)
    limit_name = models.CharField(max_length=64, blank=True)
    unit = models.CharField(max_length=64)
    correction = models.CharField(max_length=10, blank=True)
    allowed = models.BigIntegerField(default=0)
    denied = models.BigIntegerField(default=0)
    would_deny = models.BigIntegerField(default=0)
    cost = models.BigIntegerField(default=0)

    class Meta:
        app_label = "statements"
        ordering = ["month", "id"]
        verbose_name = "statement"
        constraints = [
            models.UniqueConstraint(
                fields=["month", "project_id", "token_id", "policy_id", "limit_name", "unit", "correction"],
                name="statements_month_once_a_key",
            )
        ]
        indexes = [
            models.Index(fields=["project_id", "month"], name="statements_month_project"),
            models.Index(fields=["token_id", "month"], name="statements_month_token"),
            models.Index(fields=["policy_id", "month"], name="statements_month_policy"),
        ]

    def __str__(self) -> str:
        return f"{self.month:%Y-%m} {self.token_id or self.project_id}"


class MonthMetered(models.Model):
    """The metered requests of one token for one model in one month. See :class:`MonthRow`."""

    KEY = ("month", "project_id", "token_id", "model", "correction")
    COUNTS = ("requests", "input", "cached_input", "cache_write", "output", "micros", "calls")

    month = models.DateField()
    project_id = models.CharField(max_length=40)
    token_id = models.CharField(max_length=40, blank=True)
    model = models.CharField(max_length=MAX_MODEL_LENGTH, blank=True)
    correction = models.CharField(max_length=10, blank=True)
    requests = models.BigIntegerField(default=0)
    input = models.BigIntegerField(default=0)
    cached_input = models.BigIntegerField(default=0)
    cache_write = models.BigIntegerField(default=0)
    output = models.BigIntegerField(default=0)
    micros = models.BigIntegerField(default=0)
    calls = models.BigIntegerField(default=0)

    class Meta:
        app_label = "statements"
        ordering = ["month", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["month", "project_id", "token_id", "model", "correction"],
                name="statements_metered_once_a_key",
            )
        ]
        indexes = [
            models.Index(fields=["project_id", "month"], name="statements_metered_project"),
            models.Index(fields=["token_id", "month"], name="statements_metered_token"),
        ]

    def __str__(self) -> str:
        return f"{self.month:%Y-%m} {self.model or '(unknown model)'}"
