"""The indexes of the table of tokens, which may have millions of rows."""

from django.db.models import Index, Q

TOKEN_INDEXES = [
    Index(fields=["project", "-created_at"]),
    # The columns by which the list is sorted, and the end, by which it is filtered.
    Index(fields=["-created_at", "-id"], name="projects_token_created"),
    Index(fields=["name", "-id"], name="projects_token_name"),
    # Those of a project may all have names from a few letters on.
    Index(fields=["project", "name", "-id"], name="projects_token_named"),
    # Half of them may have no end, and these come first, by their ids, when the last ends are wanted.
    Index(fields=["expires_at", "id"], name="projects_token_ends"),
    # The beginning of the secret, in any collation of the database.
    Index(fields=["prefix"], name="projects_token_prefix", opclasses=["varchar_pattern_ops"]),
    # Counts the live tokens of a project without reading them.
    Index(fields=["project", "expires_at"], name="projects_token_live", condition=Q(revoked_at=None)),
    # Counts the tokens of a policy in the projects of a member.
    Index(fields=["policy", "project"], name="projects_token_uses"),
    # Counts its live tokens without reading them.
    Index(fields=["policy", "expires_at"], name="projects_token_having", condition=Q(revoked_at=None)),
    # Counts those that nobody has used for long. A use changes it once a day.
    Index(fields=["last_used_on", "created_at"], name="projects_token_unused", condition=Q(revoked_at=None)),
    Index(fields=["-created_at"], name="projects_token_revoked", condition=Q(revoked_at__isnull=False)),
    # A project may have none of many.
    Index(fields=["project", "-created_at"], name="projects_token_gone", condition=Q(revoked_at__isnull=False)),
]
