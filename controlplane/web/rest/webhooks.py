"""The REST resources of webhooks, and of what was sent to them."""

import json
from typing import Any

from django.core.exceptions import ValidationError as InvalidModel
from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.operations.webhooks import actions
from controlplane.operations.webhooks.models import MOST_EMAILS, Delivery, Destination
from controlplane.operations.webhooks.targets import MAX_URL_LENGTH
from controlplane.web.restkit.fields import InstantField, PlainField, ReferenceField, StringField
from controlplane.web.restkit.problems import model_errors
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery, NoBody, OwnProject
from controlplane.web.restkit.views import Listed, Resource, Retrieved
from controlplane.web.restkit.writes.conditions import etag

WEBHOOK_ID = "whk_[0-9a-z]{1,36}"
DELIVERY_ID = "dlv_[0-9a-z]{1,36}"
OF_THE_INSTALLATION = "Slug of the project. Null: it is of the installation, for keys of all projects."

KINDS = [name for name, _ in Destination.KINDS]


@extend_schema_field({"type": "array", "maxItems": MOST_EMAILS, "items": {"type": "string", "format": "email"}})
class EmailsField(PlainField):
    """E-mail addresses. The model knows the rules."""


@example(name="ops", project="chat", url="https://alerts.example/hook")
class WebhookSerializer(OwnProject, CleanModelSerializer[Destination]):
    project = ReferenceField("projects", allow_null=True, help_text=OF_THE_INSTALLATION)

    kind = serializers.ChoiceField(KINDS, default=Destination.WEBHOOK)
    emails = EmailsField(default=list, help_text="Of `email`: the addresses.")
    service = serializers.CharField(read_only=True, help_text="Of `chat`: the service, such as slack.")
    service_url = StringField(
        required=False,
        write_only=True,
        max_length=MAX_URL_LENGTH,
        help_text="Of `chat`: the URL of the service, as apprise has it. It is kept encrypted and never shown.",
    )

    class Meta:
        model = Destination
        fields = [
            *("id", "name", "project", "kind", "url", "emails", "service", "service_url", "active"),
            *("rotated_at", "created_at"),
        ]
        read_only_fields = ["rotated_at", "created_at"]
        extra_kwargs = {"url": {"default": "", "allow_blank": True, "help_text": "Of `webhook`: its URL."}}

    def candidate(self, attrs: dict[str, Any]) -> Destination:
        """Return the row with these values. Those that its kind does not have are dropped."""
        destination = super().candidate({name: value for name, value in attrs.items() if name != "service_url"})
        if "service_url" in attrs:
            destination.set_service(attrs["service_url"])
        return destination

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        try:
            row = self.candidate(attrs)
            row.full_clean()
        except InvalidModel as exc:
            raise ValidationError(model_errors(exc)) from None
        sealed = {name: getattr(row, name) for name in ("url", "emails", "service", "sealed")}
        return {name: value for name, value in attrs.items() if name != "service_url"} | sealed


class MadeWebhookSerializer(WebhookSerializer):
    secret = serializers.CharField(
        read_only=True, allow_null=True, help_text="Of `webhook`, shown in this response only. Null for other kinds."
    )

    class Meta(WebhookSerializer.Meta):
        fields = [*WebhookSerializer.Meta.fields, "secret"]


class AttemptSerializer(serializers.Serializer):
    at = serializers.DateTimeField(read_only=True)
    ok = serializers.BooleanField(read_only=True)
    result = serializers.CharField(read_only=True, help_text="What happened, as a sentence.")
    ms = serializers.IntegerField(read_only=True, help_text="How long it took.")


@extend_schema_field({"type": "object"})
class BodyField(serializers.Field):
    """The message itself, as it was sent."""

    def to_representation(self, value: str) -> Any:
        return json.loads(value)


class DeliverySerializer(serializers.ModelSerializer):
    webhook = serializers.CharField(source="destination_id", read_only=True, help_text="Id of the webhook.")
    message = serializers.CharField(
        source="message_id", read_only=True, help_text="What a receiver gets as webhook-id."
    )
    type = serializers.CharField(source="kind", read_only=True)
    state = serializers.ChoiceField([name for name, _ in Delivery.STATES], read_only=True)
    log = AttemptSerializer(many=True, read_only=True, help_text="The last attempts.")
    body = BodyField(read_only=True)
    created_at = InstantField(read_only=True)
    delivered_at = InstantField(read_only=True, allow_null=True)
    next_at = serializers.SerializerMethodField(help_text="When the next attempt is due. Null: there is none.")

    class Meta:
        model = Delivery
        fields = [
            *("id", "webhook", "message", "type", "state", "attempts", "next_at", "created_at", "delivered_at"),
            *("log", "body"),
        ]

    @extend_schema_field({"type": ["string", "null"], "format": "date-time"})
    def get_next_at(self, row: Delivery) -> str | None:
        return InstantField().to_representation(row.next_at) if row.state == "pending" else None


class WebhookQuery(ListQuery):
    project = ReferenceField("projects", required=False, help_text="Slug of the project.")


class WebhookView(Resource[Destination]):
    """Where alerts are sent: a URL, e-mail addresses, a chat. Only the response to the creation has the secret."""

    serializer_class = WebhookSerializer
    lookup_field = "id"
    lookup_value_regex = WEBHOOK_ID
    ordering = ("-id",)
    queries = {"list": WebhookQuery}
    scopes = {
        **dict.fromkeys(("list", "retrieve"), "webhooks:read"),
        **dict.fromkeys(("create", "partial_update", "destroy", "rotate", "test"), "webhooks:write"),
    }

    def get_queryset(self) -> QuerySet[Destination]:
        rows = self.access.within(Destination.objects.all(), "project").select_related("project")
        return rows.filter(project=self.query["project"]) if "project" in self.query else rows.all()

    @extend_schema(responses={201: MadeWebhookSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            made = self.as_written(self.save_new(tx, self.read_body()))
            return self._with_secret(made, status.HTTP_201_CREATED, {"Location": self.location(made)})

    @extend_schema(request=None, responses={200: MadeWebhookSerializer})
    @action(methods=["post"], detail=True)
    def rotate(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Give the webhook another secret. For 24 hours, messages have a signature of each of them."""
        NoBody(data=request.data).is_valid(raise_exception=True)
        with self.change() as tx:
            row = self.for_writing()
            actions.rotate(tx, row)
            return self._with_secret(self.as_written(row))

    @extend_schema(request=None, responses={201: DeliverySerializer})
    @action(methods=["post"], detail=True)
    def test(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Send a test message within seconds, and return its delivery. `Location` has its address."""
        NoBody(data=request.data).is_valid(raise_exception=True)
        with self.change() as tx:
            delivery = actions.test(tx, self.for_writing())
            at = reverse("delivery-detail", args=[delivery.pk])
            data = DeliverySerializer(delivery, context=self.get_serializer_context()).data
            return Response(data, status.HTTP_201_CREATED, headers={"Location": at})

    def _with_secret(self, row: Destination, code: int = status.HTTP_200_OK, more: Any = None) -> Response:
        secret = actions.secret(row) if row.kind == Destination.WEBHOOK else None
        data = {**self.get_serializer(row).data, "secret": secret}
        return Response(data, code, headers={"ETag": etag(row), **(more or {})})


class DeliveryQuery(ListQuery):
    webhook = serializers.CharField(required=False, max_length=40, help_text="Id of the webhook.")
    message = serializers.CharField(required=False, max_length=40, help_text="Id of the message, or of the event.")
    state = serializers.ChoiceField([name for name, _ in Delivery.STATES], required=False)


class DeliveryView(Listed[Delivery], Retrieved[Delivery]):
    """Messages to webhooks, each with its attempts."""

    serializer_class = DeliverySerializer
    lookup_field = "id"
    lookup_value_regex = DELIVERY_ID
    ordering = ("-id",)
    conditional = False
    queries = {"list": DeliveryQuery}
    scopes = {"list": "webhooks:read", "retrieve": "webhooks:read", "replay": "webhooks:write"}
    FILTERS = {"webhook": "destination", "message": "message_id", "state": "state"}

    def get_queryset(self) -> QuerySet[Delivery]:
        chosen = {column: self.query[name] for name, column in self.FILTERS.items() if name in self.query}
        rows = self.access.within(Delivery.objects.all(), "destination__project")
        return rows.filter(**chosen).select_related("destination")

    @extend_schema(request=None)
    @action(methods=["post"], detail=True)
    def replay(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Send the message again, with the same id and body."""
        NoBody(data=request.data).is_valid(raise_exception=True)
        with self.change() as tx:
            return self.answer(actions.replay(tx, self.get_object()))
