"""
The documents that enforcers read, made from rows in SQL.

A document always describes the present state, so the order and the repetition of publications do not matter.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import batched
from typing import Any, NamedTuple

from django.db.models import Prefetch, Q, QuerySet

from controlplane.core.instants import microseconds
from controlplane.objects.emergency.document import emergency_document
from controlplane.objects.emergency.models import suspension_of
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.models import Revision
from enforcement.metering.price_documents import parse_prices
from enforcement.model.documents import SCHEMA, InvalidDocument, parse_policy
from enforcement.model.documents import Policy as PublishedPolicy
from enforcement.model.lease_bounds import published_bounds
from enforcement.model.partitions import DEFAULT_CAP
from enforcement.model.sizes import MAX_ITEMS_PER_LIST
from enforcement.model.strict_json import dumps

logger = logging.getLogger(__name__)

# An expired token stays published for a day, so that its holder gets the reason "expired" and not "unknown".
EXPIRED_FOR = timedelta(days=1)
# A reader that is stopped in the middle has this many rows of tokens in memory.
ROWS_AT_ONCE = 1000
_OF_A_TOKEN = (
    *("pk", "project_id", "name", "policy_id", "revoked_at", "expires_at", "labels"),
    *("suspension__pk", "suspension__ends_at"),
)

Document = dict[str, Any]

# The pages that read the limits of hundreds of callers meet the same policies each time.
_parse = lru_cache(maxsize=1024)(parse_policy)


def documents(wanted: Iterable[tuple[str, str]]) -> dict[str, Document | None]:
    """
    Return the documents of the wanted (kind, id) pairs by name, with None for a deleted row.

    The kinds are "policy", "project", "global", "emergency" and "intakes". The last two have no document, which is
    None, without an emergency or an intake. That of an emergency comes with each suspended project too, because it says
    whether that one is active after its suspension.
    """
    wanted = {(kind, pk) for kind, pk in wanted if kind != "token"}
    if not wanted:
        return {}  # nothing but tokens was changed, as in most publications
    result: dict[str, Document | None] = {f"{kind}:{pk}": None for kind, pk in wanted if kind in ("policy", "project")}
    result |= _policies(Policy.objects.filter(pk__in=[pk for kind, pk in wanted if kind == "policy"]))
    projects = _with_overrides(Project.objects.filter(pk__in=[pk for kind, pk in wanted if kind == "project"]))
    result |= _projects(projects)
    if any(kind == "global" for kind, _ in wanted):
        result |= _global()
    if any(kind == "emergency" for kind, _ in wanted) or any(map(suspension_of, projects)):
        result["emergency"] = emergency_document()
    if ("intakes", "") in wanted:
        result["intakes"] = _intakes()
    return result


def all_documents() -> dict[str, Document]:
    """Return the documents of all policies and projects, the global one, and those of an emergency and intakes."""
    shared = _global() | _of_few()
    return _policies(Policy.objects.all()) | _projects(_with_overrides(Project.objects.all())) | shared


def prices(revision: int) -> tuple[Document | None, ...]:
    """
    Return the document of prices in a tuple, with None in its place if there are no prices.

    The tuple is empty if another program has written a price that enforcers refuse. The last valid ones then stay.
    """
    document = ModelPrice.objects.as_document(revision)
    if document is None:
        return (None,)
    try:
        parse_prices(dumps(document))
    except InvalidDocument as exc:
        logger.error("The prices cannot be published, so the last valid ones stay: %s", exc)
        return ()
    return (document,)


def count_documents() -> int:
    """Return the number of documents that :func:`all_documents` returns."""
    return Policy.objects.count() + Project.objects.count() + 1 + len(_of_few())


def _of_few() -> dict[str, Document]:
    """Return the documents that most installations lack, by name."""
    found = {"emergency": emergency_document(), "intakes": _intakes()}
    return {name: document for name, document in found.items() if document}


def _intakes() -> Document | None:
    """Return the document of the projects that have an intake, or None if there are none."""
    projects = list(Project.objects.filter(has_intake=True).order_by("pk").values_list("pk", flat=True))
    return {"schema": SCHEMA, "projects": projects[:MAX_ITEMS_PER_LIST]} if projects else None


def tokens(digests: Iterable[str], now: datetime) -> dict[str, Document | None]:
    """Return the documents of tokens by digest, with None for a token that is deleted or expired for over a day."""
    return changed_tokens(digests, now).documents


class ChangedTokens(NamedTuple):
    """The documents of tokens by digest, as ``tokens`` returns them, and the names of those that SQL has."""

    documents: dict[str, Document | None]
    names: list[dict[str, str]]
    """The names that people may read: the "id" and the "prefix", in the order of the ids."""


def changed_tokens(digests: Iterable[str], now: datetime) -> ChangedTokens:
    """Return the documents and the names of tokens, from one query."""
    digests = set(digests)
    if not digests:
        return ChangedTokens({}, [])
    names, rows = [], []
    fields = ("prefix", "expires_at", "digest", *_OF_A_TOKEN)
    for prefix, expires_at, *row in Token.objects.filter(digest__in=digests).order_by("pk").values_list(*fields):
        names.append({"id": row[1], "prefix": prefix})
        if _is_published(expires_at, now):
            rows.append(row)
    compiled = dict(_tokens(rows))
    return ChangedTokens({digest: compiled.get(digest) for digest in digests}, names)


def all_tokens(now: datetime) -> Iterator[tuple[str, Document]]:
    """Yield the digest and the document of each token that is published."""
    rows = _rows(Token.objects.order_by("pk"), now).iterator(chunk_size=ROWS_AT_ONCE)
    return _tokens(rows, in_order=True)


def tokens_after(pk: str, now: datetime, most: int) -> dict[str, Document]:
    """Return the documents of the first *most* published tokens whose ids follow *pk*, in that order, by digest."""
    return dict(_tokens(_rows(Token.objects.filter(pk__gt=pk).order_by("pk"), now)[:most], in_order=True))


def published_among(digests: Iterable[str], now: datetime) -> set[str]:
    """Return those of the *digests* whose tokens are published."""
    return set(_published(Token.objects.filter(digest__in=digests), now).values_list("digest", flat=True))


def resets(entries: Iterable[str]) -> list[Document]:
    """Return the different resets of counters in the JSON strings from the outbox, as dictionaries."""
    return [json.loads(entry) for entry in sorted(set(entries))]


def _policies(policies: QuerySet[Policy]) -> dict[str, Document]:
    compiled = {f"policy:{policy.pk}": _policy(policy) for policy in policies.prefetch_related("limits")}
    return {name: document for name, document in compiled.items() if document}


def policies(ids: Iterable[str]) -> dict[str, PublishedPolicy]:
    """Return these policies by id as enforcers read their documents, without those that they would refuse."""
    published_policies = {}
    for policy in Policy.objects.filter(pk__in=set(ids)).prefetch_related("limits"):
        _, read = _read(policy)
        if read is None and (document := _last_published(f"policy:{policy.pk}")):
            read = _parsed(document)
        if read is not None:
            published_policies[policy.pk] = read
    return published_policies


def _policy(policy: Policy) -> Document | None:
    document, read = _read(policy)
    if read is None:
        return _last_published(f"policy:{policy.pk}")
    bounds = published_bounds(read.limits)
    return {
        **document,
        "limits": [limit.to_json() for limit in read.limits],
        **({"unused_max": bounds} if bounds else {}),
    }


def _read(policy: Policy) -> tuple[Document, PublishedPolicy | None]:
    """Return the document of a policy as its rows have it, and what enforcers read in it, None if they refuse it."""
    limits = [limit.as_json() for limit in policy.limits.all()]
    fields = {"id": policy.pk, "slug": policy.slug, "name": policy.name, "version": policy.version}
    # Left out if empty, for the reason given in _project().
    metering = {"metering": policy.metering} if policy.metering else {}
    document = {"schema": SCHEMA, **fields, **metering, "limits": limits}
    try:
        return document, _parse(dumps(document))
    except InvalidDocument as exc:
        # Admin and REST refuse such a limit, so another program has written to the table. Enforcers keep the old state.
        logger.error("The policy %s cannot be published, so its last valid state stays: %s", policy.slug, exc)
        return document, None


def _parsed(document: Document) -> PublishedPolicy | None:
    try:
        return parse_policy(dumps(document))
    except InvalidDocument:  # an older release has published it
        return None


def _last_published(name: str) -> Document | None:
    revisions = Revision.objects.filter(changes__documents__has_key=name)
    revision = revisions.order_by("-number").first()
    return revision.changes["documents"][name] if revision else None


def _with_overrides(projects: QuerySet[Project]) -> QuerySet[Project]:
    return projects.select_related("suspension").prefetch_related(Prefetch("overrides", _overrides_with_limits()))


def _projects(projects: Iterable[Project]) -> dict[str, Document]:
    return {f"project:{project.pk}": _project(project) for project in projects}


def _project(project: Project) -> Document:
    # An enforcer that does not know suspensions refuses the tokens of an inactive project.
    active = project.active and suspension_of(project) is None
    fields = {"id": project.pk, "slug": project.slug, "active": active, "policy": project.policy_id}
    # Left out if it is the default, because older enforcers refuse a document with this field.
    more: Document = {} if project.partition_cap == DEFAULT_CAP else {"partition_cap": project.partition_cap}
    if project.anonymous_policy_id:  # left out for the same reason
        more["anonymous_policy"] = project.anonymous_policy_id
    overrides = [_override(override) for override in project.overrides.all()]
    return {"schema": SCHEMA, **fields, **more, "overrides": overrides}


def _global() -> dict[str, Document]:
    policy = Policy.objects.filter(is_global=True).values_list("pk", flat=True).first()
    return {"global": {"schema": SCHEMA, "policy": policy}}


def _rows(rows: QuerySet[Token], now: datetime) -> QuerySet[Token, tuple[Any, ...]]:
    """Return a query of the published ones of these tokens, as the values that _tokens() reads."""
    # A model instance for each of a million tokens takes more time than all the rest.
    return _published(rows, now).values_list("digest", *_OF_A_TOKEN)


def _tokens(rows: Iterable[Sequence[Any]], *, in_order: bool = False) -> Iterator[tuple[str, Document]]:
    """Yield the digest and the document of each of these rows. *in_order*: They are in the order of their ids."""
    for batch in batched(rows, ROWS_AT_ONCE):
        overrides = _overrides_of_tokens([row[1] for row in batch], in_order=in_order)
        for digest, pk, *values in batch:
            yield digest, _token(pk, overrides.get(pk, []), *values)


def _published(rows: QuerySet[Token], now: datetime) -> QuerySet[Token]:
    return rows.exclude(expires_at__lte=now - EXPIRED_FOR)


def _is_published(expires_at: datetime | None, now: datetime) -> bool:
    """Return whether _published() has the row of a token with this end."""
    return expires_at is None or expires_at > now - EXPIRED_FOR


def _token(
    pk: str,
    overrides: list[Document],
    project: str,
    name: str,
    policy: str | None,
    revoked_at: datetime | None,
    expires_at: datetime | None,
    labels: dict[str, str],
    suspension: str | None,
    suspended_until: datetime | None,
) -> Document:
    fields = {"id": pk, "project": project, "name": name, "policy": policy}
    ends = {"revoked": revoked_at is not None, "expires_at_us": microseconds(expires_at)}
    # Left out if there is none, for the reason given in _project().
    more: Document = {"labels": labels} if labels else {}
    if suspension is not None:  # whose end may be over, as a document depends on rows alone and not on the time
        more["suspended"] = True
        more |= {"suspended_until_us": microseconds(suspended_until)} if suspended_until else {}
    return {"schema": SCHEMA, **fields, **ends, **more, "overrides": overrides}


def _overrides_of_tokens(tokens: list[str], *, in_order: bool) -> dict[str, list[Document]]:
    """Return the overrides of each of these tokens that has some, by the id of the token."""
    # Few tokens have any, and a list of a thousand ids takes longer than what they have.
    chosen = Q(token_id__gte=tokens[0], token_id__lte=tokens[-1]) if in_order else Q(token__in=tokens)
    result: dict[str, list[Document]] = {}
    for override in _overrides_with_limits().filter(chosen):
        result.setdefault(override.token_id or "", []).append(_override(override))
    return result


def _overrides_with_limits() -> QuerySet[Override]:
    return Override.objects.select_related("limit").order_by("pk")


def _override(override: Override) -> Document:
    fields = {"id": override.pk, "policy": override.limit.policy_id, "limit": override.limit.name}
    numbers = {"quota": override.quota, "burst": override.burst}
    # Left out if there is none, for the reason given in _project().
    more = {"partition": override.values} if override.partition else {}
    return {**fields, **numbers, "ends_at_us": microseconds(override.ends_at), **more}
