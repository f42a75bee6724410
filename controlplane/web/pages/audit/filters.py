"""The filters of the audit."""

from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import DropdownFilter

from controlplane.changes.audit.models import AuditEntry

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
    "learnedestimate": "learned estimates",
    "modeladdend": "addends of models",
    "reservation": "reservations",
    "suspension": "suspensions",
    "breakglass": "break glass",
    "job": "jobs",
    "store": "the store",
    "audit": "the audit itself",
}
# Deeds in words, with the endings of the actions that name them.
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
        endings = tuple(f".{ending}" for ending in DEEDS.get(self.value(), ()))
        # The exact actions, because only they are in an index that also has the order of the list.
        return rows.filter(action__in=[action for action in recorded_actions() if action.endswith(endings)])


def recorded_actions() -> list[str]:
    """Return each action of the audit once. The database looks up the next one in an index, and does not read all."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE found(action) AS (
                SELECT min(action) FROM policies_auditentry
                UNION ALL
                SELECT (SELECT min(action) FROM policies_auditentry WHERE action > found.action)
                FROM found WHERE found.action IS NOT NULL
            )
            SELECT action FROM found WHERE action IS NOT NULL
            """
        )
        return [action for (action,) in cursor.fetchall()]
