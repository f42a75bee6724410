"""Roll-back to the state of an earlier revision, as a new change with a new number."""

from typing import Any

from django.core.exceptions import ObjectDoesNotExist

from controlplane.policies.actions import replace_limits, set_global_policy
from controlplane.policies.models import AuditEntry, Policy
from controlplane.projects.models import Project
from controlplane.publishing.changes import Change
from controlplane.publishing.models import Revision
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.partitions import DEFAULT_CAP


def rollback(tx: Change, number: int) -> None:
    """
    Restore the policies, project settings and global policy of revision *number* in SQL.

    That is the policies with their limits, the policies, active flag and cap of each project, and the global policy.
    Newer policies and projects, tokens and overrides stay as they are. A deleted policy is created again under its id.
    A deleted project is not, because its tokens are gone, and neither are the policies that it owned.

    Raises:
        Revision.DoesNotExist: There is no such revision.
        ValidationError: Another policy now has the slug of a restored one. Nothing is changed.
    """
    documents = documents_at(number)
    for name, document in documents.items():
        if name.startswith("policy:") and document:
            _restore_policy(tx, document)
    for name, document in documents.items():
        if name.startswith("project:") and document:
            _restore_project(tx, document)
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


def _restore_policy(tx: Change, document: dict[str, Any]) -> None:
    policy = Policy.objects.select_for_update().filter(pk=document["id"]).first()
    before = policy and policy.as_record()
    if policy is None:
        former = _last_record(document["id"])
        owner = former.get("project")
        if owner and not Project.objects.filter(pk=owner).exists():
            return
        # A document does not name the owner. Without it, every project could use the policy.
        policy = Policy(pk=document["id"], project_id=owner, description=former.get("description", ""))
    if before and _as_published(before) == _as_published(document):
        return
    policy.slug, policy.name = document["slug"], document["name"]
    policy.full_clean(exclude=["name"])  # an old name may break a younger rule
    policy.save()
    limits = [LimitValue.from_json(limit, published=True) for limit in document["limits"]]
    replace_limits(tx, policy, limits, restored=True)
    policy = Policy.objects.get(pk=policy.pk)
    tx.record("policy.rollback", policy, before=before, after=policy.as_record())


def _last_record(policy_id: str) -> dict[str, Any]:
    """Return what the audit knows of a deleted policy, or an empty dictionary."""
    entry = AuditEntry.objects.filter(object_type="policy", object_id=policy_id).order_by("at", "id").last()
    return (entry.after or entry.before or {}) if entry else {}


def _as_published(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["slug"], record["name"], record["limits"]


def _restore_project(tx: Change, document: dict[str, Any]) -> None:
    try:
        project = Project.objects.select_for_update().get(pk=document["id"])
    except ObjectDoesNotExist:
        return
    published = {
        "policy_id": document["policy"],
        "anonymous_policy_id": document.get("anonymous_policy"),
        "active": document["active"],
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
