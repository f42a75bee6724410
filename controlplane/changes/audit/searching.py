"""The search of the audit, for the admin and for REST."""

from controlplane.core.tables.searching import IndexedSearch

AUDIT_SEARCH = IndexedSearch(
    beginnings=("actor", "action", "object_label"),
    parts=("reason",),
    wholes=("object_id", "request_id"),
    help=(
        "Actor, action, object, reason, or a whole id",
        "Beginning of an actor, action or object, or a whole id",
    ),
)
