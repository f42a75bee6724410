"""The filters of the audit."""

from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import DropdownFilter

from controlplane.policies.models import AuditEntry

# The types of objects in the audit, in words.
OBJECTS = {
    "policy": "policies",
    "project": "projects",
    "token": "tokens",
    "override": "overrides",
    "managementkey": "management keys",
    "membership": "members",
    "user": "users",
    "group": "groups",
    "accessattempt": "sign-in failures",
    "modelprice": "prices",
    "modelfactor": "factors of models",
    "reservation": "reservations",
    "suspension": "suspensions",
    "breakglass": "break glass",
    "job": "jobs",
    "store": "the store",
    "audit": "the audit itself",
}
# What happened, in words, and the endings of the actions that say it.
DEEDS = {
    "created": ("create",),
    "changed": ("update", "rollback", "undo", "set", "narrow", "limit"),
    "ended": ("end", "expire"),
    "revoked": ("revoke",),
    "rotated": ("rotate",),
    "suspended or resumed": ("suspend", "resume"),
    "glass broken or mended": ("break", "mend"),
    "deleted": ("delete", "prune"),
    "undone": ("undo", "rollback"),
    "reset": ("reset", "reset_unfinished"),
}


class ObjectFilter(DropdownFilter):
    """A filter by the type of the changed object."""

    title = "object"
    parameter_name = "type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(OBJECTS.items())

    def queryset(self, request: HttpRequest, rows: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        return rows.filter(object_type=self.value()) if self.value() else rows


class DeedFilter(DropdownFilter):
    """A filter by what happened, in plain words. A word that is none of them finds nothing."""

    title = "what happened"
    parameter_name = "deed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(word, word) for word in DEEDS]

    def queryset(self, request: HttpRequest, rows: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        if not self.value():
            return rows
        found = Q(pk__in=[])
        for ending in DEEDS.get(self.value(), ()):
            # Without regard to case, as the index of the search has it.
            found |= Q(action__iendswith=f".{ending}")
        return rows.filter(found)
