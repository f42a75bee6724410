"""The search of the audit, for the admin and for REST."""

from controlplane.core.tables.searching import IndexedSearch


class AuditSearch(IndexedSearch):
    beginnings, parts, wholes = ("actor", "action", "object_label"), ("reason",), ("object_id", "request_id")
