"""The REST resources of metered usage: tokens and money by model or label, and how requests were settled."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.helpers import forced_singular_serializer
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.core.optional import USAGE
from controlplane.core.periods import PERIODS
from controlplane.objects.projects.models import Project
from controlplane.traffic.reports.usage_report import totals_by_label, totals_by_model
from controlplane.traffic.usage.models import MeteredRow
from controlplane.web.restkit.fields import InstantField, LabelNameField, LabelQueryField, ProjectField, with_labels
from controlplane.web.restkit.ranges import PROJECT, RangePage, RangeQuery, page_of_range
from controlplane.web.restkit.views import ApiView, Listed
from enforcement.metering.settlement import DRAINED, ESTIMATED, EXACT, NOTHING, OBSERVED
from enforcement.metering.tally import COUNT_NAMES, UNMETERED

MOST_MODELS = MOST_VALUES = 1_000
CALLS = "Calls of the provider's own tools, such as searches of the web, that it charges a fee for."
SETTLED_AS = (EXACT, DRAINED, OBSERVED, ESTIMATED, NOTHING, UNMETERED)
WORDS = f"{', '.join(SETTLED_AS[:-1])}, or {SETTLED_AS[-1]}."


class MeteredQuery(RangeQuery):
    labels = LabelQueryField()
    project = ProjectField(help_text=PROJECT)
    token = serializers.CharField(required=False, max_length=40, help_text="Id of a token.")
    model = serializers.CharField(required=False, max_length=128, help_text="The name that requests ask for.")
    settled_as = serializers.ChoiceField(SETTLED_AS, required=False, help_text="How the requests were settled.")


class TotalsQuery(MeteredQuery):
    def get_fields(self) -> dict[str, serializers.Field]:
        """Return the fields without those of pages, as all totals are in one answer."""
        return {name: field for name, field in super().get_fields().items() if name not in ("page_size", "cursor")}


class MeteredSerializer(serializers.ModelSerializer):
    at = InstantField(read_only=True, help_text="Start of the minute, hour or day.")
    project = serializers.SerializerMethodField(help_text="Slug, or the id of a deleted project.")
    token = serializers.CharField(source="token_id", read_only=True, help_text="Id, or empty for requests without one.")
    model = serializers.CharField(read_only=True, help_text="Empty if no meter could read the request.")
    settled_as = serializers.CharField(read_only=True, help_text=WORDS)
    approximate = serializers.BooleanField(
        read_only=True, help_text="Whether a class of usage was charged without a price of its own."
    )
    price_revision = serializers.IntegerField(read_only=True, help_text="Revision of the prices, 0 without any.")
    micros = serializers.IntegerField(read_only=True, help_text="Millionths of the currency.")
    estimated_input = serializers.IntegerField(read_only=True, help_text="What was estimated for all input tokens.")
    calls = serializers.IntegerField(read_only=True, help_text=CALLS)

    class Meta:
        model = MeteredRow
        fields = ["at", "project", "token", "model", "settled_as", "approximate", "price_revision", *COUNT_NAMES]

    def get_project(self, row: MeteredRow) -> str:
        return self.context["slugs"].get(row.project_id, row.project_id)


class MeteredRows(ApiView[MeteredRow]):
    """The base class of views of settled requests in a range of time."""

    optional_source = USAGE
    scopes = {"list": "usage:read"}
    FILTERS = {"project": "project_id", "token": "token_id", "model": "model", "settled_as": "settled_as"}

    def get_queryset(self) -> QuerySet[MeteredRow]:
        query = self.query
        rows = MeteredRow.objects.filter(period=query["step"], at__gte=query["from"], at__lt=query["to"])
        rows = self.access.within(rows, "project_id")
        if "labels" in query:
            # The present labels, because a row has the id of its token only.
            rows = rows.filter(token_id__in=with_labels(self.access.tokens(), query).values("pk"))
        return rows.filter(**{column: query[name] for name, column in self.FILTERS.items() if name in query})


class MeteredView(Listed[MeteredRow], MeteredRows):
    """Settled requests with their tokens and money by minute, hour or day, oldest first."""

    serializer_class = MeteredSerializer
    pagination_class = RangePage
    ordering = ("at", "id")
    queries = {"list": MeteredQuery}

    def _page(self) -> Response:
        page = self.page()
        projects = Project.objects.filter(pk__in={row.project_id for row in page})
        context = {**self.get_serializer_context(), "slugs": dict(projects.values_list("pk", "slug"))}
        response = self.get_paginated_response(MeteredSerializer(page, many=True, context=context).data)
        return page_of_range(self.query, response)


class SumsSerializer(serializers.Serializer):
    requests = serializers.IntegerField()
    input = serializers.IntegerField()
    cached_input = serializers.IntegerField()
    cache_write = serializers.IntegerField()
    output = serializers.IntegerField()
    micros = serializers.IntegerField(help_text="Millionths of the currency.")
    estimated_input = serializers.IntegerField()
    calls = serializers.IntegerField(help_text=CALLS)


class ModelUsageSerializer(SumsSerializer):
    model = serializers.CharField(help_text="Empty for requests that no meter could read.")
    approximate = serializers.IntegerField(help_text="Requests with a class of usage that has no price of its own.")
    settled_as = serializers.DictField(child=serializers.IntegerField(), help_text=f"Requests by: {WORDS}")


class TotalsSerializer(serializers.Serializer):
    """The range of time beside the totals in it."""

    step = serializers.ChoiceField(PERIODS)
    to = InstantField()

    def get_fields(self) -> dict[str, serializers.Field]:
        return {**super().get_fields(), "from": InstantField()}


class ModelUsageListSerializer(TotalsSerializer):
    results = ModelUsageSerializer(many=True)


class TotalsView(MeteredRows):
    """The base class of totals over the rows of a :class:`MeteredView`, all of which are in one answer."""

    queries = {"list": TotalsQuery}
    pagination_class = None


class ModelView(TotalsView):
    """The totals of each model in a range of time, the dearest first, at most 1,000 models."""

    serializer_class = ModelUsageListSerializer

    @extend_schema(responses=forced_singular_serializer(ModelUsageListSerializer))
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        lines = totals_by_model(self.get_queryset())[:MOST_MODELS]
        return page_of_range(self.query, Response({"results": ModelUsageSerializer(lines, many=True).data}))


class LabelUsageQuery(TotalsQuery):
    def get_fields(self) -> dict[str, serializers.Field]:
        return {**super().get_fields(), "label": LabelNameField(help_text="The name of a label, such as team.")}


class LabelUsageSerializer(SumsSerializer):
    value = serializers.CharField(
        allow_null=True,
        help_text="The value that the token has now. Null for tokens without the label, deleted tokens, and requests "
        "without a token.",
    )


class LabelUsageListSerializer(TotalsSerializer):
    results = LabelUsageSerializer(many=True)


class LabelUsageView(TotalsView):
    """The totals of each value of a label in a range of time, the dearest first, at most 1,000 values."""

    serializer_class = LabelUsageListSerializer
    queries = {"list": LabelUsageQuery}

    @extend_schema(responses=forced_singular_serializer(LabelUsageListSerializer))
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        lines = totals_by_label(self.get_queryset(), self.query["label"], MOST_VALUES)
        return page_of_range(self.query, Response({"results": LabelUsageSerializer(lines, many=True).data}))
