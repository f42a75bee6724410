"""Who may see what in the admin, and the audit of who gave whom which permissions."""

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from tests.controlplane.conftest import PASSWORD
from tests.factories import (
    CountedUsageFactory,
    LimitFactory,
    MembershipFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

USERS, OWN_PASSWORD = "/admin/auth/user/", "/admin/password_change/"


@pytest.fixture
def tenants(instance) -> None:
    """Something in every panel of the first page."""
    soon = timezone.now() + timezone.timedelta(days=1)
    token = TokenFactory(name="secret-token", project=ProjectFactory(slug="secret-project"), expires_at=soon)
    limit = LimitFactory(policy=PolicyFactory(slug="secret-policy"), name="secret-limit")
    at = timezone.now().replace(second=0, microsecond=0)
    rows = [{}, {"policy_id": limit.policy_id, "limit_name": limit.name}]
    for row in rows:
        CountedUsageFactory(at=at, project_id=token.project_id, token_id=token.pk, denied=77, **row)
    instance("secret-instance", host="secret-host", decisions={})


OF_PROJECTS = [
    *("Decisions", ">77<", "Most denied tokens", "Limits that deny most", "Ends within 7 days"),
    *("secret-token", "secret-policy"),
]
OF_THE_INSTALLATION = ["secret-instance", "secret-host", "The store does not answer"]


def overview(client, user) -> str:
    client.force_login(user)
    return client.get("/admin/").content.decode()


def test_staff_without_a_membership_see_nothing_of_tenants(client, tenants):
    """The page says how one becomes a member."""
    page = overview(client, UserFactory(username="ron"))

    for text in ("secret", *OF_PROJECTS, *OF_THE_INSTALLATION):
        assert text not in page or text == "Decisions", text
    assert "You are not a member of a project yet" in page
    assert "ron" in page


def test_the_overview_of_a_member_has_only_its_projects(client, tenants):
    """The same panels, without a number, a name or a host of others."""
    member = MembershipFactory(role="owner")
    CountedUsageFactory(at=timezone.now().replace(second=0, microsecond=0), project_id=member.project_id, denied=5)

    page = overview(client, member.user)

    assert ">5<" in page
    for text in ("secret", ">77<", *OF_THE_INSTALLATION):
        assert text not in page, text


def test_a_viewer_sees_the_panels_of_the_project(client, tenants):
    """And nothing of the installation."""
    page = overview(client, MembershipFactory(project=Project.objects.get(slug="secret-project")).user)

    for text in OF_PROJECTS:
        assert text in page, text
    for text in OF_THE_INSTALLATION:
        assert text not in page, text


def test_the_overview_of_an_operator_has_every_panel(client, tenants):
    """Nothing is hidden from operators."""
    page = overview(client, UserFactory(operator=True))

    for text in (*OF_PROJECTS, *OF_THE_INSTALLATION):
        assert text in page, text


def entries() -> list[tuple[str, str]]:
    return list(AuditEntry.objects.order_by("id").values_list("action", "object_label"))


def test_a_new_user_is_audited(as_ann):
    """With the author, and without the password or its hash."""
    secret = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}

    as_ann.post(f"{USERS}add/", {"username": "eve", **secret})

    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_label, entry.actor, entry.channel) == ("user.create", "eve", "ann", "admin")
    assert (entry.after["username"], entry.after["is_staff"], entry.after["operator"]) == ("eve", True, False)
    assert PASSWORD not in str(entry.after)
    assert User.objects.get(username="eve").password not in str(entry.after)


def user_fields(user: User, **changed) -> dict:
    joined = {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00", "date_joined": "2026-01-01T00:00"}
    return {"username": user.username, "is_active": "on", **joined, **changed}


def test_a_form_of_a_user_that_changes_nothing_is_not_audited(as_ann):
    """Pressing Save is no change by itself."""
    eve = User.objects.create_user("eve")

    assert as_ann.post(f"{USERS}{eve.pk}/change/", user_fields(eve)).status_code == 302
    assert entries() == []


def test_setting_a_password_is_audited(as_ann):
    """Who can log in as somebody else is worth knowing."""
    eve = User.objects.create_user("eve", password="before that one")
    new = "quite another horse battery"

    as_ann.post(f"{USERS}{eve.pk}/password/", {"password1": "short", "password2": "short", "usable_password": "true"})
    assert entries() == []
    as_ann.post(f"{USERS}{eve.pk}/password/", {"password1": new, "password2": new, "usable_password": "true"})

    eve.refresh_from_db()
    assert eve.check_password(new)
    assert entries() == [("user.password", "eve")]


def test_changing_the_own_password_is_audited(client):
    """Whoever finds an open session and takes it over leaves a trace. A wrong form leaves none."""
    eve = UserFactory(username="eve")
    eve.set_password("before that one")
    eve.save()
    client.force_login(eve)
    new = "quite another horse battery"
    form = {"old_password": "before that one", "new_password1": new, "new_password2": new}

    assert client.post(OWN_PASSWORD, {**form, "old_password": "wrong"}).status_code == 200
    assert entries() == []
    assert client.post(OWN_PASSWORD, form, headers={"X-Request-Id": "req-9"}).status_code == 302

    eve.refresh_from_db()
    assert eve.check_password(new)
    entry = AuditEntry.objects.get()
    said = (entry.action, entry.actor, entry.object_label, entry.request_id)
    assert said == ("user.password", "eve", "eve", "req-9")
    assert client.get("/admin/").status_code == 200


def test_deleted_users_are_audited_one_by_one(as_ann):
    """Also those that are chosen in the list."""
    users = [User.objects.create_user(name) for name in ("eve", "bob")]
    chosen = {"action": "delete_selected", "_selected_action": [user.pk for user in users], "post": "yes"}

    as_ann.post(USERS, chosen)

    assert sorted(entries()) == [("user.delete", "bob"), ("user.delete", "eve")]


def test_the_history_of_a_user_is_its_audit(as_ann):
    """As that of every other row."""
    eve = User.objects.create_user("eve")

    response = as_ann.get(f"{USERS}{eve.pk}/history/")

    assert response.url == f"/admin/policies/auditentry/?object_type=user&object_id={eve.pk}"
