"""From rows to the documents that enforcers read: the present state, so that order and repetition do not matter."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Prefetch, QuerySet

from controlplane.policies.models import Override, Policy
from controlplane.projects.models import Project, Token
from controlplane.publishing.models import Revision
from enforcement.model.documents import SCHEMA, InvalidDocument, dumps, parse_policy
from enforcement.model.lease_bounds import published_bounds
from enforcement.model.partitions import DEFAULT_CAP

logger = logging.getLogger(__name__)

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
# An expired token stays known for a day, so that its holder is told "expired" and not "unknown".
EXPIRED_FOR = timedelta(days=1)

Document = dict[str, Any]


@contextmanager
def snapshot() -> Iterator[None]:
    """Let all reads of the block see one moment: a change that is committed meanwhile is in all of them, or in none."""
    outermost = not connection.in_atomic_block
    with transaction.atomic():
        if outermost and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield


def documents(wanted: Iterable[tuple[str, str]]) -> dict[str, Document | None]:
    """Compile the wanted (kind, id) pairs of policies, projects and the global document; None: it is no more."""
    wanted = set(wanted)
    found: dict[str, Document | None] = {f"{kind}:{pk}": None for kind, pk in wanted if kind in ("policy", "project")}
    found |= _policies(Policy.objects.filter(pk__in=[pk for kind, pk in wanted if kind == "policy"]))
    found |= _projects(Project.objects.filter(pk__in=[pk for kind, pk in wanted if kind == "project"]))
    if any(kind == "global" for kind, _ in wanted):
        found |= _global()
    return found


def all_documents() -> dict[str, Document]:
    return _policies(Policy.objects.all()) | _projects(Project.objects.all()) | _global()


def count_documents() -> int:
    return Policy.objects.count() + Project.objects.count() + 1


def tokens(digests: Iterable[str], now: datetime) -> dict[str, Document | None]:
    """Compile the tokens of these digests; None: deleted, or expired for longer than anybody asks."""
    digests = set(digests)
    compiled = dict(_tokens(Token.objects.filter(digest__in=digests), now))
    return {digest: compiled.get(digest) for digest in digests}


def all_tokens(now: datetime) -> Iterator[tuple[str, Document]]:
    return _tokens(Token.objects.order_by("pk"), now)


def resets(entries: Iterable[str]) -> list[Document]:
    """Read the resets that the outbox keeps as text."""
    return [json.loads(entry) for entry in sorted(set(entries))]


def _policies(policies: QuerySet[Policy]) -> dict[str, Document]:
    compiled = {f"policy:{policy.pk}": _policy(policy) for policy in policies.prefetch_related("limits")}
    return {name: document for name, document in compiled.items() if document}


def _policy(policy: Policy) -> Document | None:
    limits = [limit.as_json() for limit in policy.limits.all()]
    fields = {"id": policy.pk, "slug": policy.slug, "name": policy.name, "version": policy.version}
    document = {"schema": SCHEMA, **fields, "limits": limits}
    try:
        read = parse_policy(dumps(document))
    except InvalidDocument as exc:
        # Every door refuses such a limit, so somebody wrote to the tables. Enforcers keep what they have.
        logger.error("The policy %s cannot be published, its last good state stays: %s", policy.slug, exc)
        return _last_published(f"policy:{policy.pk}")
    # Left out where it says nothing, for the reason that _project() gives.
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
    rows = projects.prefetch_related(_with_limits())
    return {f"project:{project.pk}": _project(project) for project in rows}


def _project(project: Project) -> Document:
    fields = {"id": project.pk, "slug": project.slug, "active": project.active, "policy": project.policy_id}
    # Left out where it says nothing new: enforcers that do not know the field refuse a document that has it.
    cap = {} if project.partition_cap == DEFAULT_CAP else {"partition_cap": project.partition_cap}
    return {"schema": SCHEMA, **fields, **cap, "overrides": _overrides(project)}


def _global() -> dict[str, Document]:
    policy = Policy.objects.filter(is_global=True).values_list("pk", flat=True).first()
    return {"global": {"schema": SCHEMA, "policy": policy}}


def _tokens(rows: QuerySet[Token], now: datetime) -> Iterator[tuple[str, Document]]:
    remembered = rows.exclude(expires_at__lte=now - EXPIRED_FOR).prefetch_related(_with_limits())
    for token in remembered.iterator(chunk_size=1000):
        yield token.digest, _token(token)


def _token(token: Token) -> Document:
    fields = {"id": token.pk, "project": token.project_id, "name": token.name, "policy": token.policy_id}
    ends = {"revoked": token.revoked_at is not None, "expires_at_us": microseconds(token.expires_at)}
    return {"schema": SCHEMA, **fields, **ends, "overrides": _overrides(token)}


def _with_limits() -> Prefetch:
    return Prefetch("overrides", Override.objects.select_related("limit").order_by("pk"))


def _overrides(holder: Project | Token) -> list[Document]:
    return [_override(override) for override in holder.overrides.all()]


def _override(override: Override) -> Document:
    fields = {"id": override.pk, "policy": override.limit.policy_id, "limit": override.limit.name}
    numbers = {"quota": override.quota, "burst": override.burst}
    return {**fields, **numbers, "ends_at_us": microseconds(override.ends_at)}


def microseconds(instant: datetime | None) -> int | None:
    """Return microseconds since the epoch, in whole numbers: a float would lose some."""
    if instant is None:
        return None
    return (instant - EPOCH) // timedelta(microseconds=1)
