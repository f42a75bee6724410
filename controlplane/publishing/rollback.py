"""Roll-back to the state of an earlier revision, as a new change with a new number."""

from typing import Any

from django.core.exceptions import ObjectDoesNotExist, ValidationError

from controlplane.drafts.models import PolicyDraft
from controlplane.emergency.document import PROJECTS_NAMED
from controlplane.policies.actions import lock_global_policy, replace_limits, set_global_policy
from controlplane.policies.models import AuditEntry, Policy
from controlplane.projects.models import Project
from controlplane.publishing.changes import OpenChange
from controlplane.publishing.models import Revision
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.partitions import DEFAULT_CAP


def rollback(tx: OpenChange, number: int) -> None:
    """
    Restore the policies, project settings and global policy of revision *number* in SQL.

    That is the policies with their limits, the policies, active flag and cap of each project, and the global policy.
    Newer policies and projects, tokens with their labels, overrides, prices, suspensions, and the policies of new
    tokens stay. A
    deleted policy is created again under its id. A deleted project is not, because its tokens are gone, and neither are
    its own policies.

    Raises:
        Revision.DoesNotExist: There is no such revision.
        ValidationError: Another policy now has the slug of a restored one, or it is not known which project owned a
            deleted one. Nothing is changed.
    """
    documents = documents_at(number)
    lock_global_policy()  # before the policies, as every change of the global policy locks it first
    for name, document in documents.items():
        if name.startswith("policy:") and document:
            _restore_policy(tx, document)
    emergency = documents.get("emergency") or {}
    suspended = [*emergency.get("projects", []), *(row["id"] for row in emergency.get("ending_projects", []))]
    unnamed = len(suspended) >= PROJECTS_NAMED  # others may have been suspended, too
    for name, document in documents.items():
        if name.startswith("project:") and document:
            inactive = not document["active"]
            _restore_project(tx, document, suspended=document["id"] in suspended or (unnamed and inactive))
    if everywhere := documents.get("global"):  # without the document it is unknown which policy was global, if any
        set_global_policy(tx, Policy.objects.get(pk=everywhere["policy"]) if everywhere["policy"] else None)


def documents_at(number: int) -> dict[str, dict[str, Any] | None]:
    """
    Return every document by name as it was at revision *number*, with None for a document that was deleted by then.

    Raises:
        Revision.DoesNotExist: There is no such revision.
    """
    Revision.objects.get(pk=number)
    known = Revision.objects.filter(number__lte=number)
    # A full publication contains every document, so earlier revisions are not needed.
    full = known.filter(changes__full=True).order_by("-number").values_list("number", flat=True).first() or 0
    documents: dict[str, dict[str, Any] | None] = {}
    for revision in known.filter(number__gte=full).order_by("number").iterator():
        documents.update(revision.changes["documents"])
    return documents


def _restore_policy(tx: OpenChange, document: dict[str, Any]) -> None:
    policy = Policy.objects.select_for_update().filter(pk=document["id"]).first()
    before = policy and policy.as_record()
    policy = policy or deleted_policy(document)
    if policy is None:
        return
    if before and _as_published(before) == _as_published(document):
        return
    policy.slug, policy.name, policy.metering = document["slug"], document["name"], document.get("metering", {})
    policy.full_clean(exclude=["name", "description"])  # an old text may break a younger rule
    policy.save()
    if before is None:
        PolicyDraft.give_back(policy)
    limits = [LimitValue.from_json(limit, published=True) for limit in document["limits"]]
    replace_limits(tx, policy, limits, restored=True)
    policy = Policy.objects.get(pk=policy.pk)
    tx.record("policy.rollback", policy, before=before, after=policy.as_record())


def deleted_policy(document: dict[str, Any]) -> Policy | None:
    """
    Return a new row for a deleted policy, with its owner and description, or None if its owner is deleted too.

    The document does not name the owner, and a policy without one is shared by all projects. The audit names it.
    """
    entry = AuditEntry.objects.filter(object_type="policy", object_id=document["id"]).order_by("-id").first()
    record = entry and (entry.after or entry.before)
    if not record:
        message = f"The policy {document['slug']!r} is deleted, and the audit does not say which project owned it."
        raise ValidationError(ValidationError(message, code="unknown_owner"))
    owner = record["project"]
    if owner and not Project.objects.filter(pk=owner).exists():
        return None
    return Policy(pk=document["id"], project_id=owner, description=record["description"])


def _as_published(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["slug"], record["name"], record["limits"], record.get("metering", {})


def _restore_project(tx: OpenChange, document: dict[str, Any], *, suspended: bool) -> None:
    """Restore a project. One that was suspended at the time was published as inactive, which says nothing of it."""
    try:
        project = Project.objects.select_for_update().get(pk=document["id"])
    except ObjectDoesNotExist:
        return
    published = {
        "policy_id": document["policy"],
        "anonymous_policy_id": document.get("anonymous_policy"),
        "active": project.active if suspended else document["active"],
        "partition_cap": document.get("partition_cap", DEFAULT_CAP),
    }
    if all(getattr(project, name) == value for name, value in published.items()):
        return
    before = project.as_record()
    for name, value in published.items():
        setattr(project, name, value)
    project.full_clean(exclude=["name"])
    project.save()
    tx.record("project.rollback", project, before=before, after=project.as_record())
