"""Imports the pages, which register themselves. Django imports the admin of each app."""

# ruff: noqa: F401
from controlplane.web.pages import (
    alerts,
    fleet,
    jobs,
    keys,
    publishing,
    reservations,
    revisions,
    statements,
    usage,
    webhooks,
)
from controlplane.web.pages.audit import page as audit_page
from controlplane.web.pages.drafts import page as drafts_page
from controlplane.web.pages.emergency import page as emergency_page
from controlplane.web.pages.overrides import page as overrides_page
from controlplane.web.pages.people import attempts, memberships, users
from controlplane.web.pages.policies import limit_admin
from controlplane.web.pages.policies import page as policies_page
from controlplane.web.pages.prices import page as prices_page
from controlplane.web.pages.projects import page as projects_page
from controlplane.web.pages.tokens import page as tokens_page
