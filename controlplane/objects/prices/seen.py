"""The models that requests asked for lately, with their prices, and those that have none."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.apps import apps
from django.db import models
from django.db.models import Max, Q, Sum

from controlplane.objects.prices.models import ModelPrice, document_of
from enforcement.metering.price_documents import parse_prices
from enforcement.metering.prices import NO_PRICES, Price, Prices
from enforcement.model.documents import InvalidDocument
from enforcement.model.instants import to_us
from enforcement.model.strict_json import dumps

LATELY = timedelta(days=30)
MOST_SHOWN = 500


@dataclass(frozen=True, slots=True)
class SeenModel:
    """
    The recent requests for one model.

    Attributes:
        last_at: The day of the last request.
        micros: What was charged for it, in millionths of the currency.
        price: Its present price, or None if it has none.
        is_operators: Whether that is an operator's price.
    """

    model: str
    requests: int
    input: int
    output: int
    micros: int
    last_at: datetime
    price: Price | None
    is_operators: bool


def seen_lately(
    now: datetime, among: Iterable[ModelPrice] | None = None, projects: models.QuerySet | None = None
) -> list[SeenModel]:
    """
    Return the models that requests asked for in 30 days, those without a price first, then by what they cost.

    At most 500 of them are returned. The list is empty in an installation that does not count metered requests.

    Args:
        among: The prices. None: all that are saved.
        projects: The query of the projects whose requests count. None: all.
    """
    rows = _rows(now, projects)
    if rows is None:
        return []
    prices, at_us = read_prices(ModelPrice.objects.all() if among is None else among), to_us(now)
    found = [SeenModel(*row, price := prices.find(row[0], at_us), price in prices.overrides) for row in rows]
    return sorted(found, key=lambda seen: (seen.price is not None, -seen.micros, -seen.requests, seen.model))


def unpriced(now: datetime, among: Iterable[ModelPrice] | None = None) -> list[SeenModel]:
    """Return the models that requests asked for in 30 days and that have no price now *among* these."""
    return [seen for seen in seen_lately(now, among) if seen.price is None]


def read_prices(prices: Iterable[ModelPrice]) -> Prices:
    """Return prices as enforcers read them, or none if enforcers would refuse them."""
    document = document_of(prices, 1)
    try:
        return parse_prices(dumps(document)) if document else NO_PRICES
    except InvalidDocument:  # another program has written to the table
        return NO_PRICES


def _rows(now: datetime, projects: models.QuerySet | None) -> Iterable[tuple[str, int, int, int, int, datetime]] | None:
    table = usage_table()
    if table is None:
        return None
    lately = table._default_manager.filter(Q(period="day", at__gt=now - LATELY) & ~Q(model=""))
    if projects is not None:
        lately = lately.filter(project_id__in=projects.values("pk"))
    read = Sum(models.F("input") + models.F("cached_input") + models.F("cache_write"))
    sums = {"asked": Sum("requests"), "read": read, "answered": Sum("output"), "money": Sum("micros")}
    rows = lately.values("model").annotate(**sums, last_at=Max("at")).order_by("-asked")
    return rows.values_list("model", *sums, "last_at")[:MOST_SHOWN]


def usage_table() -> type[models.Model] | None:
    """Return the model of the rows of metered requests, or None in an installation without them."""
    try:
        return apps.get_model("usage", "MeteredRow")
    except LookupError:
        return None
