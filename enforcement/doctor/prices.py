"""Check the published prices of models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final, cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from enforcement.doctor.findings import Finding
from enforcement.metering.price_documents import parse_prices
from enforcement.model.documents import InvalidDocument, loads, parse_policy
from enforcement.model.keys import Keys
from enforcement.model.metered import MONEY

MOST_SHOWN: Final = 20
_REPAIR: Final = "If the control plane has prices, its worker publishes them again within a minute."


def prices(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding on the prices, if any are published or a published limit counts money."""
    try:
        text = client.get(keys.prices)
    except NoPermissionError:  # reported with the rights of the account
        return
    except ResponseError as exc:  # the key is no string
        text = str(exc)
    if text is None:
        yield from _missing(_limits_of_money(client, keys))
        return
    try:
        found = parse_prices(cast("str", text))
    except InvalidDocument as exc:
        advice = f"Instances keep the prices that they have read before, if any. {_REPAIR}"
        yield Finding("prices", "problem", f"cannot be read: {exc}", advice)
        return
    number = f"{len(found.overrides)} of operators, {len(found.prices)} of the catalogue"
    yield Finding("prices", "ok", f"revision {found.revision}, {number}, in {found.currency or 'no currency'}")


def last_week(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Yield a finding on the requests of last week that were settled by what was seen of their answers, if any were."""
    try:
        text = client.get(keys.last_week)
        found = loads(cast("str", text)) if text else {}
        counts = found.get("observed", {})
        requests, charged, estimated = (int(counts.get(name, 0)) for name in ("requests", "charged", "estimated"))
    except (NoPermissionError, InvalidDocument, AttributeError, TypeError, ValueError):
        return  # enforcers may not read it, and the next run of the worker writes it again
    if requests > 0:
        value = (
            f"{requests} requests in 7 days ended without the provider's last word, charged "
            f"{charged / 1e6:,.2f} {found.get('currency', '')} by what was seen of their answers"
        )
        advice = (
            "With estimate bound, and where output is hidden (reasoning, answers that are not streamed), such requests "
            f"keep their estimates, which this version charges: at most about {estimated / 1e6:,.2f} in these 7 days. "
            "With on_disconnect drain, answers are read on, and are charged by what the provider reports."
        )
        yield Finding("last week", "ok", value, advice)


def _missing(limits: list[str]) -> Iterator[Finding]:
    if limits:
        more = f" and {len(limits) - MOST_SHOWN} more" if len(limits) > MOST_SHOWN else ""
        advice = (
            f"Requests under these limits are denied, or do what their field unpriced says. {_REPAIR} Otherwise set "
            "prices in the admin or over REST, or run 'manage.py update_prices'."
        )
        value = f"none, but these limits count money: {', '.join(limits[:MOST_SHOWN])}{more}"
        yield Finding("prices", "warning", value, advice)


def _limits_of_money(client: Redis, keys: Keys) -> list[str]:
    documents = cast("dict[str, str]", client.hgetall(keys.documents))
    names = []
    for name in sorted(name for name in documents if name.startswith("policy:")):
        with suppress(InvalidDocument):  # enforcers report it
            policy = parse_policy(documents[name])
            names += [f"{policy.slug}/{limit.name}" for limit in policy.limits if limit.unit == MONEY]
    return names
