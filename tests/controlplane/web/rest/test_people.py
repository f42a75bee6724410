"""Memberships over REST follow the rules of the page of the admin."""

import pytest
from django.contrib.auth.models import User

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.people.models import Membership
from controlplane.objects.projects.models import Project
from tests.factories import ManagementKeyFactory, MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db
BEN = {"user": "ben", "project": "chat", "role": "editor"}


@pytest.fixture(autouse=True)
def people() -> None:
    """Two accounts, and two projects without members."""
    UserFactory(username="ben"), UserFactory(username="eve")
    ProjectFactory(slug="chat"), ProjectFactory(slug="other")


def test_a_membership_is_given_changed_and_taken(api):
    """The audit has each step, with the author and the reason."""
    response = api("POST", "memberships", BEN, Sluicegate_Reason="on call")
    path = response["Location"].removeprefix("/api/v1/")

    assert (response.status_code, {name: response.json()[name] for name in BEN}) == (201, BEN)
    assert api("PATCH", path, {"role": "viewer"}).json()["role"] == "viewer"
    assert Membership.objects.get().role == "viewer"
    assert api("DELETE", path).status_code == 204
    assert list(AuditEntry.objects.order_by("id").values_list("action", "actor", "reason")) == [
        ("membership.create", "ann", "on call"),
        ("membership.update", "ann", ""),
        ("membership.delete", "ann", ""),
    ]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"user": "nobody"}, ("#/user", "does_not_exist")),
        ({"user": ""}, ("#/user", "does_not_exist")),
        ({"user": 7}, ("#/user", "invalid")),
        ({"project": "nowhere"}, ("#/project", "does_not_exist")),
        ({"project": None}, ("#/project", "null")),
        ({"role": "operator"}, ("#/role", "invalid_choice")),
        ({"is_superuser": True}, ("#/is_superuser", "unknown_field")),
    ],
)
def test_bad_input_names_the_field(api, change, code):
    """Nobody gets a role by it."""
    response = api("POST", "memberships", {**BEN, **change})

    (error,) = response.json()["errors"]
    assert (response.status_code, (error["pointer"], error["code"])) == (400, code)
    assert not Membership.objects.exists()


def test_nobody_is_a_member_of_a_project_twice(api):
    """Two roles in one project would contradict each other."""
    api("POST", "memberships", BEN)

    response = api("POST", "memberships", {**BEN, "role": "viewer"})

    assert response.status_code == 400
    assert response.json()["errors"][0]["detail"] == "This user is a member of the project already."


@pytest.mark.parametrize("change", [{"user": "eve"}, {"project": "other"}])
def test_a_membership_stays_that_of_its_person_and_project(api, change):
    """The audit would lose who had access. The same value, sent back, is no change."""
    path = api("POST", "memberships", BEN)["Location"].removeprefix("/api/v1/")

    response = api("PATCH", path, change)

    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, "immutable")
    assert api("PATCH", path, BEN).status_code == 200


def test_the_list_is_filtered(api):
    """By project, account and role."""
    for user, project, role in (("ben", "chat", "owner"), ("ben", "other", "viewer"), ("eve", "chat", "viewer")):
        api("POST", "memberships", {"user": user, "project": project, "role": role})

    def found(query: str) -> set[tuple[str, str]]:
        return {(one["user"], one["project"]) for one in api("GET", f"memberships?{query}").json()["results"]}

    assert found("project=chat") == {("ben", "chat"), ("eve", "chat")}
    assert found("user=ben&role=viewer") == {("ben", "other")}
    assert found("user=nobody") == set()
    assert api("GET", "memberships?role=king").status_code == 400


def test_a_key_of_one_project_manages_its_members_only(call):
    """Members of others are not found, and their projects cannot be named."""
    theirs = MembershipFactory(project__slug="theirs")
    projects = list(Project.objects.filter(slug__in=["chat", "other"]))
    MembershipFactory(project=projects[1], user=User.objects.get(username="ben"))
    chat = ManagementKeyFactory(projects=projects)

    assert call("POST", "memberships", BEN, key=chat).status_code == 201
    assert call("GET", f"memberships/{theirs.pk}", key=chat).status_code == 404
    assert call("POST", "memberships", {**BEN, "project": "theirs"}, key=chat).status_code == 400
    assert {one["user"] for one in call("GET", "memberships", key=chat).json()["results"]} == {"ben"}


def test_a_key_of_one_project_finds_out_no_account(call):
    """One that exists elsewhere, that of an operator and one that nobody has get the same answer, also for a try."""
    UserFactory(username="root", operator=True)
    chat = ManagementKeyFactory(projects=[Project.objects.get(slug="chat")])

    def answer(name: str, query: str) -> str:
        (error,) = call("POST", f"memberships{query}", {**BEN, "user": name}, key=chat).json()["errors"]
        return error["detail"].replace(name, "")

    assert len({answer(name, query) for name in ("ben", "root", "nobody") for query in ("", "?dry_run=true")}) == 1
