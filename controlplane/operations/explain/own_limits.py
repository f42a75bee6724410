"""The limits of one token for its holder, read as the pages of the proxies show them. Nothing is charged."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.utils import timezone

from controlplane.core import store
from controlplane.core.transactions import snapshot
from controlplane.objects.emergency.models import is_suspended
from controlplane.objects.projects.models import Token
from controlplane.operations.explain.emergencies import glass_at, suspended_labels
from controlplane.operations.explain.live_counters import HolderDocuments, client
from controlplane.releases.publishing.publisher import last_revision
from controlplane.traffic.fleet.models import Instance
from enforcement.http.limits_page import usage_document
from enforcement.http.own_limits import OwnLimit, OwnLimits, Reading, own_limits
from enforcement.model.instants import to_us
from enforcement.model.keys import together
from enforcement.model.lease_bounds import unused_max
from enforcement.plan.rules import as_shadow, rules_of
from enforcement.store.client import with_library
from enforcement.store_calls.inspection import look

COUNTED = ("used", "left", "reset_at", "reset_ms")


def refusal_of(token: Token, now: datetime) -> str:
    """Return the reason for which every proxy refuses a token, in the order of the proxies, or an empty string."""
    project = token.project
    if token.revoked_at:
        return "revoked"
    if is_suspended(token, now) or is_suspended(project, now):
        return "suspended"
    if not project.active:
        return "inactive_project"
    if suspended_labels(token, now):
        return "suspended"
    return "expired" if token.expires_at and token.expires_at <= now else ""


def resumed_at(token: Token, now: datetime) -> datetime | None:
    """Return when the last suspension of a suspended token ends by itself, or None if one has no end."""
    own = [row.suspension for row in (token, token.project) if is_suspended(row, now)]
    ends = [row.ends_at for row in own or suspended_labels(token, now)]
    known = [end for end in ends if end]
    return max(known, default=None) if len(known) == len(ends) else None


def limits_of(token: Token) -> list[dict[str, Any]]:
    """Return the limits of a live token, without what is used of them. This does not need the store."""
    now = timezone.now()
    found = usage_document(OwnLimits(to_us(now), 0, _own(token, now)))["limits"]
    return [{name: value for name, value in limit.items() if name not in COUNTED} for limit in found]


def usage_of(token: Token) -> dict[str, Any]:
    """
    Return the limits of a live token with what is used and left of each, and when that was read.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    now, connection = timezone.now(), client()
    with snapshot():
        limits, revision = _own(token, now), last_revision()
    at_us, read = with_library(connection, lambda: _read(connection, limits, to_us(now)))
    return usage_document(OwnLimits(at_us, revision, read))


def _own(token: Token, now: datetime) -> list[OwnLimit]:
    now_us, keys = to_us(now), store.keys()
    with snapshot():
        rules = rules_of(HolderDocuments.of(token, now).as_subject(), now_us)
        fleet = max(1, Instance.objects.running(now).count())
        if glass_at(now):
            rules = tuple(replace(rule, limit=as_shadow(rule.limit)) for rule in rules)
    # The attributes of this request are not those of requests to a proxy, so they select no counter.
    limits = own_limits(rules, [rule.partitions(keys) for rule in rules], keys, {})
    return [replace(limit, unused_max=unused_max(limit.rule.limit, fleet)) for limit in limits]


def _read(connection: Any, limits: Sequence[OwnLimit], now_us: int) -> tuple[int, list[OwnLimit]]:
    """Return the time of the store, and the limits with what it says of their counters."""
    bound = [(limit, limit.bound) for limit in limits if limit.bound is not None]
    at_us, seen = now_us, {}
    for some in together(bound, lambda pair: pair[0].rule.tag):
        at_us, states = look(connection, [one for _, one in some], now_us)
        for (limit, _), (state, used) in zip(some, states, strict=True):
            reset_us = None if state.reset_ms is None else state.reset_ms * 1_000
            seen[limit.rule.index] = Reading(used, state.remaining, reset_us)
    return at_us, [replace(limit, reading=seen.get(limit.rule.index)) for limit in limits]
