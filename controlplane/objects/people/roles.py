"""The roles of members (RBAC), and the permissions that come with each of them."""

VIEWER, EDITOR, OWNER = "viewer", "editor", "owner"
# Each role may do all that the roles before it may do.
ROLES = (VIEWER, EDITOR, OWNER)
# The rights of each role, in three words.
WORDS = {
    VIEWER: "reads, exports, explains",
    EDITOR: "changes limits, tokens, overrides",
    OWNER: "manages members and keys",
}
# The members of this group may do everything in every project, as superusers may.
OPERATORS = "operators"
OPERATOR_WORDS = "everything, every project"

_READ = (
    *("projects.view_project", "projects.view_token"),
    *("policies.view_policy", "policies.view_limit", "policies.view_override", "policies.view_auditentry"),
    *("usage.view_usagerow", "usage.view_meteredrow", "usage.view_deniedrequest"),
    "statements.view_monthrow",
    *("reservations.view_reservation", "publishing.view_revision"),
    *("prices.view_modelprice", "prices.view_learnedestimate"),
    *("alerts.view_alertrule", "alerts.view_alertevent"),
    "drafts.view_policydraft",
)
_EDIT = (
    "projects.change_project",
    *("projects.add_token", "projects.change_token", "projects.delete_token"),
    *("policies.add_policy", "policies.change_policy", "policies.delete_policy"),
    *("policies.add_limit", "policies.change_limit", "policies.delete_limit"),
    *("policies.add_override", "policies.change_override", "policies.delete_override"),
    "reservations.change_reservation",
    *("alerts.add_alertrule", "alerts.change_alertrule", "alerts.delete_alertrule"),
    *("webhooks.view_destination", "webhooks.view_delivery", "webhooks.change_delivery"),
)
_OWN = (
    "projects.delete_project",
    *("webhooks.add_destination", "webhooks.change_destination", "webhooks.delete_destination"),
    *("projects.view_managementkey", "projects.add_managementkey", "projects.change_managementkey"),
    "auth.view_user",
    *("access.view_membership", "access.add_membership", "access.change_membership", "access.delete_membership"),
)
# The least role that has a permission. Only operators have a permission that is not named here. Permissions that were
# given to single users or groups do not count.
PERMISSIONS = dict.fromkeys(_READ, VIEWER) | dict.fromkeys(_EDIT, EDITOR) | dict.fromkeys(_OWN, OWNER)


def at_least(role: str) -> tuple[str, ...]:
    """
    Return *role* and the roles above it.

    Raises:
        ValueError: There is no such role.
    """
    if role not in ROLES:
        raise ValueError(f"role: must be one of {', '.join(ROLES)}, got {role!r}")
    return ROLES[ROLES.index(role) :]
