"""Every address of the admin, and what each role gets there. The addresses come from the URL configuration."""

import pytest
from django.contrib.auth.models import User
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import PermissionDenied
from django.http import Http404
from django.test import Client, RequestFactory
from django.urls import resolve
from django_otp.middleware import OTPMiddleware

from controlplane.changes.audit.models import AuditEntry
from tests.controlplane.objects.people.addresses import address, is_of_a_row, patterns, row_of
from tests.factories import UserFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db

# By the statuses of GET for: staff without a membership, viewer, editor, owner, operator. The row, if the address has
# one, is of the project of the member. A new address needs a place here.
STATUSES = {
    # Everybody on the staff.
    "200 200 200 200 200": [
        *("index", "search", "jsi18n", "password_change", "password_change_done", "second-factor"),
        *("needs-a-hand", "jobs_job_changelist"),  # everybody sees what is theirs
    ],
    "302 302 302 302 302": [
        *("login", "second-factor-code"),
        # To the audit of the row, which is narrowed.
        *(
            "access_membership_history",
            "auth_user_history",
            "axes_accessattempt_history",
            "policies_override_history",
            "policies_policy_history",
        ),
        *("prices_modelprice_history", "projects_managementkey_history", "projects_project_history"),
        *("projects_token_history", "alerts_alertrule_history", "webhooks_destination_history"),
        # To the policy of the limit, and to the page of the reservation.
        *("policies_limit_change", "policies_limit_delete", "reservations_reservation_change"),
    ],
    # Members read.
    "403 200 200 200 200": [
        *("drafts_policydraft_changelist", "drafts_policydraft_change"),
        *("explain-denial", "near-limit", "choose-project", "projects_token_labels", "publishing_revision_changelist"),
        *("policies_auditentry_csv", "policies_auditentry_jsonl"),
        *("projects_project_changelist", "projects_project_change", "projects_token_changelist"),
        *("projects_token_change", "policies_policy_changelist", "policies_policy_change"),
        *("policies_limit_changelist", "policies_override_changelist", "policies_override_change"),
        *("policies_auditentry_changelist", "policies_auditentry_change", "prices_modelprice_changelist"),
        *("prices_modelprice_change", "usage_usagerow_changelist", "usage_usagerow_change", "usage_usagerow_csv"),
        *("usage_meteredrow_changelist", "usage_meteredrow_change", "usage_meteredrow_csv"),
        *("usage_deniedrequest_changelist", "usage_deniedrequest_change", "reservations_reservation_changelist"),
        *("emergency_suspension_changelist", "statements_monthrow_changelist", "statements_monthrow_change"),
        *("alerts_alertrule_changelist", "alerts_alertrule_change", "alerts_alertevent_changelist"),
        "alerts_alertevent_change",
        # Of revisions, those that changed something of the projects of the member.
        *("publishing_revision_changelist", "policies_auditentry_csv", "policies_auditentry_jsonl"),
        "projects_token_labels",
    ],
    "404 302 302 302 302": ["emergency_suspension_change"],
    "404 200 200 200 200": [
        *("app_list", "projects_project_counters", "projects_token_counters", "policies_auditentry_history"),
        *("policies_limit_history", "usage_usagerow_history", "usage_meteredrow_history"),
        *("usage_deniedrequest_history", "reservations_reservation_history", "emergency_suspension_history"),
        *("statements_monthrow_history", "alerts_alertevent_history", "drafts_policydraft_history"),
    ],
    "403 302 302 302 302": ["reservations_settle"],
    # This one changed nothing of them, so operators are led to its page, and it does not exist for others.
    "404 404 404 404 302": ["publishing_revision_undo"],
    "403 404 404 404 200": ["publishing_revision_change"],
    # Editors change.
    "403 403 200 200 200": [
        *("projects_token_add", "projects_token_delete", "policies_policy_add", "policies_policy_delete"),
        *("policies_override_add", "policies_override_delete", "alerts_alertrule_add", "alerts_alertrule_delete"),
        *("webhooks_destination_changelist", "webhooks_destination_change", "webhooks_delivery_changelist"),
        "webhooks_delivery_change",
    ],
    # Nothing is suspended, and the draft is open.
    "302 403 403 403 403": ["projects_token_resume", "projects_project_resume", "drafts_policydraft_reopen"],
    "302 403 200 200 200": [
        *("projects_token_suspend", "projects_project_suspend"),
        *("projects_token_revoke", "projects_token_rotate", "projects_token_reset_counters"),
        *("projects_project_reset_counters", "policies_policy_copy"),
        *("drafts_policydraft_edit", "drafts_policydraft_publish", "drafts_policydraft_discard"),
    ],
    "404 403 200 200 200": ["projects_token_raise", "projects_project_raise"],
    "302 403 302 302 302": ["projects_token_raise_limit", "projects_project_raise_limit"],
    # Owners manage members and keys.
    "403 403 403 200 200": [
        *("access_membership_changelist", "access_membership_add", "access_membership_change"),
        *("access_membership_delete", "auth_user_changelist", "auth_user_change", "projects_project_delete"),
        *("projects_managementkey_changelist", "projects_managementkey_add", "projects_managementkey_change"),
        *("webhooks_destination_add", "webhooks_destination_delete"),
    ],
    "302 302 302 200 200": ["projects_managementkey_revoke"],
    "302 302 200 200 200": ["webhooks_delivery_replay"],
    "302 302 403 200 200": ["webhooks_destination_test", "webhooks_destination_rotate"],
    "404 404 200 200 200": ["webhooks_delivery_history"],
    # Operators run the installation.
    "403 403 403 403 200": [
        *("first-steps", "first-steps-state"),
        *("projects_project_add", "projects_managementkey_delete", "auth_user_add", "auth_user_delete"),
        *("auth_user_password_change", "prices_modelprice_add", "prices_modelprice_delete"),
        *("axes_accessattempt_changelist", "axes_accessattempt_change", "axes_accessattempt_delete"),
        *("fleet_instance_changelist", "fleet_instance_change", "publishing_outboxentry_changelist"),
        "publishing_outboxentry_change",
        *("usage_dailyreport_changelist", "usage_dailyreport_change", "usage_dailyreport_page"),
        "usage_dailyreport_csv",
    ],
    # The policy belongs to a project, so it cannot apply to others.
    "302 403 403 403 302": ["policies_policy_apply_everywhere", "policies_policy_apply_where_attached"],
    "302 302 302 302 200": ["publishing_revision_roll_back"],
    "302 302 302 403 200": ["auth_user_reset_second_factor"],
    "404 404 404 404 200": [
        *("fleet_instance_history", "publishing_outboxentry_history"),
        *("publishing_revision_history", "usage_dailyreport_history"),
        # A job of somebody else.
        *("jobs_job_change", "jobs_job_progress", "jobs_job_history"),
    ],
    # Nobody, because programs write these rows.
    "403 403 403 403 403": [
        "first-account",  # without the link that works once
        "autocomplete",  # without the name of a field
        *("axes_accessattempt_add", "fleet_instance_add", "fleet_instance_delete", "policies_auditentry_add"),
        *("policies_auditentry_delete", "policies_limit_add", "publishing_outboxentry_add"),
        *("publishing_outboxentry_delete", "publishing_revision_add", "publishing_revision_delete"),
        *("reservations_reservation_add", "reservations_reservation_delete", "usage_dailyreport_add"),
        *("usage_dailyreport_delete", "usage_deniedrequest_add", "usage_deniedrequest_delete"),
        *("usage_meteredrow_add", "usage_meteredrow_delete", "usage_usagerow_add", "usage_usagerow_delete"),
        *("jobs_job_add", "jobs_job_delete", "emergency_suspension_add", "emergency_suspension_delete"),
        *("statements_monthrow_add", "statements_monthrow_delete", "alerts_alertevent_add"),
        *("drafts_policydraft_add", "drafts_policydraft_delete"),
        *("alerts_alertevent_delete", "webhooks_delivery_add", "webhooks_delivery_delete"),
    ],
    # The second one without a limit.
    "404 404 404 404 404": ["view_on_site", "policies_override_unit"],
    # Without the name of a shadow limit.
    "404 403 404 404 404": ["policies_policy_enforce"],
    # Only by POST.
    "405 405 405 405 405": [
        *("policy-advice", "first-steps-send", "answer-hand"),
        *("projects_managementkey_by_secret", "projects_token_by_secret", "logout"),
        *("jobs_job_cancel", "emergency_suspension_value", "emergency_suspension_break"),
        *("emergency_suspension_mend", "emergency_suspension_resume", "emergency_suspension_end"),
        "prices_modelprice_forget",
    ],
}
ROLES = ["staff", "viewer", "editor", "owner", "operator"]
EXPECTED = {name: dict(zip(ROLES, row.split(), strict=True)) for row, names in STATUSES.items() for name in names}


def user_of(role: str, project) -> User:
    if role in ("staff", "operator"):
        return UserFactory(operator=role == "operator")
    return project.member(role)


def test_each_address_has_its_statuses():
    """A new view is decided on here before anybody sees it."""
    assert {pattern.name for pattern in patterns()} == set(EXPECTED)


def status_of(user: User, url: str) -> str:
    """Return the status of a GET, from the view itself, so that no page is rendered that nobody reads."""
    match, request = resolve(url), RequestFactory().get(url)
    request.user, request.session, request.resolver_match = user, SessionStore(), match
    request._messages = FallbackStorage(request)
    OTPMiddleware(lambda request: None)(request)
    try:
        return str(match.func(request, *match.args, **match.kwargs).status_code)
    except PermissionDenied:
        return "403"
    except Http404:
        return "404"


def is_asked(role: str, name: str) -> bool:
    """Return whether a role is asked for an address. In a small run, those between two that are alike are not."""
    between = role in ("editor", "owner") and EXPECTED[name]["viewer"] == EXPECTED[name][role]
    return scale(not (between and EXPECTED[name][role] == EXPECTED[name]["operator"]), True)


@pytest.mark.proof
@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_its_status_at_each_address(alpha, shared, role: str):
    user = user_of(role, alpha)

    found = {}
    for pattern in patterns():
        if not is_asked(role, pattern.name):
            continue
        url = address(pattern, row_of(pattern, {**shared, **alpha.rows}))
        found[pattern.name] = status_of(User.objects.get(pk=user.pk), url)

    expected = {name: by_role[role] for name, by_role in EXPECTED.items()}
    assert {name: status for name, status in found.items() if status != expected.get(name)} == {}


def test_without_a_session_every_address_leads_to_the_log_in(client: Client, alpha, shared):
    for pattern in patterns():
        url = address(pattern, row_of(pattern, {**shared, **alpha.rows}))
        response = client.get(url)
        if pattern.name not in ("login", "logout", "first-account"):
            assert (response.status_code, response.url.partition("?")[0]) == (302, "/admin/login/"), pattern.name


@pytest.mark.proof
@pytest.mark.parametrize(("role", "whose"), [("viewer", "alpha"), *scale((), (("owner", "bravo"),))])
def test_no_address_lets_somebody_change_what_is_only_read(client: Client, tenants, shared, role: str, whose: str):
    """A form that is posted without the button for it."""
    rows = tenants[whose].rows
    before = {name: vars(type(row).objects.get(pk=row.pk)) for name, row in rows.items()}
    form = {
        "post": "yes",
        "_form_submitted": "on",
        "reason": "r",
        "change_reason": "r",
        "overlap": "0",
        "way": "release",
    }
    user = user_of(role, tenants["alpha"])
    audited = AuditEntry.objects.count()

    client.force_login(user)
    for pattern in filter(is_of_a_row, patterns()):
        row = row_of(pattern, {**shared, **rows})
        response = client.post(address(pattern, row), {**form, **fields_of(row)})
        assert response.status_code != 500, pattern.name

    after = {name: vars(type(row).objects.get(pk=row.pk)) for name, row in rows.items()}
    for name, values in before.items():
        changed = {key for key, value in values.items() if key != "_state" and after[name][key] != value}
        assert changed <= {"last_login"}, name
    assert AuditEntry.objects.count() == audited


def fields_of(row) -> dict[str, str]:
    """Return the values of a row as its form posts them, some of them changed."""
    if row is None:
        return {}
    values = {field.attname.removesuffix("_id"): field.value_from_object(row) for field in row._meta.concrete_fields}
    values = {name: str(value) for name, value in values.items() if isinstance(value, str | int) and name != "password"}
    return values | {name: "changed" for name in ("name", "reason", "first_name") if name in values}
