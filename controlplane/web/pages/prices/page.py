from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.utils import timezone
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.money import amount, exact, rounded
from controlplane.core.optional import PRICES, optional
from controlplane.core.transactions import snapshot
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.prices import broken, estimates
from controlplane.objects.prices.actions import delete_price, forget_addend, lock_prices, save_price
from controlplane.objects.prices.models import (
    ADDED,
    BOUNDS,
    FURTHER,
    OPERATOR,
    LearnedEstimate,
    ModelAddend,
    ModelPrice,
)
from controlplane.objects.prices.seen import MOST_SHOWN, SeenModel, seen_lately, usage_table
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet import heartbeats
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.forms import RecordedForm
from controlplane.web.kit.parts import View
from controlplane.web.kit.site import badge, instant, list_url, long_name
from controlplane.web.kit.state import state_of
from controlplane.web.kit.times import zone_name
from controlplane.web.pages.prices.price_form import PriceForm, line_of
from controlplane.web.scope.rows import RowScope, Visitor
from enforcement.metering.price_documents import MAX_ADDED_TOKENS

BROKEN_LATELY = timedelta(days=1)


def _of_operators(rows: QuerySet[ModelPrice], user: Visitor, kind: str) -> QuerySet[ModelPrice]:
    """Return those of *rows* to which somebody has this access. Nobody changes the prices of the catalogue."""
    return rows if kind == "view" else rows.filter(source=OPERATOR)


@admin.register(ModelPrice)
class ModelPriceAdmin(EditPage):
    list_display = ["model_name", "origin", "input_rate", "cached_rate", "output_rate", "begins", "ends", "changed"]
    list_filter = [("source", ChoicesDropdownFilter)]
    search_fields = ["pattern"]
    readonly_fields = [
        *("origin", "changed", "input_rate", "output_rate", "cached_rate", "write_rate"),
        *("calls_rate", "other_classes", "multiplied", "most_tokens", "own_bounds", "long_requests"),
    ]
    form = PriceForm
    fieldsets = [
        (None, {"fields": ["pattern", ("valid_from", "valid_until")]}),
        (
            "Price of a million tokens",
            {
                "fields": [
                    *(("input", "output"), ("cached_input", "cache_write"), "calls"),
                    *("classes", "multipliers", "bounds", "tiers"),
                ]
            },
        ),
        ("Origin", {"fields": ["origin", "changed"]}),
    ]
    add_fieldsets = fieldsets[:2]
    # For a price that cannot be edited. Its columns hold millionths.
    rates = [
        *(("input_rate", "output_rate"), ("cached_rate", "write_rate"), "calls_rate"),
        *("other_classes", "multiplied", "most_tokens", "long_requests"),
    ]
    shown_fieldsets = [fieldsets[0], ("Price of a million tokens", {"fields": rates}), fieldsets[2]]
    # Without what was raised, perhaps by the requests of other projects.
    own_rates = ["own_bounds" if name == "most_tokens" else name for name in rates]
    members_fieldsets = [fieldsets[0], ("Price of a million tokens", {"fields": own_rates}), fieldsets[2]]
    list_before_template = "admin/sluicegate/models.html"
    # Members read the prices, and see which models their projects use.
    scope = RowScope(shared=True, limits=_of_operators)
    empty = ("A price says what a million tokens of a model cost. Limits of money need the price of each model.", "")

    @contextmanager
    def changing(self, request: HttpRequest, reason: str = "") -> Iterator[OpenChange]:
        with super().changing(request, reason) as tx:
            lock_prices()
            yield tx

    def get_fieldsets(self, request: HttpRequest, obj: ModelPrice | None = None) -> list[Any]:
        if obj is not None and not self.has_change_permission(request, obj):
            return self.shown_fieldsets if is_operator(request.user) else self.members_fieldsets
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else [part for part in fieldsets if part[0] != "Origin"]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **options)
        if db_field.name == "valid_from":
            field.help_text = (
                f"In {zone_name()}. If empty, the price has always held. What was charged before stays as it is."
            )
        if db_field.name == "valid_until":
            field.help_text = f"In {zone_name()}. If empty, it has no end."
        return field

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        with snapshot():
            whose = None if is_operator(request.user) else projects_of(request.user)
            seen = [] if request.method == "POST" else _seen_lately(timezone.now(), whose)
            above = optional(PRICES, lambda *_: [])(broken.lately)(timezone.now() - BROKEN_LATELY, whose)
            raised = ModelAddend.objects.filter(tokens__gt=0)
            # These say which models other projects ask for.
            if whose is not None:
                raised = raised.filter(pattern__in={one.price.pattern for one in seen if one.price})
            addends = list(raised[:MOST_SHOWN])
            learned = [_learned(row) for row in LearnedEstimate.objects.all()] if whose is None else []
        shown = {**_shown(seen), "broken": above, "addends": addends, "learned": learned}
        shown |= {"most_added": MAX_ADDED_TOKENS, "may_forget": self.has_change_permission(request)}
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    def forget_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        """Take back what bounds add because a provider has reported it."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        addend = get_object_or_404(ModelAddend, pk=pk)
        with self.changing(request, request.POST.get("reason", "")) as tx:
            if forget_addend(tx, addend):
                self.message_user(request, f"Bounds add no reported tokens to requests for {addend} any more.")
        return HttpResponseRedirect(list_url(ModelPrice))

    views = (View(path="addends/<str:pk>/forget/", name="forget", answer=forget_view, method="POST"),)

    @display(description="Model", ordering="pattern")
    def model_name(self, price: ModelPrice) -> str:
        return long_name(price.pattern)

    @display(description="From", ordering="source")
    def origin(self, price: ModelPrice) -> str:
        return badge("operator", "warn") if price.is_operators else "catalogue"

    @display(description="Input", ordering="input")
    def input_rate(self, price: ModelPrice) -> str:
        return rate(price.input)

    @display(description="Cached", ordering="cached_input")
    def cached_rate(self, price: ModelPrice) -> str:
        return rate(price.cached_input)

    @display(description="Cache write")
    def write_rate(self, price: ModelPrice) -> str:
        return rate(price.cache_write)

    @display(description="Calls of tools")
    def calls_rate(self, price: ModelPrice) -> str:
        return rate(price.calls)

    @display(description="Other classes")
    def other_classes(self, price: ModelPrice) -> str:
        return "; ".join(f"{name} {exact(price.classes[name])}" for name in FURTHER if name in price.classes) or "—"

    @display(description="Bounds")
    def most_tokens(self, price: ModelPrice) -> str:
        raised = [] if ADDED in price.bounds and price.is_operators else ModelAddend.objects.raised(price.pattern)
        return "; ".join([*_set(price), *[f"reported: {_reported(addend)}" for addend in raised]]) or "—"

    @display(description="Bounds")
    def own_bounds(self, price: ModelPrice) -> str:
        return "; ".join(_set(price)) or "—"

    @display(description="Multipliers")
    def multiplied(self, price: ModelPrice) -> str:
        return "; ".join(f"{name} {amount(times * 1_000)}" for name, times in sorted(price.multipliers.items())) or "—"

    @display(description="Long requests")
    def long_requests(self, price: ModelPrice) -> str:
        return "; ".join(line_of(tier) for tier in price.tiers) or "—"

    @display(description="Output", ordering="output")
    def output_rate(self, price: ModelPrice) -> str:
        return rate(price.output)

    @display(description="Begins", ordering="valid_from")
    def begins(self, price: ModelPrice) -> str:
        return instant(price.valid_from) if price.valid_from else "always"

    @display(description="Ends", ordering="valid_until")
    def ends(self, price: ModelPrice) -> str:
        return instant(price.valid_until) if price.valid_until else "—"

    @display(description="Changed", ordering="changed_at")
    def changed(self, price: ModelPrice) -> str:
        return instant(price.changed_at)

    def save_row(self, request: HttpRequest, obj: ModelPrice, form: RecordedForm) -> None:
        save_price(state_of(request).tx, obj)

    def record(self, tx: OpenChange, obj: ModelPrice, before: dict[str, Any] | None) -> None:
        """Do nothing, because save_price() has recorded the change."""

    def delete_model(self, request: HttpRequest, obj: ModelPrice) -> None:
        delete_price(state_of(request).tx, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ModelPrice]) -> None:
        for price in queryset:
            delete_price(state_of(request).tx, price)


def _set(price: ModelPrice) -> list[str]:
    # A column of PostgreSQL keeps no order.
    return [f"{name} {price.bounds[name]:,}" for name in BOUNDS if name in price.bounds]


def _reported(addend: ModelAddend) -> str:
    if addend.tokens > MAX_ADDED_TOKENS:
        return f"more than {MAX_ADDED_TOKENS:,}, so that bounds deny the requests"
    return f"{addend.tokens:,}"


def rate(micros: int | None) -> str:
    """Return the price of a million tokens with its currency, or a dash without one."""
    return "—" if micros is None else exact(micros)


def _shown(seen: list[SeenModel]) -> dict[str, Any]:
    """Return what the template above the list shows, as a new dictionary."""
    rows = [_row(model) for model in seen]
    without = [row for row in rows if row["is_unpriced"]]
    return {
        "counts_usage": usage_table() is not None,
        "without_price": without,
        "with_price": [row for row in rows if not row["is_unpriced"]],
        "unpriced_requests": sum(row["seen"].requests for row in without),
        "most_shown": MOST_SHOWN if len(rows) == MOST_SHOWN else 0,
        "total": rounded(sum(model.micros for model in seen)),
        "currency": settings.CURRENCY,
        "publication": _publication(),
    }


@optional(PRICES, lambda *_: [])
def _seen_lately(now: Any, projects: Any) -> list[SeenModel]:
    return seen_lately(now, projects=projects)


def _row(seen: SeenModel) -> dict[str, Any]:
    rates = seen.price.rates if seen.price else None
    return {
        "seen": seen,
        "is_unpriced": seen.price is None,
        "origin": "operator" if seen.is_operators else "catalogue",
        "pattern": seen.price.pattern if seen.price else "",
        "input": rate(rates.input) if rates else "—",
        "cached": rate(rates.cached_input) if rates else "—",
        "output": rate(rates.output) if rates else "—",
        "money": rounded(seen.micros) if rates or seen.micros else "unknown",
    }


def _learned(row: LearnedEstimate) -> dict[str, Any]:
    error = "—" if row.error is None else f"{row.error / 10:.1f} %"
    return {"row": row, "numbers": estimates.in_words(row.kind, row.numbers), "error": error}


def _publication() -> str:
    """Return a sentence that says which revision of the prices is published, and how many instances use it."""
    last = Revision.objects.filter(changes__prices=True).order_by("-number")
    revision = last.values_list("number", flat=True).first()
    if revision is None or not (ModelPrice.objects.exists() or LearnedEstimate.objects.exists()):
        return "No prices are published."
    fleet = heartbeats.fleet_now()
    if fleet.unknown:
        return f"Published as revision {revision}. {fleet.unknown}"
    done, using = heartbeats.price_acknowledged(revision, fleet)
    return f"Published as revision {revision}, in use on {done} of {using} instances that meter requests."
