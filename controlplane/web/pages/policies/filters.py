"""The filters of the list of policies."""

from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import DropdownFilter

from controlplane.core.optional import USAGE, read_by
from controlplane.objects.policies.models import Limit, Policy
from controlplane.web.pages.policies.columns import seen_counts

LATELY, MONTH = timedelta(minutes=5), timedelta(days=30)


class TrafficFilter(DropdownFilter):
    """A filter by what the limits of a policy have decided, in the projects that the user may see."""

    title = "traffic"
    parameter_name = "traffic"
    DENYING, QUIET, NEVER = "denying", "quiet", "never"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            (self.DENYING, "denying now (in the last 5 minutes)"),
            (self.QUIET, "never matched in 30 days"),
            (self.NEVER, "never matched (as long as usage is kept, which is two years)"),
        ]

    def queryset(self, request: HttpRequest, rows: QuerySet[Policy]) -> QuerySet[Policy]:
        if self.value():
            read_by(request).add(USAGE)
        now, counts = timezone.now(), seen_counts(request.user)
        if self.value() == self.DENYING:
            denials = counts.filter(period="minute", at__gt=now - LATELY, denied__gt=0)
            return rows.filter(pk__in=denials.values("policy_id"))
        days = counts.filter(policy_id=OuterRef("pk"), period="day")
        if self.value() == self.QUIET:
            return rows.exclude(Exists(days.filter(at__gt=now - MONTH)))
        if self.value() == self.NEVER:
            return rows.exclude(Exists(days))
        return rows.none() if self.value() else rows


class ManagedFilter(DropdownFilter):
    """A filter by who manages a row, files or people and programs."""

    title = "managed by"
    parameter_name = "managed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("files", "files"), ("hand", "the admin and REST")]

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        if self.value() == "files":
            return rows.exclude(managed_by="")
        if self.value() == "hand":
            return rows.filter(managed_by="")
        return rows.none() if self.value() else rows


class ModeFilter(DropdownFilter):
    """A filter that shows the policies of which a limit is in shadow, or of which one is enforced."""

    title = "mode of a limit"
    parameter_name = "mode"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("shadow", "in shadow"), ("enforce", "enforced")]

    def queryset(self, request: HttpRequest, rows: QuerySet[Policy]) -> QuerySet[Policy]:
        mode = self.value()
        return rows.filter(Exists(Limit.objects.filter(policy=OuterRef("pk"), mode=mode))) if mode else rows
