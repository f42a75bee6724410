"""Say what those requests of the last week would be charged of which nobody has seen the whole answer."""

from datetime import datetime, timedelta

import redis
from django.conf import settings
from django.db.models import F, Q, Sum

from controlplane.core import store
from controlplane.objects.prices.broken import lately
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.prices.seen import read_prices, usage_table
from enforcement.metering.charges import Counts
from enforcement.metering.settlement import ESTIMATED, OBSERVED
from enforcement.model.instants import to_us
from enforcement.model.metered import USUAL_OUTPUT_CAP
from enforcement.model.strict_json import dumps

WEEK = timedelta(days=7)
# Longer than a run of the task may be late.
KEPT_MS = 2 * 86_400_000


def publish_week(now: datetime, client: redis.Redis | None = None) -> dict[str, int]:
    """
    Save in the store, for the doctor, what :func:`unseen_week` finds, and return that. Beside it stand the models whose
    bounds were broken in that week, with their format and requests.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    result = unseen_week(now)
    above = [[row["model"], row["format"], row["requests"]] for row in lately(now - WEEK)]
    document = {"at_us": to_us(now), "currency": settings.CURRENCY, "observed": result, "broken": above}
    (client or store.connection()).set(store.keys().last_week, dumps(document), px=KEPT_MS)
    return result


def unseen_week(now: datetime) -> dict[str, int]:
    """
    Return how many requests of the last seven days were settled as ``observed``, what they were ``charged`` in micros,
    and what their estimates are, ``estimated``, at present prices.

    A row does not have the cap of a request. It is that of the model's requests that kept their estimate, on average,
    or the usual one.
    """
    table = usage_table()
    if table is None:
        return {"requests": 0, "charged": 0, "estimated": 0}
    rows = table._default_manager.filter(Q(period="day", at__gt=now - WEEK) & ~Q(model=""))
    sums = {"n": Sum("requests"), "read": Sum("estimated_input"), "money": Sum("micros"), "said": Sum(F("output"))}
    estimated = {
        row["model"]: row for row in rows.filter(settled_as=ESTIMATED).values("model").annotate(**sums).order_by()
    }
    prices, at_us = read_prices(ModelPrice.objects.all()), to_us(now)
    result = {"requests": 0, "charged": 0, "estimated": 0}
    for row in rows.filter(settled_as=OBSERVED).values("model").annotate(**sums).order_by():
        like = estimated.get(row["model"])
        cap = like["said"] // like["n"] if like and like["n"] else USUAL_OUTPUT_CAP
        price = prices.find(row["model"], at_us)
        each = Counts(row["read"] // max(1, row["n"]), output=cap)
        result["requests"] += row["n"]
        result["charged"] += row["money"]
        result["estimated"] += max(row["money"], price.micros(each) * row["n"] if price else 0)
    return result
