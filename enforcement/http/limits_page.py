"""
The page on which consumers see their own limits.

There is no I/O. :mod:`enforcement.http.usage_request` has the limits read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from enforcement.http.messages import PlainResponse, Refusal
from enforcement.http.own_limits import OwnLimit, OwnLimits
from enforcement.model.calendars import window
from enforcement.model.instants import from_us
from enforcement.model.limits import Limit

USAGE_PATH: Final = "/.well-known/sluicegate/usage"
"""The path of the page, at every integration."""

_NO_STORE: Final = ("Cache-Control", "no-store")
_METHODS: Final = ("GET", "HEAD")


def check_method(method: str) -> None:
    """Raise Refusal with status 405 unless a request reads the page."""
    if method not in _METHODS:
        allow = ("Allow", ", ".join(_METHODS))
        raise Refusal(
            405, "Method not allowed", "The page of own limits is read by GET.", "method_not_allowed", (allow,)
        )


def unreadable() -> Refusal:
    """Return a new Refusal with status 503 for a page whose counters the store does not tell."""
    detail = "The counters cannot be read now, so this page shows no numbers. Try again."
    return Refusal(503, "The limits cannot be read now", detail, "usage_unavailable", (("Retry-After", "1"),))


def as_page(answer: PlainResponse, method: str) -> PlainResponse:
    """Return a copy of a response that no cache may keep, and that has no body if the method is HEAD."""
    return replace(answer, headers=(*answer.headers, _NO_STORE), body=b"" if method == "HEAD" else answer.body)


def usage_document(own: OwnLimits) -> dict[str, Any]:
    """Return the limits of a consumer as a new dictionary of JSON values. The page "Own limits" lists the members."""
    return {
        "at": _instant(own.at_us),
        "revision": own.revision,
        "limits": [_limit(limit, own.at_us) for limit in own.limits],
    }


def usage_page(own: OwnLimits) -> PlainResponse:
    """Return a new response with the limits of a consumer as JSON."""
    body = json.dumps(usage_document(own)).encode()
    return PlainResponse(200, (("Content-Type", "application/json"), ("Content-Length", str(len(body)))), body)


def _limit(own: OwnLimit, at_us: int) -> dict[str, Any]:
    rule, limit, reading = own.rule, own.rule.limit, own.reading
    reset_us = reading.reset_us if reading else None
    ends_at_us = rule.ends_at_us
    return {
        "policy": rule.policy.slug,
        "limit": limit.name,
        "scope": rule.scope,
        "enforcement": "soft" if limit.shadow else "hard",
        "unit": limit.unit,
        "quota": limit.quota,
        "quota_source": "policy" if rule.override_id is None else "override",
        "override_ends_at": None if ends_at_us is None else _instant(ends_at_us),
        "capacity": limit.capacity,
        "used": reading.used if reading else None,
        "left": reading.left if reading else None,
        "reset_at": None if reset_us is None else _instant(at_us + reset_us),
        "reset_ms": None if reset_us is None else -(-reset_us // 1_000),
        "algorithm": limit.algorithm,
        "window_seconds": _window_seconds(limit, at_us),
        "calendar": limit.calendar,
        "time_zone": limit.time_zone if limit.calendar else None,
        "rollover": limit.rollover,
        "slot_seconds": limit.window_seconds if limit.algorithm == "concurrency" else None,
        "charge_on": list(limit.charge_on),
        "applies_to": {
            "methods": list(limit.match.methods),
            "path": limit.match.path or None,
            "attributes": sorted(limit.match.attributes),
        },
        "partition_by": list(limit.partition_by),
        "partition": dict(own.partition) if own.partition else None,
        "shared_counter": reading.shared if reading else False,
        "unused_max": own.unused_max,
    }


def _window_seconds(limit: Limit, at_us: int) -> int | None:
    if limit.algorithm == "concurrency" or limit.calendar == "lifetime":
        return None
    if limit.calendar is None:
        return limit.window_seconds
    start, end = window(at_us, limit.calendar, limit.time_zone, limit.anchor)
    return (end - start) // 1_000_000


def _instant(microseconds: int) -> str | None:
    """Return an instant in ISO 8601 and UTC, or None if it lies beyond the year 9999."""
    try:
        return from_us(microseconds).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return None
