"""The addresses of the objects that the audit names."""

from collections import defaultdict
from collections.abc import Iterable

from django.apps import apps
from django.contrib.admin.utils import quote
from django.urls import reverse

from controlplane.changes.audit.models import AuditEntry
from controlplane.releases.publishing.models import PublishedChange, Revision

# By the type of the object in the audit. Other objects have no page of their own, or more than one.
MODELS = {
    "policy": "policies.Policy",
    "override": "policies.Override",
    "project": "projects.Project",
    "token": "projects.Token",
    "managementkey": "projects.ManagementKey",
    "modelprice": "prices.ModelPrice",
    "membership": "access.Membership",
    "user": "auth.User",
    "group": "auth.Group",
}


def object_urls(objects: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the address in the admin of each of these objects that has a page and still exists, by type and id."""
    ids: dict[str, set[str]] = defaultdict(set)
    for kind, pk in objects:
        if kind in MODELS:
            ids[kind].add(pk)
    found = {}
    for kind, keys in ids.items():
        model = apps.get_model(MODELS[kind])
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
        if model._meta.pk.get_internal_type() != "CharField":
            keys = {pk for pk in keys if pk.isdecimal()}
        for pk in model._base_manager.filter(pk__in=keys).values_list("pk", flat=True):
            found[kind, str(pk)] = reverse(name, args=[quote(pk)])
    return found


def revision_of(object_type: str, object_id: str, action: str) -> Revision | None:
    """Return the revision that published the last change of this kind to an object, without its documents."""
    entries = AuditEntry.objects.filter(object_type=object_type, object_id=object_id, action=action)
    change = entries.order_by("-at", "-id").values_list("change", flat=True).first()
    published = PublishedChange.objects.filter(change=change).exclude(revision=None) if change else None
    found = published and published.values_list("revision", flat=True).first()
    return Revision.objects.defer("changes").filter(pk=found).first() if found else None
