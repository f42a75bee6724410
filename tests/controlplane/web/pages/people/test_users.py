"""The page "People": accounts, and who is what in which project."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.people.models import Membership
from controlplane.objects.projects.models import Project
from tests.controlplane.pages import html_of
from tests.factories import MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db

USERS, MEMBERSHIPS = "/admin/auth/user/", "/admin/access/membership/"
PASSWORD = "correct horse battery staple"


@pytest.fixture
def project() -> Project:
    return ProjectFactory(slug="chat")


@pytest.fixture
def as_owner(client: Client, project: Project) -> Client:
    client.force_login(MembershipFactory(project=project, role="owner", user__username="olga").user)
    return client


@pytest.fixture
def operator() -> User:
    return UserFactory(username="ann", operator=True)


@pytest.fixture
def as_operator(client: Client, operator: User) -> Client:
    client.force_login(operator)
    return client


def errors_of(response) -> dict[str, list[str]]:
    return dict(response.context["adminform"].form.errors)


def person(user: User, **changed) -> dict[str, str]:
    return {"username": user.username, "is_active": "on", "is_staff": "on", **changed}


def test_the_page_says_in_three_words_what_each_role_may_do(as_operator, project):
    MembershipFactory(project=project, role="editor", user__username="eve")

    page = html_of(as_operator.get(USERS))

    for words in (
        "reads, exports, explains",
        "changes limits, tokens, overrides",
        "manages members and keys",
        "everything, every project",
    ):
        assert words in page
    assert "eve" in page
    assert "<strong>chat</strong>" in page


def test_an_owner_makes_somebody_a_member(as_owner, project):
    """With the author, the reason and the id of the request in the audit."""
    eve = UserFactory(username="eve")
    form = {"person": "eve", "project": project.pk, "role": "viewer", "change_reason": "on call"}

    response = as_owner.post(f"{MEMBERSHIPS}add/", form, headers={"X-Request-Id": "req-7"})

    assert response.status_code == 302, errors_of(response)
    assert Membership.objects.get(user=eve).role == "viewer"
    entry = AuditEntry.objects.get()
    said = (entry.action, entry.actor, entry.reason, entry.request_id, entry.project, entry.after["user"])
    assert said == ("membership.create", "olga", "on call", "req-7", project.pk, "eve")


def test_an_owner_changes_and_ends_a_membership(as_owner, project):
    """Before and after are in the audit."""
    eve = MembershipFactory(project=project, user__username="eve")

    as_owner.post(f"{MEMBERSHIPS}{eve.pk}/change/", {"role": "editor", "seen_version": version(as_owner, eve)})
    eve.refresh_from_db()
    assert eve.role == "editor"
    as_owner.post(f"{MEMBERSHIPS}{eve.pk}/delete/", {"post": "yes", "change_reason": "left"})

    assert not Membership.objects.filter(pk=eve.pk).exists()
    updated, deleted = AuditEntry.objects.order_by("id")
    assert (updated.action, updated.before["role"], updated.after["role"]) == ("membership.update", "viewer", "editor")
    assert (deleted.action, deleted.before["role"], deleted.reason) == ("membership.delete", "editor", "left")


def version(client: Client, row: Membership) -> str:
    return client.get(f"{MEMBERSHIPS}{row.pk}/change/").context["adminform"].form.initial["seen_version"]


@pytest.mark.parametrize(
    ("changed", "field", "error"),
    [
        ({"person": "nobody"}, "person", "There is no account with this name. Ask an operator to create it."),
        ({"person": "olga"}, "person", "Is already owner of chat. Change that membership."),
        ({"person": ""}, "person", "This field is required."),
        ({"role": "admin"}, "role", "Select a valid choice. admin is not one of the available choices."),
        ({"role": ""}, "role", "This field is required."),
    ],
)
def test_a_wrong_membership_is_refused_at_its_field(as_owner, project, changed, field, error):
    UserFactory(username="eve")
    form = {"person": "eve", "project": project.pk, "role": "viewer", **changed}

    response = as_owner.post(f"{MEMBERSHIPS}add/", form)

    assert errors_of(response) == {field: [error]}
    assert Membership.objects.count() == 1


def test_an_owner_gives_no_role_in_projects_of_others(as_owner):
    """Nor in one of which the owner is only an editor. The form says the same as for a project that is not there."""
    UserFactory(username="eve")
    edited = MembershipFactory(user=User.objects.get(username="olga"), role="editor").project
    errors = [
        errors_of(as_owner.post(f"{MEMBERSHIPS}add/", {"person": "eve", "project": project, "role": "owner"}))
        for project in (ProjectFactory().pk, edited.pk, "proj_none")
    ]

    assert errors == [{"project": ["Select a valid choice. That choice is not one of the available choices."]}] * 3
    others = MembershipFactory()
    assert as_owner.get(f"{MEMBERSHIPS}{others.pk}/change/").status_code == 404
    assert as_owner.post(f"{MEMBERSHIPS}{others.pk}/delete/", {"post": "yes"}).status_code == 404


def test_an_owner_sees_only_the_members_of_owned_projects(as_owner, project):
    """And of them only what they may do there, no address and no other project."""
    eve = MembershipFactory(project=project, user__username="eve", user__email="eve@example.org").user
    MembershipFactory(user=eve, project=ProjectFactory(slug="other-project"), role="owner")
    stranger = UserFactory(username="stranger")

    listed, shown = html_of(as_owner.get(USERS)), html_of(as_owner.get(f"{USERS}{eve.pk}/change/"))

    for page in (listed, shown):
        assert "eve" in page
        assert "other-project" not in page
        assert "eve@example.org" not in page
        assert "stranger" not in page
    assert as_owner.get(f"{USERS}{stranger.pk}/change/").status_code == 404
    assert as_owner.get(f"{USERS}?q=stranger").context["cl"].result_count == 0
    assert as_owner.post(f"{USERS}{eve.pk}/change/", person(eve, operator="on")).status_code == 403
    assert as_owner.post(f"{USERS}{eve.pk}/password/", {}).status_code == 403
    assert as_owner.get(f"{USERS}add/").status_code == 403
    assert as_owner.post(f"{USERS}{eve.pk}/delete/", {"post": "yes"}).status_code == 403


def test_an_operator_makes_an_operator(as_operator):
    """Which the audit names."""
    eve = UserFactory(username="eve")

    response = as_operator.post(f"{USERS}{eve.pk}/change/", person(eve, operator="on", change_reason="on call"))

    assert response.status_code == 302, errors_of(response)
    assert eve.groups.get().name == "operators"
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason, entry.project) == ("user.update", "ann", "on call", "")
    assert (entry.before["operator"], entry.after["operator"]) == (False, True)


@pytest.mark.parametrize("name", ["operator", "is_active", "is_staff"])
def test_nobody_takes_the_own_access_away(as_operator, operator, name):
    """So one operator is always left."""
    form = person(operator, operator="on")
    del form[name]

    response = as_operator.post(f"{USERS}{operator.pk}/change/", form)

    assert errors_of(response) == {name: ["Must not be taken away from yourself. Ask another operator."]}
    assert as_operator.post(f"{USERS}{operator.pk}/delete/", {"post": "yes"}).status_code == 403


def test_nobody_deletes_the_own_account_among_others(as_operator, operator):
    """The list deletes the others."""
    eve = UserFactory()
    chosen = {"action": "delete_selected", "_selected_action": [eve.pk, operator.pk], "post": "yes"}

    as_operator.post(USERS, chosen)

    assert list(User.objects.values_list("pk", flat=True)) == [operator.pk]


def test_only_superusers_make_superusers(as_operator):
    """Django's own flag, which passes every check."""
    eve = UserFactory()

    as_operator.post(f"{USERS}{eve.pk}/change/", person(eve, is_superuser="on"))

    eve.refresh_from_db()
    assert not eve.is_superuser


def test_a_new_person_may_log_in_and_sees_nothing_yet(as_operator, client):
    secret = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    as_operator.post(f"{USERS}add/", {"username": "eve", **secret})
    eve = User.objects.get(username="eve")
    client.force_login(eve)

    assert eve.is_staff
    assert "You are not a member of a project yet" in html_of(client.get("/admin/"))


def test_deleting_a_person_records_the_memberships(as_operator, project):
    """They end with the account."""
    eve = MembershipFactory(project=project, role="editor").user

    as_operator.post(f"{USERS}{eve.pk}/delete/", {"post": "yes"})

    assert set(AuditEntry.objects.values_list("action", "project")) == {
        ("user.delete", ""),
        ("membership.delete", project.pk),
    }


def test_a_role_that_ends_ends_at_once(client, project):
    """The next request of the same session is refused."""
    member = MembershipFactory(project=project)
    client.force_login(member.user)
    page = f"/admin/projects/project/{project.pk}/change/"
    assert client.get(page).status_code == 200

    member.delete()

    assert client.get(page).status_code == 403
