from collections.abc import Iterable
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connection, models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Project

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
ACTIVE = (WAITING, RUNNING)


class JobQuerySet(models.QuerySet["Job"]):
    def active(self) -> "JobQuerySet":
        """Return a query of the jobs that wait or run."""
        return self.filter(state__in=ACTIVE)

    def within(self, projects: models.QuerySet[Project]) -> "JobQuerySet":
        """Return a query of the jobs that concern no other project than these. A job may concern none."""
        foreign = Project.objects.exclude(pk__in=projects.order_by().values("pk"))
        return self.exclude(pk__in=Job.projects.through.objects.filter(project__in=foreign).values("job"))


class Job(RecordedModel):
    """
    Work that takes too long for a request. A worker does it in slices.

    Attributes:
        arguments: What the kind of job needs, set once.
        position: What the kind of job keeps from one slice to the next.
        done, total: The progress, in units that the kind chooses. A total of 0 means that it is not known yet.
        failures: How many slices have failed since the last one that did not.
        projects: The projects that the job concerns. Whoever may not see all of them may not see the job.
    """

    STATES = tuple((state, state) for state in (WAITING, RUNNING, DONE, FAILED, CANCELLED))

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "job"), editable=False)
    kind = models.CharField(max_length=40)
    title = models.CharField(max_length=300)
    state = models.CharField(max_length=10, choices=STATES, default=WAITING, db_index=True)
    arguments = models.JSONField(default=dict)
    position = models.JSONField(default=dict)
    done = models.PositiveIntegerField(default=0)
    total = models.PositiveIntegerField(default=0)
    failures = models.PositiveSmallIntegerField(default=0)
    result = models.JSONField(default=dict)
    error = models.CharField(max_length=500, blank=True)
    projects = models.ManyToManyField(Project, blank=True, related_name="+")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    key = models.ForeignKey(ManagementKey, models.SET_NULL, null=True, related_name="+")
    created_by = models.CharField(max_length=200)
    channel = models.CharField(max_length=10)
    request_id = models.CharField(max_length=128, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    touched_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return self.title

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def per_cent(self) -> int | None:
        """The progress from 0 to 100, or None while the total is not known."""
        return min(100, self.done * 100 // self.total) if self.total else None

    def as_record(self) -> dict[str, Any]:
        """Return what an audit entry keeps of this row."""
        return {"id": self.pk, "kind": self.kind, "state": self.state, "done": self.done, "total": self.total}

    def part(self, number: int) -> list[Any]:
        """Return the ids in part *number* of the rows that the job was given, or an empty list after the last part."""
        found = self.parts.filter(number=number).values_list("ids", flat=True).first()
        return found or []


class JobPart(models.Model):
    """
    Some of the rows that a job was given when somebody confirmed it. One slice treats whole parts.

    Attributes:
        ids: Their ids, or for rows that the job creates the items of the request. They are kept until the job ends.
    """

    job = models.ForeignKey(Job, models.CASCADE, related_name="parts")
    number = models.PositiveIntegerField()
    ids = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "number"], name="jobs_part_once")]

    def __str__(self) -> str:
        return f"part {self.number} of {self.job_id}"

    @classmethod
    def take(cls, job: Job, rows: models.QuerySet[Any]) -> None:
        """Save the ids of *rows* as one part of a job, on PostgreSQL without sending one of them."""
        keys = rows.order_by().values_list("pk", flat=True)
        if connection.vendor != "postgresql":
            cls.objects.create(job=job, number=0, ids=list(keys))
            return
        sql, parameters = keys.query.sql_with_params()
        table = cls._meta.db_table
        ids = "to_jsonb(COALESCE(array_agg(taken.pk), ARRAY[]::text[]))"
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table} (job_id, number, ids) SELECT %s, 0, {ids} FROM ({sql}) AS taken (pk)",
                [job.pk, *parameters],
            )

    @classmethod
    def cut(cls, job: Job, ids: Iterable[Any], size: int) -> "list[Any]":
        """Return the parts of a job, unsaved, with *size* of the *ids* each."""
        ids = list(ids)
        starts = range(0, len(ids), size)
        return [cls(job=job, number=number, ids=ids[at : at + size]) for number, at in enumerate(starts)]
