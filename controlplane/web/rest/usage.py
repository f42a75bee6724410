"""The REST resources of usage, sampled denials and the present counters."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.core.optional import COUNTERS, USAGE
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain import live_counters
from controlplane.operations.explain.emergencies import glass_at
from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from controlplane.web.restkit.authentication import LimitedKey
from controlplane.web.restkit.exports import Exported, ExportQuery
from controlplane.web.restkit.fields import (
    InstantField,
    LabelQueryField,
    LimitReferenceField,
    PastLimitField,
    ProjectField,
    ReasonField,
    UsageLimitField,
    with_labels,
)
from controlplane.web.restkit.problems import StoreUnavailable
from controlplane.web.restkit.ranges import PROJECT, RangePage, RangeQuery, page_of_range
from controlplane.web.restkit.serializers import ListQuery, QuerySerializer, StrictSerializer
from controlplane.web.restkit.views import ApiView, Listed
from controlplane.web.restkit.writes.later import Later
from controlplane.web.restkit.writes.queries import WriteQuery
from enforcement.model.limits import ALGORITHMS, MODES
from enforcement.store.client import STORE_ERRORS
from enforcement.store_calls.inspection import LiveCounter

# Parameters and the columns that must equal them.
TEXTS = {"token": "token_id", "unit": "unit"}


class UsageQuery(RangeQuery):
    project = ProjectField(help_text=PROJECT)
    token = serializers.CharField(required=False, max_length=40, help_text="Id of a token.")
    labels = LabelQueryField()
    limit = UsageLimitField(
        required=False,
        help_text='policy-slug/limit-name, or "*" for each limit. If left out, the totals of all decisions.',
    )
    unit = serializers.CharField(required=False, max_length=64, help_text="Totals have the unit requests only.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        if "limit" not in attrs and attrs.get("unit", "requests") != "requests":
            message = 'Must be "requests" for totals. For another unit, name a limit, or "*" for each limit.'
            raise ValidationError({"unit": [ErrorDetail(message, code="needs_limit")]})
        return attrs


class UsageSerializer(serializers.ModelSerializer):
    at = InstantField(read_only=True, help_text="Start of the minute, hour or day.")
    project = serializers.SerializerMethodField(help_text="Slug, or the id of a deleted project.")
    token = serializers.CharField(
        source="token_id", read_only=True, help_text="Id, or an empty string for requests without a token."
    )
    limit = serializers.SerializerMethodField(help_text="If null, all decisions about the token.")
    would_deny = serializers.IntegerField(
        read_only=True,
        help_text="Requests that a limit in shadow mode would have denied. Without a limit, only admitted requests, "
        "each counted once.",
    )

    class Meta:
        model = UsageRow
        fields = ["at", "project", "token", "limit", "unit", "allowed", "denied", "would_deny", "cost"]

    def get_project(self, row: UsageRow) -> str:
        return self.context["slugs"].get(row.project_id, row.project_id)

    def get_limit(self, row: UsageRow) -> str | None:
        policy = self.context["slugs"].get(row.policy_id, row.policy_id)
        return f"{policy}/{row.limit_name}" if row.limit_name else None


class UsageExportQuery(ExportQuery, UsageQuery):
    pass


class UsageView(Exported[UsageRow], Listed[UsageRow]):
    """Decisions and permits by minute, hour or day, oldest first."""

    optional_source = USAGE
    serializer_class = UsageSerializer
    pagination_class = RangePage
    ordering = ("at", "id")
    file_name = "usage"
    queries = {"list": UsageQuery, "export": UsageExportQuery}
    scopes = {"list": "usage:read", "export": "usage:read"}

    def get_queryset(self) -> QuerySet[UsageRow]:
        query = self.query
        rows = UsageRow.objects.filter(period=query["step"], at__gte=query["from"], at__lt=query["to"])
        rows = self.access.within(rows, "project_id")
        if "project" in query:
            rows = rows.filter(project_id=query["project"])
        rows = rows.filter(**{column: query[name] for name, column in TEXTS.items() if name in query})
        if "labels" in query:
            # The present labels, because a row has the id of its token only.
            rows = rows.filter(token_id__in=with_labels(self.access.tokens(), query).values("pk"))
        if "limit" not in query:
            return rows.filter(limit_name="")
        return rows.filter(**query["limit"]).exclude(limit_name="")

    def _page(self) -> Response:
        return page_of_range(self.query, _named_page(self))

    def as_records(self, rows: Sequence[UsageRow]) -> Any:
        return _named(self, rows)


class DenialQuery(ListQuery):
    project = ProjectField(help_text=PROJECT)
    token = serializers.CharField(required=False, max_length=40, help_text="Id of a token.")
    limit = PastLimitField(required=False, help_text="policy-slug/limit-name")
    reason = serializers.CharField(required=False, max_length=32, help_text="For example limited.")
    decision = serializers.CharField(required=False, max_length=200, help_text="Id of a decision.")
    since = InstantField(required=False)
    until = InstantField(required=False)


class DenialSerializer(serializers.ModelSerializer):
    decision = serializers.CharField(read_only=True, help_text="Id, as the header Sluicegate-Decision has it.")
    at = InstantField(read_only=True)
    project = serializers.SerializerMethodField(help_text="Slug, or the id of a deleted project. Null if unknown.")
    token = serializers.CharField(source="token_id", read_only=True, help_text="Id, or an empty string if unknown.")
    limit = serializers.SerializerMethodField(help_text="The limit that denied. Null if another rule did.")
    attributes = serializers.DictField(
        child=serializers.CharField(),
        read_only=True,
        help_text="What the limit is partitioned by. Long values are shortened.",
    )
    instance = serializers.SerializerMethodField(help_text="Id of the process. Null for a key limited to projects.")

    class Meta:
        model = DeniedRequest
        fields = ["decision", "at", "reason", "project", "token", "limit", "attributes", "instance"]

    def get_project(self, row: DeniedRequest) -> str | None:
        return self.context["slugs"].get(row.project_id, row.project_id) or None

    def get_limit(self, row: DeniedRequest) -> str | None:
        policy = self.context["slugs"].get(row.policy_id, row.policy_id)
        return f"{policy}/{row.limit_name}" if row.limit_name else None

    def get_instance(self, row: DeniedRequest) -> str | None:
        return row.instance if self.context["access"].all_projects else None


class DenialView(Listed[DeniedRequest]):
    """
    A sample of the denials of the last 8 days, newest first. Most denials are not in it, so do not count them.

    In each second, a process reports at most 20 denials, and one for each token, reason and limit. The usage counts
    every denial.
    """

    optional_source = USAGE
    serializer_class = DenialSerializer
    ordering = ("-at", "-id")
    queries = {"list": DenialQuery}
    scopes = {"list": "usage:read"}

    FILTERS = {"project": "project_id", "token": "token_id", "since": "at__gte", "until": "at__lt"}

    def get_queryset(self) -> QuerySet[DeniedRequest]:
        rows = self.access.within(DeniedRequest.objects.all(), "project_id").filter(**self.query.get("limit", {}))
        names = ("project", "token", "reason", "decision", "since", "until")
        return rows.filter(**{self.FILTERS.get(name, name): self.query[name] for name in names if name in self.query})

    def _page(self) -> Response:
        return _named_page(self)


class ValuesSerializer(serializers.Serializer):
    """The values by which a partitioned limit counts in one project."""

    present = serializers.IntegerField(help_text="Number of values with a counter of their own.")
    cap = serializers.IntegerField(help_text="Largest such number, which is the project's partition_cap.")
    beyond = serializers.IntegerField(
        help_text="Approximate number of other values within a day. They share a counter."
    )
    remaining = serializers.IntegerField(allow_null=True, help_text="Permits left in the shared counter, or null.")


class CounterSerializer(serializers.Serializer):
    """
    The counter of one limit. A partitioned limit has many counters, so its numbers are null, unless only labels of the
    token partition it.
    """

    limit = serializers.SerializerMethodField(help_text="policy-slug/limit-name")
    scope = serializers.ChoiceField(
        ["global", "project", "anonymous", "token"], help_text="Where its policy is attached."
    )
    algorithm = serializers.ChoiceField(ALGORITHMS)
    unit = serializers.CharField()
    mode = serializers.ChoiceField(MODES, help_text="The one in force, which is shadow while the glass is broken.")
    quota = serializers.IntegerField(help_text="With the override applied.")
    partition_by = serializers.ListField(child=serializers.CharField())
    used = serializers.IntegerField(allow_null=True, help_text="It may exceed the quota after an overdraft.")
    remaining = serializers.IntegerField(allow_null=True, help_text="The largest cost that would be allowed now.")
    reset_ms = serializers.IntegerField(
        allow_null=True, help_text="Time until the full quota is available. If null, it never is."
    )
    rollover = serializers.IntegerField(allow_null=True, help_text="Largest number of permits that are carried over.")
    override = serializers.CharField(allow_null=True, help_text="Id of the override that sets the quota.")
    unused_max = serializers.IntegerField(
        help_text="Largest number of permits that running instances may hold unused. 0 for a strict limit."
    )
    values = ValuesSerializer(allow_null=True, help_text="Only for a limit that attributes of requests partition.")
    labels = serializers.DictField(
        child=serializers.CharField(),
        help_text="The labels of the token that the limit looks at, such as label.team.",
    )

    def get_limit(self, counter: LiveCounter) -> str:
        return f"{counter.policy}/{counter.limit}"


class CountersSerializer(serializers.Serializer):
    results = CounterSerializer(many=True)


class HolderQuery(QuerySerializer):
    token = serializers.CharField(required=False, max_length=40, help_text="Id of a token.")
    project = serializers.CharField(required=False, max_length=63, help_text="Slug of a project, if no token is given.")

    def validate(self, attrs: dict[str, str]) -> dict[str, str]:
        if ("token" in attrs) == ("project" in attrs):
            message = "Exactly one of token and project must be given."
            raise ValidationError({"token": [ErrorDetail(message, code="one_of_two")]})
        return super().validate(attrs)


class ResetQuery(HolderQuery, WriteQuery):
    pass


class ResetSerializer(StrictSerializer):
    limit = LimitReferenceField(
        required=False,
        help_text="policy-slug/limit-name of the token's policy, else of the project's, else of its anonymous policy, "
        "else of the global policy. If left out, all limits of the policy of the token, or of both policies of the "
        "project.",
    )
    reason = ReasonField()


class ResetDoneSerializer(serializers.Serializer):
    reset = serializers.IntegerField(help_text="Number of deleted counters.")


class CounterView(ApiView):
    """The present counters of limits."""

    optional_source = COUNTERS
    serializer_class = CountersSerializer
    queries = {"retrieve": HolderQuery, "reset": ResetQuery}
    scopes = {"retrieve": "counters:read", "reset": "counters:reset"}
    conditional = False
    holder_in_query = True

    def as_problems(self) -> AbstractContextManager[None]:
        return _as_problems()

    def holder(self) -> Token | Project:
        holder: Token | Project | None
        if "token" in self.query:
            name, holder = "token", self.access.tokens().filter(pk=self.query["token"]).first()
        else:
            name, holder = "project", self.access.projects().filter(slug=self.query["project"]).first()
        if holder is None:
            raise NotFound(f"There is no {name} {self.query[name]!r}.")
        return holder

    @extend_schema(responses=CountersSerializer)
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        List every limit that applies to a token, or that the tokens or the anonymous requests of a project share.
        Nothing is charged.
        """
        with _as_problems():
            found = live_counters.counters_of(self.holder())
        if glass_at(timezone.now()):
            found = [replace(one, mode="shadow") for one in found]
        return Response(CountersSerializer({"results": found}).data)

    @extend_schema(request=ResetSerializer, responses=ResetDoneSerializer)
    def reset(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Reset counters to 0. Without a limit, the counters of partitioned limits stay."""
        body = ResetSerializer(data=request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        limit = body.validated_data.get("limit")
        with _as_problems(), self.change(body.validated_data["reason"]) as tx:
            holder = self.holder()
            if limit:
                self.check_resettable(limit, live_counters.HolderDocuments.of(holder, timezone.now()))
            done = live_counters.reset(tx, holder, limit)
        return Later(lambda: {"reset": done.count})

    def check_resettable(self, limit: Limit, subject: live_counters.HolderDocuments) -> None:
        """
        Raise an exception if the limit cannot be reset with this request.

        Raises:
            ValidationError: The limit does not apply to the holder, or its counters cannot be named.
            LimitedKey: The key is limited to projects, and all projects share the counter.
        """
        scope, has_one_counter = subject.scope_of(limit.policy_id), subject.has_one_counter(limit)
        if scope is None or has_one_counter is None:
            raise ValidationError({"limit": [ErrorDetail("Must apply to this token or project.", code="rule")]})
        if not has_one_counter:
            message = "Must not be partitioned, because its counters cannot be named. They end with their window."
            raise ValidationError({"limit": [ErrorDetail(message, code="partitioned")]})
        if scope == "global" and not self.access.all_projects:
            raise LimitedKey


@contextmanager
def _as_problems() -> Iterator[None]:
    """Raise an unavailable store, an unfinished reset or an unknown token in the block as an error of REST."""
    try:
        yield
    except STORE_ERRORS as exc:
        raise StoreUnavailable from exc
    except live_counters.ResetUnfinished as exc:
        raise StoreUnavailable(
            "The reset is recorded but not finished, because the store or the database became unavailable. Try again.",
            "reset_unfinished",
        ) from exc
    except live_counters.Forgotten as exc:
        raise NotFound("It is deleted, or expired long ago, and has no counters.") from exc


def _named_page(view: ApiView) -> Response:
    """Return a page of a list whose serializer needs the slugs of the projects and policies of its rows."""
    return view.get_paginated_response(_named(view, view.page()))


def _named(view: ApiView, rows: Sequence[UsageRow | DeniedRequest]) -> Any:
    """Return rows as a client reads them, with the slugs of their projects and policies."""
    context = {**view.get_serializer_context(), "slugs": _slugs(rows)}
    return view.serializer_class(rows, many=True, context=context).data


def _slugs(page: Sequence[UsageRow | DeniedRequest]) -> dict[str, str]:
    """Return the slugs of the projects and policies of a page as a dictionary by id, without the deleted ones."""
    projects = Project.objects.filter(pk__in={row.project_id for row in page})
    policies = Policy.objects.filter(pk__in={row.policy_id for row in page})
    return dict([*projects.values_list("pk", "slug"), *policies.values_list("pk", "slug")])
