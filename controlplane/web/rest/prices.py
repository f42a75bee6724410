"""The REST resources of prices, and of what was learned of estimates."""

from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.text import PRINTABLE
from controlplane.objects.prices.actions import OF_THE_CATALOGUE, delete_price, lock_prices, save_price
from controlplane.objects.prices.models import ADDED, BOUNDS, CAP, FURTHER, OPERATOR, LearnedEstimate, ModelPrice
from controlplane.web.restkit.fields import InstantField, PlainField, StringField
from controlplane.web.restkit.problems import Conflict
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery
from controlplane.web.restkit.views import Deleted, Listed, Retrieved, Updated
from controlplane.web.restkit.writes.conditions import check_precondition
from enforcement.metering.amounts import FURTHER_NAMES
from enforcement.metering.price_documents import (
    MAX_ADDED_TOKENS,
    MAX_CAP,
    MAX_GROUP_LENGTH,
    MAX_MULTIPLIER,
    MAX_MULTIPLIERS,
    MAX_RATE,
    MAX_TIERS,
)
from enforcement.model.metered import MAX_PART_TOKENS
from enforcement.model.sizes import MAX_NUMBER, MAX_PATTERN_LENGTH

PRICE_ID = "prc_[0-9a-z]{1,36}"
RATE = {"type": "integer", "minimum": 0, "maximum": MAX_RATE}
TIER = {
    "type": "object",
    "required": ["above_input", "input", "output"],
    "additionalProperties": False,
    "properties": {
        "above_input": {"type": "integer", "minimum": 1, "maximum": MAX_NUMBER},
        **dict.fromkeys(("input", "output"), RATE),
        **{name: {**RATE, "type": ["integer", "null"]} for name in ("cached_input", "cache_write")},
        **dict.fromkeys(FURTHER_NAMES, RATE),
    },
}
CLASSES = {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(FURTHER, RATE)}
MULTIPLIERS = {
    "type": "object",
    "maxProperties": MAX_MULTIPLIERS,
    "additionalProperties": {"type": "integer", "minimum": 0, "maximum": MAX_MULTIPLIER},
}

UNPRICED_CLASS = "As for input. Null: it costs what the dearest class of the input does."


@extend_schema_field({"type": "string", "pattern": "^[A-Z]{3}$"})
class CurrencyField(serializers.Field):
    """The currency of the installation. A client that names another one is refused, as nothing is converted."""

    def to_internal_value(self, data: Any) -> str:
        if data != settings.CURRENCY:
            message = f"Must be {settings.CURRENCY}, the currency of this installation."
            raise ValidationError([ErrorDetail(message, code="currency")])
        return settings.CURRENCY

    def get_attribute(self, instance: ModelPrice) -> str:
        return settings.CURRENCY

    def to_representation(self, value: str) -> str:
        return value


@extend_schema_field({"type": "array", "maxItems": MAX_TIERS, "items": TIER})
class TiersField(PlainField):
    """Prices for requests with more input, read and checked by the library."""


@extend_schema_field(CLASSES)
class ClassesField(serializers.JSONField):
    """Prices and fees that few models have, read and checked by the library."""


MOST = {ADDED: MAX_ADDED_TOKENS, CAP: MAX_CAP}
BOUND = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": int(name == CAP), "maximum": MOST.get(name, MAX_PART_TOKENS)}
        for name in BOUNDS
    },
}


@extend_schema_field(BOUND)
class BoundsField(serializers.JSONField):
    """Numbers of tokens for a bound, read and checked by the library."""


@extend_schema_field(MULTIPLIERS)
class MultipliersField(serializers.JSONField):
    """Multipliers by what an answer says, read and checked by the library."""


@example(model="gpt-5*", input=1_250_000, cached_input=125_000, output=10_000_000, valid_from="2027-01-01T00:00:00Z")
class PriceSerializer(CleanModelSerializer[ModelPrice]):
    model = StringField(
        source="pattern",
        max_length=MAX_PATTERN_LENGTH,
        validators=[PRINTABLE],
        help_text="The name of a model, in which * stands for any characters, also none.",
    )
    currency = CurrencyField(required=False, help_text="The currency of this installation.")
    valid_from = InstantField(allow_null=True, default=None, help_text="When it begins to hold. Null: it always did.")
    valid_until = InstantField(allow_null=True, default=None, help_text="When it no longer holds. Null: it has no end.")
    classes = ClassesField(
        default=dict,
        help_text="As for input, of sound, images and video, of what is cached for an hour, and for a million searches "
        "of files and containers. What is not there costs what the dearest class of its side does; images and video of "
        "the input cost as text.",
    )
    multipliers = MultipliersField(
        default=dict,
        help_text="How many times the rates are charged, per mille, by what the answer says, such as "
        "`service_tier=priority`.",
    )
    tiers = TiersField(
        default=list,
        help_text="Prices of the whole request where all of its input is above `above_input`, which must rise.",
    )
    bounds = BoundsField(
        default=dict,
        help_text="The most tokens of one part that is no text, by its kind, as the provider says, and the most that "
        "the provider adds to a request by itself, as `added_tokens`, for policies with the estimate `bound`. For all "
        "policies: the output tokens of a request without a cap, as `default_cap`.",
    )

    class Meta:
        model = ModelPrice
        fields = [
            *("id", "model", "source", "currency", "valid_from", "valid_until"),
            *("input", "output", "cached_input", "cache_write", "calls"),
            *("classes", "multipliers", "bounds", "tiers", "changed_by", "changed_at"),
        ]
        read_only_fields = ["source", "changed_by", "changed_at"]
        extra_kwargs = {
            "input": {"max_value": MAX_RATE, "help_text": "Millionths of the currency for a million tokens."},
            "output": {"max_value": MAX_RATE, "help_text": "As for input."},
            "cached_input": {"default": None, "help_text": UNPRICED_CLASS},
            "cache_write": {"default": None, "help_text": UNPRICED_CLASS},
            "calls": {"default": None, "help_text": "For a million calls of the provider's tools. Null: not known."},
        }

    def candidate(self, attrs: dict[str, Any]) -> ModelPrice:
        """Return the price with these values, in the place of that of an operator with the same model and beginning."""
        price = super().candidate({name: value for name, value in attrs.items() if name != "currency"})
        if self.instance is None:
            former = ModelPrice.objects.filter(
                source=OPERATOR, pattern=price.pattern, valid_from=price.valid_from
            ).first()
            if former is not None:
                price.pk, price._state.adding = former.pk, False
        return price


class PriceQuery(ListQuery):
    model = serializers.CharField(required=False, help_text="The name or the pattern, as it was written.")

    def get_fields(self) -> dict[str, serializers.Field]:
        source = serializers.ChoiceField(choices=[name for name, _ in ModelPrice.SOURCES], required=False)
        return {**super().get_fields(), "source": source}


class PriceView(Listed[ModelPrice], Retrieved[ModelPrice], Updated[ModelPrice], Deleted[ModelPrice]):
    """Prices of models. Those of operators come before those of the catalogue."""

    serializer_class = PriceSerializer
    lookup_field = "id"
    lookup_value_regex = PRICE_ID
    ordering = ("pattern", "id")
    queries = {"list": PriceQuery}
    scopes = {
        "list": "prices:read",
        "retrieve": "prices:read",
        "update": "prices:write",
        "partial_update": "prices:write",
        "destroy": "prices:write",
    }
    # A price holds for every project.
    of_all_projects = ("update", "partial_update", "destroy")

    def get_queryset(self) -> QuerySet[ModelPrice]:
        columns = {"model": "pattern", "source": "source"}
        chosen = {column: self.query[name] for name, column in columns.items() if name in self.query}
        return ModelPrice.objects.filter(**chosen)

    @extend_schema(responses={200: PriceSerializer, 201: PriceSerializer})
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            lock_prices()
            serializer = self.read_body()
            price = serializer.candidate(serializer.validated_data)
            former = ModelPrice.objects.filter(pk=price.pk).first()
            check_precondition(request, former)
            save_price(tx, price)
            written = self.as_written(price)
            if former is not None:
                return self.answer(written)
            return self.answer(written, status.HTTP_201_CREATED, {"Location": f"{request.path}/{price.pk}"})

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            delete_price(tx, self.for_writing())
        return Response(status=status.HTTP_204_NO_CONTENT)

    def for_writing(self) -> ModelPrice:
        lock_prices()
        return super().for_writing()

    def check_writable(self, obj: ModelPrice) -> None:
        if not obj.is_operators:
            raise Conflict(OF_THE_CATALOGUE, "price_of_the_catalogue")

    def save_changed(self, tx: OpenChange, serializer: Any, before: dict[str, Any]) -> None:
        save_price(tx, serializer.candidate(serializer.validated_data))


class LearnedEstimateSerializer(serializers.ModelSerializer):
    kind = serializers.ChoiceField(LearnedEstimate.KINDS, read_only=True)
    name = serializers.CharField(
        read_only=True, help_text="Vendor, family and format of models, such as openai/gpt-5, or the kind of tool."
    )
    numbers = serializers.ListField(
        child=serializers.IntegerField(),
        read_only=True,
        help_text="Of a group, in millionths of an input token: for a byte of text, an object, a tool, once if there "
        "are tools, and once. Of a tool, the input tokens of one use.",
    )
    requests = serializers.IntegerField(read_only=True, help_text="Requests from which it was learned.")
    projects = serializers.IntegerField(read_only=True, help_text="Projects of these requests.")
    error = serializers.IntegerField(
        read_only=True,
        allow_null=True,
        help_text="How far the estimates of these requests were from what was reported, per mille of that.",
    )
    changed_at = InstantField(read_only=True)

    class Meta:
        model = LearnedEstimate
        fields = ["kind", "name", "numbers", "requests", "projects", "error", "changed_at"]


class LearnedEstimateQuery(ListQuery):
    name = serializers.CharField(required=False, max_length=MAX_GROUP_LENGTH, help_text="The whole name.")


class LearnedEstimateView(Listed[LearnedEstimate]):
    """Learned estimates of the input tokens of requests. Models that are not listed have the numbers of the program."""

    serializer_class = LearnedEstimateSerializer
    ordering = ("name", "id")
    queries = {"list": LearnedEstimateQuery}
    scopes = {"list": "prices:read"}
    # They say which models the other projects ask for.
    of_all_projects = ("list",)

    def get_queryset(self) -> QuerySet[LearnedEstimate]:
        chosen = {name: self.query[name] for name in ("name",) if name in self.query}
        return LearnedEstimate.objects.filter(**chosen)
