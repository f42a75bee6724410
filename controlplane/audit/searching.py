"""What a search of the audit finds, in the admin and over REST."""

from controlplane.lists.searching import IndexedSearch


class AuditSearch(IndexedSearch):
    beginnings, parts, wholes = ("actor", "action", "object_label"), ("reason",), ("object_id", "request_id")
