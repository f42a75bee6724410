import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.core.text import PRINTABLE
from enforcement.metering.amounts import FURTHER_NAMES, USES
from enforcement.metering.broken import BEYOND
from enforcement.metering.price_documents import MAX_ADDED_TOKENS, MAX_GROUP_LENGTH, parse_price, parse_prices
from enforcement.metering.tally import MAX_MODEL_LENGTH
from enforcement.model.documents import SCHEMA, InvalidDocument
from enforcement.model.metered import PARTS
from enforcement.model.sizes import MAX_PATTERN_LENGTH
from enforcement.model.strict_json import dumps

OPERATOR, CATALOGUE = "operator", "catalogue"
GROUP, TOOL = "group", "tool"
RATES = ("input", "output", "cached_input", "cache_write")
FURTHER = (*FURTHER_NAMES, *USES)
"""Classes and fees that few models have. They share a column."""
ADDED = "added_tokens"
CAP = "default_cap"
BOUNDS = (*PARTS, ADDED, CAP)
"""The most tokens of one part that is no text, by its kind, and of what the provider adds. They share a column."""

# How often an addend is raised at most. A program that breaks bounds on purpose raises it step by step.
RAISED_EACH = timedelta(minutes=10)
# The columns of fields that an entry of a document names in another way.
_COLUMNS = {"model": "pattern", "from": "valid_from", "until": "valid_until", **dict.fromkeys(FURTHER, "classes")}
_COLUMNS |= {"part_tokens": "bounds", ADDED: "bounds", CAP: "bounds"}
_NAMED = (*RATES, "calls", "multipliers", "tiers")


class ModelPriceQuerySet(models.QuerySet["ModelPrice"]):
    def as_document(self, revision: int) -> dict[str, Any] | None:
        """
        Return the document of these prices and all that was learned, which enforcers read, or None if there is neither.

        If nothing was learned it has no such field, because an enforcer that does not know the field refuses the
        document.
        """
        prices = document_of(self.order_by("pattern", "valid_from", "pk"), revision)
        ModelAddend.objects.add_to(prices or {})
        learned = LearnedEstimate.objects.as_document()
        if prices is not None and settings.REPORTED_COSTS:
            prices["reported_costs"] = list(settings.REPORTED_COSTS)
        return {**(prices or empty_document(revision)), "learned": learned} if learned else prices

    def check_document(self) -> None:
        """Raise ValidationError if enforcers would refuse all prices together, as there are too many."""
        try:
            parse_prices(dumps(self.as_document(1) or {"schema": SCHEMA, "revision": 1}))
        except InvalidDocument as exc:
            raise ValidationError(f"The prices cannot be published: {exc}.") from exc


class ModelPrice(RecordedModel):
    """
    The price of the tokens of some models, from a date on. The prices of operators come before those of the catalogue.

    All amounts are millionths of the currency for a million tokens, and ``calls`` for a million calls of the provider's
    tools. ``classes`` has those of :data:`FURTHER` that the models have, and ``multipliers`` are per mille. ``bounds``
    has those of :data:`BOUNDS` that are known, in tokens.
    """

    SOURCES = ((OPERATOR, "operator"), (CATALOGUE, "catalogue"))
    ONCE = "There is a price for this pattern and beginning already."

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "prc"), editable=False)
    source = models.CharField(max_length=10, choices=SOURCES, default=OPERATOR, editable=False)
    pattern = models.CharField(
        "model",
        max_length=MAX_PATTERN_LENGTH,
        validators=[PRINTABLE],
        help_text="The name of a model, in which * stands for any characters, also none.",
    )
    valid_from = models.DateTimeField(null=True, blank=True)
    valid_until = models.DateTimeField(null=True, blank=True)
    input = models.BigIntegerField()
    output = models.BigIntegerField()
    cached_input = models.BigIntegerField(null=True, blank=True)
    cache_write = models.BigIntegerField(null=True, blank=True)
    calls = models.BigIntegerField(null=True, blank=True)
    classes = models.JSONField(default=dict, blank=True)
    multipliers = models.JSONField(default=dict, blank=True)
    bounds = models.JSONField(default=dict, blank=True)
    tiers = models.JSONField(default=list, blank=True)
    changed_by = models.CharField(max_length=200, blank=True, editable=False)
    changed_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ModelPriceQuerySet.as_manager()

    class Meta:
        ordering = ["pattern", "valid_from", "id"]
        verbose_name = "price"
        constraints = [
            models.UniqueConstraint(
                fields=["source", "pattern", "valid_from"],
                name="prices_once_a_beginning",
                violation_error_message="There is a price for this pattern and beginning already.",
            ),
            models.UniqueConstraint(
                fields=["source", "pattern"],
                condition=models.Q(valid_from=None),
                name="prices_once_without_a_beginning",
                violation_error_message="There is a price for this pattern and beginning already.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pattern} from {self.valid_from:%Y-%m-%d}" if self.valid_from else self.pattern

    @property
    def is_operators(self) -> bool:
        """Whether an operator has set it, so that it may be edited."""
        return self.source == OPERATOR

    def as_entry(self) -> dict[str, Any]:
        """Return the price as an entry of the document that enforcers read, without empty fields."""
        dates = {"from": _text(self.valid_from), "until": _text(self.valid_until)}
        fields = {"model": self.pattern, **dates, **{name: getattr(self, name) for name in RATES}}
        fields |= {"calls": self.calls, **self.classes, "multipliers": self.multipliers or None, "tiers": self.tiers}
        parts = {name: tokens for name, tokens in self.bounds.items() if name in PARTS}
        fields |= {"part_tokens": parts or None, **{name: self.bounds.get(name) for name in (ADDED, CAP)}}
        return {name: value for name, value in fields.items() if value not in (None, [])}

    def clean(self) -> None:
        """Raise ValidationError if an enforcer would refuse the price. The rules are those of the library."""
        if type(self.classes) is not dict or not self.classes.keys() <= {*FURTHER}:
            raise ValidationError({"classes": f"Must be an object with some of {', '.join(FURTHER)}."})
        if type(self.multipliers) is not dict:
            raise ValidationError({"multipliers": "Must be an object."})
        if type(self.bounds) is not dict or not self.bounds.keys() <= {*BOUNDS}:
            raise ValidationError({"bounds": f"Must be an object with some of {', '.join(BOUNDS)}."})
        try:
            parse_price(self.as_entry())
        except InvalidDocument as exc:
            raise ValidationError({column_of(str(exc)): reason_of(str(exc))}) from exc
        others = ModelPrice.objects.filter(source=self.source, pattern=self.pattern, valid_from=self.valid_from)
        if others.exclude(pk=self.pk).exists():
            raise ValidationError({"pattern": ValidationError(self.ONCE, code="unique")})

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        return {"id": self.pk, "source": self.source, "currency": settings.CURRENCY, **self.as_entry()}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield one pair for the outbox entry that a change of this row needs. All prices are one document."""
        yield "prices", ""


class LearnedEstimateQuerySet(models.QuerySet["LearnedEstimate"]):
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """Return the numbers by name, as a new dictionary in the order of the names."""
        rows = self.order_by("name").values_list("name", "numbers")
        return {name: tuple(numbers) for name, numbers in rows}

    def as_document(self) -> dict[str, Any]:
        """Return what was learned as enforcers read it. Empty if nothing was."""
        groups = {name: list(numbers) for name, numbers in self.filter(kind=GROUP).by_name().items()}
        tools = {name: numbers[0] for name, numbers in self.filter(kind=TOOL).by_name().items()}
        return {name: found for name, found in (("groups", groups), ("tools", tools)) if found}


class LearnedEstimate(RecordedModel):
    """
    The learned input tokens of requests, for a group of models, or for one use of a tool of the provider.

    ``numbers`` are those of `enforcement.metering.typical.Numbers`, or the tokens of one use alone. ``requests`` and
    ``projects`` say on how many they rest, and ``error`` how far estimates were before from what was reported, per
    mille of that. What has no row has the shipped numbers.
    """

    KINDS = ((GROUP, "group of models"), (TOOL, "tool of a provider"))

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "est"), editable=False)
    kind = models.CharField(max_length=5, choices=KINDS)
    name = models.CharField(max_length=MAX_GROUP_LENGTH)
    numbers = models.JSONField()
    requests = models.BigIntegerField()
    projects = models.IntegerField()
    error = models.IntegerField(null=True, blank=True)
    changed_at = models.DateTimeField(default=timezone.now)

    objects = LearnedEstimateQuerySet.as_manager()

    class Meta:
        ordering = ["kind", "name"]
        verbose_name = "learned estimate"
        constraints = [models.UniqueConstraint(fields=["kind", "name"], name="prices_estimate_once_a_name")]

    def __str__(self) -> str:
        return self.name

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        names = ("id", "kind", "name", "numbers", "requests", "projects", "error")
        return {name: getattr(self, name) for name in names}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield one pair for the outbox entry that a change of this row needs. It is published with prices."""
        yield "prices", ""


class ModelAddendQuerySet(models.QuerySet["ModelAddend"]):
    def due(self, now: datetime) -> models.QuerySet["ModelAddend"]:
        """Return those that may be raised now, as more was reported. What an operator has set stays as it is."""
        pinned = ModelPrice.objects.filter(source=OPERATOR, bounds__has_key=ADDED).values("pattern")
        rested = models.Q(raised_at=None) | models.Q(raised_at__lte=now - RAISED_EACH)
        return self.filter(rested, reported__gt=models.F("tokens")).exclude(pattern__in=pinned)

    def raised(self, pattern: str) -> models.QuerySet["ModelAddend"]:
        """Return those that are published for the prices of a pattern: one or none."""
        return self.filter(pattern=pattern, tokens__gt=0)

    def add_to(self, document: dict[str, Any]) -> None:
        """Raise the addends of the prices in a document that enforcers read. What an operator has set stays."""
        raised = dict(self.filter(tokens__gt=0).values_list("pattern", "tokens"))
        for source, name in ((OPERATOR, "overrides"), (CATALOGUE, "prices")):
            for entry in document.get(name, ()) if raised else ():
                tokens = raised.get(entry["model"], 0)
                if tokens and (source == CATALOGUE or ADDED not in entry):
                    entry[ADDED] = max(entry.get(ADDED, 0), min(tokens, MAX_ADDED_TOKENS))
                    entry |= {"unbounded": True} if tokens > MAX_ADDED_TOKENS else {}


class ModelAddend(RecordedModel):
    """
    How many tokens a provider adds by itself to requests for some models, as it has reported.

    Attributes:
        tokens: What is published at least. One more than may be published if requests have no bound any more.
        reported: The most that was reported, at most that.
    """

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "add"), editable=False)
    pattern = models.CharField(max_length=MAX_PATTERN_LENGTH, unique=True)
    tokens = models.IntegerField(default=0)
    reported = models.IntegerField(default=0)
    raised_at = models.DateTimeField(null=True)

    objects = ModelAddendQuerySet.as_manager()

    class Meta:
        ordering = ["pattern"]
        verbose_name = "addend"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(tokens__gte=0, reported__gte=0, tokens__lte=BEYOND, reported__lte=BEYOND),
                name="prices_addend_in_bounds",
            )
        ]

    def __str__(self) -> str:
        return self.pattern

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        tokens = min(self.tokens, MAX_ADDED_TOKENS)
        return {"id": self.pk, "model": self.pattern, ADDED: tokens, "unbounded": self.tokens > MAX_ADDED_TOKENS}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield one pair for the outbox entry that a change of this row needs. Addends are published with prices."""
        yield "prices", ""


class BrokenRow(NamedTuple):
    """
    Requests that used more than a bound had reserved, see ``BROKEN_NAMES`` of the library.

    ``is_for_all`` says whether whoever has written it may change what holds for all projects.
    """

    at: datetime
    project_id: str
    model: str
    format: str
    pattern: str
    requests: int
    added: int
    is_for_all: bool


class BrokenBound(models.Model):
    """
    The requests of a project for a model that used more than a bound had reserved.

    ``added`` is the most tokens that the provider adds by itself, as they say, or 0 if only output or money was above.
    """

    KEY = ("project_id", "model", "format")

    project_id = models.CharField(max_length=40)
    model = models.CharField(max_length=MAX_MODEL_LENGTH, blank=True)
    format = models.CharField(max_length=32)
    requests = models.BigIntegerField(default=0)
    added = models.IntegerField(default=0)
    last_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project_id", "model", "format"], name="prices_broken_once_a_key")
        ]

    def __str__(self) -> str:
        return f"{self.model} ({self.format})"


def document_of(prices: Iterable[ModelPrice], revision: int) -> dict[str, Any] | None:
    """Return the document of some prices that enforcers read, or None if there are none."""
    entries: dict[str, list[dict[str, Any]]] = {OPERATOR: [], CATALOGUE: []}
    for price in prices:
        entries[price.source].append(price.as_entry())
    if not any(entries.values()):
        return None
    return {**empty_document(revision), "overrides": entries[OPERATOR], "prices": entries[CATALOGUE]}


def empty_document(revision: int) -> dict[str, Any]:
    """Return a document without prices, as a new dictionary."""
    return {"schema": SCHEMA, "revision": revision, "currency": settings.CURRENCY}


def column_of(message: str) -> str:
    """Return the column that an error of the library is about, from its message such as ``from: must be ...``."""
    name = re.split(r"[:.\[]", message, maxsplit=1)[0]
    return _COLUMNS.get(name, name if name in _NAMED else "__all__")


def reason_of(message: str) -> str:
    """Return the rule in an error of the library, as a sentence. Within tiers, it names the field."""
    name, _, rule = message.partition(": ")
    sentence = rule[:1].upper() + rule[1:] + ("" if rule.endswith(".") else ".")
    # A column of several names does not say which of them is meant.
    return f"{name}: {rule}." if name in (*FURTHER, ADDED, CAP) or name not in (*_COLUMNS, *_NAMED) else sentence


def _text(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None
