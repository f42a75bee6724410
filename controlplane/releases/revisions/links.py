"""The addresses of the objects that the audit names."""

from collections import defaultdict
from collections.abc import Iterable

from django.apps import apps
from django.contrib.admin.utils import quote
from django.urls import reverse

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
