"""The REST resource of statements, each of which is a file."""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from controlplane.core.optional import USAGE
from controlplane.core.zones import month_of
from controlplane.objects.projects.models import Project
from controlplane.traffic.reports import report
from controlplane.traffic.reports.days import days_of, lines_of
from controlplane.traffic.reports.models import MonthMetered, MonthRow
from controlplane.traffic.reports.report import Line, Scope
from controlplane.web.restkit.exports import Exported, ExportQuery
from controlplane.web.restkit.fields import LabelNameField, ReferenceField

GROUPS = ("token", "model", "label", "day")
COUNTS = tuple(dict.fromkeys((*MonthRow.COUNTS, *MonthMetered.COUNTS)))
COLUMNS = ("month", "time_zone", "kind", "name", "id", "unit", *COUNTS)
MONTH = r"^2[0-9]{3}-(0[1-9]|1[0-2])$"


class StatementQuery(ExportQuery):
    month = serializers.RegexField(
        MONTH, required=False, help_text="For example 2026-11. If left out, the present month."
    )
    project = ReferenceField("projects", required=False, help_text="Slug of the project. If left out, all.")
    token = ReferenceField("tokens", by="id", required=False, help_text="Id of a token, without project and policy.")
    policy = ReferenceField("policies", required=False, help_text="Slug of a policy, whose limits alone count then.")
    group = serializers.ChoiceField(GROUPS, default="token", help_text="What each line is the sum of.")

    def get_fields(self) -> dict[str, serializers.Field]:
        label = LabelNameField(required=False, help_text="The name of the label, for the group label.")
        return {**super().get_fields(), "label": label}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "token" in attrs and ("project" in attrs or "policy" in attrs):
            raise ValidationError({"token": [ErrorDetail("Must be given without project and policy.", code="rule")]})
        if (attrs["group"] == "label") != ("label" in attrs):
            message = "Must be given for the group label, and for no other."
            raise ValidationError({"label": [ErrorDetail(message, code="rule")]})
        return attrs


class StatementView(Exported[MonthRow]):
    """The usage of a month, by token, model, label or day, and then by limit and late arrival."""

    optional_source = USAGE
    file_name = "statement"
    queries = {"export": StatementQuery}
    scopes = {"export": "usage:read"}

    def get_queryset(self) -> QuerySet[MonthRow]:
        return MonthRow.objects.all()

    def columns(self) -> Sequence[str]:
        return COLUMNS

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the sum of everything, the lines of the group, those of limits, and those of late arrivals."""
        scope, group = self._scope(), self.query["group"]
        summary = report.summary(scope)
        parts = {
            "total": [summary.total],
            group: self._lines(scope, group),
            "limit": summary.limits,
            "correction": summary.corrections,
        }
        return (_record(scope, kind, line) for kind, lines in parts.items() for line in lines)

    def _lines(self, scope: Scope, group: str) -> list[Line]:
        match group:
            case "token":
                return report.by_token(scope)[0]
            case "label":
                return report.by_label(scope, self.query["label"])
            case "model":
                return report.by_model(scope)
        return lines_of(days_of(scope, timezone.now()))

    def _scope(self) -> Scope:
        query, token = self.query, self.query.get("token")
        project: Project | None = token.project if token else query.get("project")
        zone = project.time_zone if project else "UTC"
        month = date.fromisoformat(f"{query['month']}-01") if "month" in query else month_of(timezone.now(), zone)
        projects = (project.pk,) if project else tuple(self.access.projects().values_list("pk", flat=True))
        return Scope(month, projects, zone, token=token, policy=query.get("policy"))


def _record(scope: Scope, kind: str, line: Line) -> dict[str, Any]:
    of_limit = kind == "limit"
    place = {"month": f"{scope.month:%Y-%m}", "time_zone": scope.zone, "kind": kind, "name": line.name}
    names = {
        "id": None if of_limit or kind == "day" else line.detail or None,
        "unit": line.detail if of_limit else None,
    }
    # The limits of a policy may have different units, whose costs have no sum.
    unknown = {"cost": None} if scope.policy and not of_limit else {}
    return {**place, **names, **dict.fromkeys(COUNTS, 0), **unknown, **line.counts}
