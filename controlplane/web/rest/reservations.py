"""The REST resources of reservations and of metered usage."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

from django.core import signing
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.core.optional import COUNTERS
from controlplane.objects.projects.models import Project
from controlplane.traffic.reservations import actions, listing
from controlplane.traffic.reservations.models import (
    LOST,
    OPEN,
    RELEASED,
    SETTLED,
    SETTLED_KEPT,
    STATES,
    UNSETTLED,
    Reservation,
)
from controlplane.web.restkit.authentication import LimitedKey
from controlplane.web.restkit.fields import InstantField, ProjectField, ReasonField, StrictIntegerField
from controlplane.web.restkit.pagination import CursorPage, page_of
from controlplane.web.restkit.problems import Conflict, InvalidQuery, StoreUnavailable
from controlplane.web.restkit.ranges import PROJECT
from controlplane.web.restkit.serializers import ListQuery, StrictSerializer
from controlplane.web.restkit.views import Listed
from controlplane.web.restkit.writes.later import Later
from enforcement.metering.charges import Counts
from enforcement.model.sizes import MAX_NUMBER
from enforcement.store.client import STORE_ERRORS

ID = r"[A-Za-z0-9_-]{1,64}\.[0-9a-f]{32}"
MOST_SECONDS = int(SETTLED_KEPT.total_seconds())
COST = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}


class ReservationQuery(ListQuery):
    project = ProjectField(help_text=PROJECT)
    token = serializers.CharField(required=False, max_length=40, help_text="Id of a token.")
    state = serializers.ChoiceField(
        [OPEN, LOST, SETTLED, RELEASED],
        required=False,
        help_text="If left out, those that are open or lost. Settled and released ones are kept for 30 days, and only "
        "if they were lost or an operator has settled them.",
    )
    older_than = serializers.IntegerField(
        required=False, min_value=0, max_value=MOST_SECONDS, help_text="The least age, in seconds."
    )


class AmountSerializer(serializers.Serializer):
    limit = serializers.SerializerMethodField(help_text="policy-slug/limit-name")
    unit = serializers.CharField()
    permits = serializers.IntegerField()

    def get_limit(self, row: dict[str, Any]) -> str:
        return f"{row['policy']}/{row['limit']}"


class EstimateSerializer(serializers.Serializer):
    input = serializers.IntegerField(allow_null=True)
    output = serializers.IntegerField(allow_null=True)
    price_revision = serializers.IntegerField(allow_null=True, help_text="Null if no limit counts money.")


class ReservationSerializer(serializers.ModelSerializer):
    project = serializers.SerializerMethodField(help_text="Slug, or the id of a deleted project.")
    token = serializers.CharField(source="token_id", read_only=True, help_text="Id, or empty for requests without one.")
    model = serializers.CharField(read_only=True, help_text="Of a metered request, else empty.")
    state = serializers.ChoiceField(
        list(STATES), read_only=True, help_text="settling: settled, but its counters are not corrected yet."
    )
    amounts = AmountSerializer(many=True, read_only=True, help_text="What is charged to each limit.")
    estimate = serializers.SerializerMethodField(help_text="The tokens of a metered request, else null.")
    instance = serializers.SerializerMethodField(help_text="Id of the process. Null for a key limited to projects.")
    at = InstantField(read_only=True)
    expires_at = InstantField(read_only=True, help_text="When it is lost, or since when it is lost.")
    settled_until = InstantField(
        read_only=True,
        help_text="Until when it can be settled at most. A metered one that is lost is settled as its estimate "
        "after lost_after of its policy.",
    )
    settled_as = serializers.CharField(
        read_only=True,
        help_text="exact, nothing (given back), estimated (settled by nobody in time), or empty if its process has.",
    )
    settled_at = InstantField(read_only=True, allow_null=True)
    changes = serializers.SerializerMethodField(help_text="What the settlement has added to each limit.")

    class Meta:
        model = Reservation
        fields = [
            *("id", "project", "token", "model", "state", "amounts", "estimate", "instance", "at", "expires_at"),
            *("settled_until", "settled_as", "settled_at", "settled_by", "reason", "changes"),
        ]
        read_only_fields = ["id", "settled_by", "reason"]

    def get_project(self, row: Reservation) -> str:
        return self.context["slugs"].get(row.project_id, row.project_id)

    def get_instance(self, row: Reservation) -> str | None:
        return row.instance if self.context["access"].all_projects else None

    @extend_schema_field(EstimateSerializer(allow_null=True))
    def get_estimate(self, row: Reservation) -> dict[str, int | None] | None:
        names = ("input", "output", "price_revision")
        return {name: row.estimate.get(name) for name in names} if row.estimate else None

    @extend_schema_field(AmountSerializer(many=True))
    def get_changes(self, row: Reservation) -> list[dict[str, Any]]:
        return [AmountSerializer(change).data for change in row.order.get("changes", [])]


class UsageOfRequestSerializer(StrictSerializer):
    """
    The usage that the provider has reported. Each class counts other tokens, and ``calls`` those of the provider's
    tools.
    """

    input = StrictIntegerField(min_value=0, max_value=MAX_NUMBER)
    output = StrictIntegerField(min_value=0, max_value=MAX_NUMBER)
    cached_input = StrictIntegerField(min_value=0, max_value=MAX_NUMBER, default=0)
    cache_write = StrictIntegerField(min_value=0, max_value=MAX_NUMBER, default=0)
    calls = StrictIntegerField(min_value=0, max_value=MAX_NUMBER, default=0)


@extend_schema_field({"type": "object", "minProperties": 1, "additionalProperties": COST})
class CostsField(serializers.DictField):
    """Permits by unit."""


class SettleSerializer(StrictSerializer):
    costs = CostsField(
        child=StrictIntegerField(min_value=0, max_value=MAX_NUMBER),
        required=False,
        allow_empty=False,
        help_text="The real cost by unit. A unit that is left out keeps its estimate.",
    )
    usage = UsageOfRequestSerializer(required=False, help_text="In place of costs, for a metered request.")
    reason = ReasonField()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("costs" in attrs) == ("usage" in attrs):
            raise ValidationError([ErrorDetail("Exactly one of costs and usage must be given.", code="one_of_two")])
        return attrs


class ReleaseSerializer(StrictSerializer):
    reason = ReasonField()


class ReservationPage(CursorPage):
    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        page = super().get_paginated_response_schema(schema)
        page["properties"]["truncated"] = {"type": "boolean"}
        return {**page, "required": [*page["required"], "truncated"]}


class ReservationView(Listed[Reservation]):
    """
    Charges on an estimate. A process that runs settles its own.

    A reservation is lost if its process ended before it was settled. Its estimate stays charged. It can be settled by
    hand within 7 days, a metered one only until lost_after of its policy is over: then it is settled as its estimate.
    """

    optional_source = COUNTERS
    serializer_class = ReservationSerializer
    pagination_class = ReservationPage
    lookup_field = "pk"
    lookup_value_regex = ID
    ordering = ("-at", "-id")
    conditional = False
    queries = {"list": ReservationQuery}
    scopes = {
        "list": "reservations:read",
        "retrieve": "reservations:read",
        "settle": "reservations:settle",
        "release": "reservations:settle",
    }

    def as_problems(self) -> AbstractContextManager[None]:
        return as_problems()

    def get_queryset(self) -> QuerySet[Reservation]:
        query = self.query
        rows = self.access.within(Reservation.objects.filter(state=query["state"]), "project_id")
        names = {"project": "project_id", "token": "token_id"}
        rows = rows.filter(**{column: query[name] for name, column in names.items() if name in query})
        if "older_than" in query:
            rows = rows.filter(at__lte=timezone.now() - timedelta(seconds=query["older_than"]))
        return rows

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        if self.query.get("state") in (SETTLED, RELEASED):
            response = super().list(request)
            response.data["truncated"] = False
            return response
        with as_problems():
            return self._unsettled()

    def _page(self) -> Response:
        return self.get_paginated_response(self._data(self.page()))

    def _unsettled(self) -> Response:
        query, now = self.query, timezone.now()
        projects = None if self.access.all_projects else self.access.project_ids
        if "project" in query:
            projects = frozenset([query["project"]])
        found = listing.unsettled(
            listing.ReservationQuery(
                [query["state"]] if "state" in query else UNSETTLED,
                projects,
                query.get("token", ""),
                timedelta(seconds=query["older_than"]) if "older_than" in query else None,
            ),
            now,
        )
        rows = found.rows
        if "cursor" in query:
            edge = self._edge(query["cursor"])
            rows = [row for row in rows if (row.at.isoformat(), row.pk) > edge]
        page, more = rows[: query["page_size"]], len(rows) > query["page_size"]
        cursor = signing.dumps([page[-1].at.isoformat(), page[-1].pk], salt="cursor:unsettled") if more else None
        return page_of(self.request, self._data(page), cursor, truncated=found.truncated)

    def _edge(self, cursor: str) -> tuple[str, str]:
        try:
            at, pk = signing.loads(cursor, salt="cursor:unsettled")
        except signing.BadSignature as exc:
            message = "Must be a cursor of this list, taken from next of another page."
            raise InvalidQuery({"cursor": [ErrorDetail(message, code="invalid_cursor")]}) from exc
        return at, pk

    def _data(self, rows: Sequence[Reservation]) -> Any:
        projects = Project.objects.filter(pk__in={row.project_id for row in rows})
        context = {**self.get_serializer_context(), "slugs": dict(projects.values_list("pk", "slug"))}
        return ReservationSerializer(rows, many=True, context=context).data

    def found(self) -> Reservation:
        """Return the reservation in the address, or raise Unknown, also if the key may not see it."""
        row, _ = listing.read(self.kwargs["pk"])
        if not self.access.owns(row.project_id):
            raise listing.Unknown
        return row

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with as_problems():
            return Response(self._data([self.found()])[0])

    @extend_schema(request=SettleSerializer, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def settle(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Charge the real cost in place of the estimate, and free the slots.

        The status is 409 if the reservation was settled before, also by another operator at the same moment.
        """
        body = self._body(SettleSerializer)
        usage = body.get("usage")
        return self._settle(actions.SettlementOrder(body.get("costs"), Counts(**usage) if usage else None), body)

    @extend_schema(request=ReleaseSerializer, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Give back what the reservation has charged, and free the slots. The request of a metered reservation stays
        counted, because it was made. The status is as for settle.
        """
        return self._settle(actions.SettlementOrder(), self._body(ReleaseSerializer))

    def _body(self, kind: type[StrictSerializer]) -> dict[str, Any]:
        body = kind(data=self.request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        return body.validated_data

    def _settle(self, order: actions.SettlementOrder, body: dict[str, Any]) -> Response:
        with as_problems():
            self.found()
            with self.change(body["reason"]) as tx:
                row = actions.settle(tx, self.kwargs["pk"], order, charges_global=self.access.all_projects)
        return Later(lambda: self._data([row])[0])


@contextmanager
def as_problems() -> Iterator[None]:
    """Raise what can go wrong with a reservation in the block as an error of REST."""
    try:
        yield
    except STORE_ERRORS as exc:
        raise StoreUnavailable from exc
    except actions.SettlementUnfinished as exc:
        text = "The settlement is recorded. Its counters will be corrected as soon as the store is available."
        raise StoreUnavailable(text, "settlement_unfinished") from exc
    except listing.Unknown as exc:
        raise NotFound("There is no such reservation. It may have been settled.") from exc
    except listing.Unreadable as exc:
        raise Conflict("The store has recorded it in a form that this release cannot read.", "unreadable") from exc
    except actions.AlreadySettled as exc:
        raise Conflict("The reservation is settled already. Nothing was changed.", "already_settled") from exc
    except actions.AddsToGlobal as exc:
        raise LimitedKey("It would correct a global limit, which needs a key for all projects.") from exc
    except actions.InvalidOrder as exc:
        raise ValidationError({exc.field: [ErrorDetail(str(exc), code="rule")]}) from exc
