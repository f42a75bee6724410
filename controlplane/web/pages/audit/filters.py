"""The filters of the audit."""

from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest

from controlplane.changes.audit.models import AuditEntry
from controlplane.web.kit.parts import Filter

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


OBJECT_FILTER = Filter(
    name="type",
    title="object",
    choices=list(OBJECTS.items()),
    narrow=lambda rows, kind, request: rows.filter(object_type=kind),
)


def with_deed(rows: QuerySet[AuditEntry], deed: str, request: HttpRequest) -> QuerySet[AuditEntry]:
    """Return the entries of what happened, in plain words. A word that is none of them finds nothing."""
    endings = tuple(f".{ending}" for ending in DEEDS.get(deed, ()))
    # The exact actions, because only they are in an index that also has the order of the list.
    return rows.filter(action__in=[action for action in recorded_actions() if action.endswith(endings)])


DEED_FILTER = Filter(name="deed", title="what happened", choices=[(word, word) for word in DEEDS], narrow=with_deed)


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
