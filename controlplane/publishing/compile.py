"""
The documents that enforcers read, made from rows in SQL.

A document always describes the present state, so the order and the repetition of publications do not matter.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Prefetch, QuerySet

from controlplane.core.instants import microseconds
from controlplane.emergency.document import emergency_document
from controlplane.emergency.models import is_suspended
from controlplane.policies.models import Override, Policy
from controlplane.projects.models import Project, Token
from controlplane.publishing.models import Revision
from enforcement.metering.price_documents import parse_prices
from enforcement.model.documents import SCHEMA, InvalidDocument, dumps, parse_policy
from enforcement.model.lease_bounds import published_bounds
from enforcement.model.partitions import DEFAULT_CAP

logger = logging.getLogger(__name__)

# An expired token stays published for a day, so that its holder gets the reason "expired" and not "unknown".
EXPIRED_FOR = timedelta(days=1)

Document = dict[str, Any]
PriceDocument = Callable[[int], Document | None]

# Prices publish their own changes, so their room is above this one. It says here how its document is made.
_price_documents: list[PriceDocument] = []


def take_prices_from(document: PriceDocument) -> None:
    """Take the document of prices from this function of a revision, which returns None if there are no prices."""
    _price_documents[:] = [document]


def documents(wanted: Iterable[tuple[str, str]]) -> dict[str, Document | None]:
    """
    Return the documents of the wanted (kind, id) pairs by name, with None for a deleted row.

    The kinds are "policy", "project", "global" and "emergency", whose document is None without an emergency.
    """
    wanted = set(wanted)
    found: dict[str, Document | None] = {f"{kind}:{pk}": None for kind, pk in wanted if kind in ("policy", "project")}
    found |= _policies(Policy.objects.filter(pk__in=[pk for kind, pk in wanted if kind == "policy"]))
    found |= _projects(Project.objects.filter(pk__in=[pk for kind, pk in wanted if kind == "project"]))
    if any(kind == "global" for kind, _ in wanted):
        found |= _global()
    if any(kind == "emergency" for kind, _ in wanted):
        found["emergency"] = emergency_document()
    return found


def all_documents() -> dict[str, Document]:
    """Return the documents of all policies and projects, the global one, and that of an emergency, by name."""
    emergency = emergency_document()
    shared = _global() | ({"emergency": emergency} if emergency else {})
    return _policies(Policy.objects.all()) | _projects(Project.objects.all()) | shared


def prices(revision: int) -> tuple[Document | None, ...]:
    """
    Return the document of prices in a tuple, with None in its place if there are no prices.

    The tuple is empty if another program has written a price that enforcers refuse. The last valid ones then stay.
    """
    (document_of,) = _price_documents  # without one, nobody could tell "no prices" from a room that is missing
    document = document_of(revision)
    if document is None:
        return (None,)
    try:
        parse_prices(dumps(document))
    except InvalidDocument as exc:
        logger.error("The prices cannot be published, so the last valid ones stay: %s", exc)
        return ()
    return (document,)


def count_documents() -> int:
    """Return the number of policies and projects in SQL, and one more each for the global document and an emergency."""
    return Policy.objects.count() + Project.objects.count() + 1 + (emergency_document() is not None)


def tokens(digests: Iterable[str], now: datetime) -> dict[str, Document | None]:
    """Return the documents of tokens by digest, with None for a token that is deleted or expired for over a day."""
    digests = set(digests)
    compiled = dict(_tokens(Token.objects.filter(digest__in=digests), now))
    return {digest: compiled.get(digest) for digest in digests}


def all_tokens(now: datetime) -> Iterator[tuple[str, Document]]:
    """Yield the digest and the document of each token that is published."""
    return _tokens(Token.objects.order_by("pk"), now)


def published_among(digests: Iterable[str], now: datetime) -> set[str]:
    """Return those of the *digests* whose tokens are published."""
    return set(_published(Token.objects.filter(digest__in=digests), now).values_list("digest", flat=True))


def resets(entries: Iterable[str]) -> list[Document]:
    """Return the different resets of counters in the JSON strings from the outbox, as dictionaries."""
    return [json.loads(entry) for entry in sorted(set(entries))]


def _policies(policies: QuerySet[Policy]) -> dict[str, Document]:
    compiled = {f"policy:{policy.pk}": _policy(policy) for policy in policies.prefetch_related("limits")}
    return {name: document for name, document in compiled.items() if document}


def _policy(policy: Policy) -> Document | None:
    limits = [limit.as_json() for limit in policy.limits.all()]
    fields = {"id": policy.pk, "slug": policy.slug, "name": policy.name, "version": policy.version}
    # Left out if empty, for the reason given in _project().
    metering = {"metering": policy.metering} if policy.metering else {}
    document = {"schema": SCHEMA, **fields, **metering, "limits": limits}
    try:
        read = parse_policy(dumps(document))
    except InvalidDocument as exc:
        # Admin and REST refuse such a limit, so another program has written to the table. Enforcers keep the old state.
        logger.error("The policy %s cannot be published, so its last valid state stays: %s", policy.slug, exc)
        return _last_published(f"policy:{policy.pk}")
    bounds = published_bounds(read.limits)
    return {
        **document,
        "limits": [limit.to_json() for limit in read.limits],
        **({"unused_max": bounds} if bounds else {}),
    }


def _last_published(name: str) -> Document | None:
    revisions = Revision.objects.filter(changes__documents__has_key=name)
    revision = revisions.order_by("-number").first()
    return revision and revision.changes["documents"][name]


def _projects(projects: QuerySet[Project]) -> dict[str, Document]:
    rows = projects.select_related("suspension").prefetch_related(_with_limits())
    return {f"project:{project.pk}": _project(project) for project in rows}


def _project(project: Project) -> Document:
    # An enforcer that does not know suspensions refuses the tokens of an inactive project.
    active = project.active and not is_suspended(project)
    fields = {"id": project.pk, "slug": project.slug, "active": active, "policy": project.policy_id}
    # Left out if it is the default, because older enforcers refuse a document with this field.
    more: Document = {} if project.partition_cap == DEFAULT_CAP else {"partition_cap": project.partition_cap}
    if project.anonymous_policy_id:  # left out for the same reason
        more["anonymous_policy"] = project.anonymous_policy_id
    return {"schema": SCHEMA, **fields, **more, "overrides": _overrides(project)}


def _global() -> dict[str, Document]:
    policy = Policy.objects.filter(is_global=True).values_list("pk", flat=True).first()
    return {"global": {"schema": SCHEMA, "policy": policy}}


def _tokens(rows: QuerySet[Token], now: datetime) -> Iterator[tuple[str, Document]]:
    rows = _published(rows, now).select_related("suspension").prefetch_related(_with_limits())
    for token in rows.iterator(chunk_size=1000):
        yield token.digest, _token(token)


def _published(rows: QuerySet[Token], now: datetime) -> QuerySet[Token]:
    return rows.exclude(expires_at__lte=now - EXPIRED_FOR)


def _token(token: Token) -> Document:
    fields = {"id": token.pk, "project": token.project_id, "name": token.name, "policy": token.policy_id}
    ends = {"revoked": token.revoked_at is not None, "expires_at_us": microseconds(token.expires_at)}
    labels = {"labels": token.labels} if token.labels else {}  # left out for the reason given in _project()
    suspended = {"suspended": True} if is_suspended(token) else {}
    return {"schema": SCHEMA, **fields, **ends, **labels, **suspended, "overrides": _overrides(token)}


def _with_limits() -> Prefetch:
    return Prefetch("overrides", Override.objects.select_related("limit").order_by("pk"))


def _overrides(holder: Project | Token) -> list[Document]:
    return [_override(override) for override in holder.overrides.all()]


def _override(override: Override) -> Document:
    fields = {"id": override.pk, "policy": override.limit.policy_id, "limit": override.limit.name}
    numbers = {"quota": override.quota, "burst": override.burst}
    return {**fields, **numbers, "ends_at_us": microseconds(override.ends_at)}
