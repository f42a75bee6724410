"""The scopes (access rights, RBAC) of management keys."""

from collections.abc import Mapping

SCOPES = (
    "projects:read",
    "projects:write",
    "tokens:read",
    "tokens:issue",
    "tokens:write",
    "policies:read",
    "policies:write",
    "overrides:write",
    "prices:read",
    "prices:write",
    "counters:read",
    "counters:reset",
    "reservations:read",
    "reservations:settle",
    "usage:read",
    "audit:read",
    "instances:read",
    "revisions:read",
    "revisions:write",
    "memberships:read",
    "memberships:write",
    "jobs:read",
    "jobs:cancel",
    "emergency:read",
    "emergency:write",
    "keys:read",
    "keys:write",
    "alerts:read",
    "alerts:write",
    "webhooks:read",
    "webhooks:write",
    "*",
)
# Scopes that come with a greater one.
IMPLIED: Mapping[str, str] = {"tokens:issue": "tokens:write"}

# Sets of scopes for the usual programs, by what such a program does.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "reads everything": tuple(scope for scope in SCOPES if scope.endswith(":read")),
    "deploys policies": ("projects:read", "policies:read", "policies:write", "overrides:write", "revisions:read"),
    "issues tokens": ("projects:read", "policies:read", "tokens:read", "tokens:issue"),
    "reads usage": ("projects:read", "tokens:read", "usage:read"),
}
