"""Roll-back to the state of an earlier revision, as a new change with a new number."""

from django.core.exceptions import ValidationError

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import OpenChange
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.fields import Record
from controlplane.objects.emergency.document import PROJECTS_NAMED
from controlplane.objects.policies.actions import lock_global_policy, set_global_policy
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import Revision
from controlplane.releases.publishing.writing import write
from enforcement.model.partitions import DEFAULT_CAP


def rollback(tx: OpenChange, number: int) -> None:
    """
    Restore the policies, project settings and global policy of revision *number* in SQL.

    That is the policies with their limits, the policies, active flag and cap of each project, and the global policy.
    Newer policies and projects, tokens with their labels, overrides, prices, suspensions, and the policies of new
    tokens stay. A deleted policy is created again under its id. A deleted project is not, because its tokens are gone,
    and neither are its own policies.

    Raises:
        Revision.DoesNotExist: There is no such revision.
        ValidationError: Another policy now has the slug of a restored one, or it is not known which project owned a
            deleted one. Nothing is changed.
    """
    documents = documents_at(number)
    lock_global_policy()  # before the policies, as every change of the global policy locks it first
    emergency = documents.get("emergency") or {}
    suspended = {*emergency.get("projects", []), *(row["id"] for row in emergency.get("ending_projects", []))}
    unnamed = len(suspended) >= PROJECTS_NAMED  # others may have been suspended, too
    changes = [_policy_at(document) for name, document in documents.items() if name.startswith("policy:") and document]
    for name, document in documents.items():
        if name.startswith("project:") and document:
            inactive = not document["active"]
            changes.append(_project_at(document, document["id"] in suspended or (unnamed and inactive)))
    write(tx, Change(tuple(one for one in changes if one and one.before != one.after)), "rollback")
    if everywhere := documents.get("global"):  # without the document it is unknown which policy was global, if any
        set_global_policy(tx, Policy.objects.get(pk=everywhere["policy"]) if everywhere["policy"] else None)


def documents_at(number: int) -> dict[str, Record | None]:
    """
    Return every document by name as it was at revision *number*, with None for a document that was deleted by then.

    Raises:
        Revision.DoesNotExist: There is no such revision.
    """
    Revision.objects.get(pk=number)
    known = Revision.objects.filter(number__lte=number)
    # A full publication contains every document, so earlier revisions are not needed.
    full = known.filter(changes__full=True).order_by("-number").values_list("number", flat=True).first() or 0
    documents: dict[str, Record | None] = {}
    for revision in known.filter(number__gte=full).order_by("number").iterator():
        documents.update(revision.changes["documents"])
    return documents


def _policy_at(document: Record) -> ObjectChange | None:
    """Return what a policy becomes by its document, or None for a deleted one whose owner is deleted too."""
    policy = Policy.objects.select_for_update().filter(pk=document["id"]).first()
    before = policy.as_record() if policy else None
    record = before or _deleted(document)
    if record is None:
        return None
    published = {name: document[name] for name in ("slug", "name", "limits")}
    if document.get("metering", {}) != record.get("metering", {}):
        published["metering"] = document.get("metering", {})
    return ObjectChange("policy", document["id"], document["slug"], before, {**record, **published})


def _deleted(document: Record) -> Record | None:
    """
    Return the last record of a deleted policy, or None if its owner is deleted too.

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
    return {**record, "is_global": False, "managed_by": ""}


def _project_at(document: Record, suspended: bool) -> ObjectChange | None:
    """
    Return what a project becomes by its document, or None for one that is deleted.

    One that was suspended at the time was published as inactive, which says nothing of it.
    """
    project = Project.objects.select_for_update().filter(pk=document["id"]).first()
    if project is None:
        return None
    before = project.as_record()
    published = {
        "policy": document["policy"],
        "anonymous_policy": document.get("anonymous_policy"),
        "active": project.active if suspended else document["active"],
        "partition_cap": document.get("partition_cap", DEFAULT_CAP),
    }
    return ObjectChange("project", project.pk, str(project), before, {**before, **published})
