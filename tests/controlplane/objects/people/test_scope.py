from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import AnonymousUser, Group, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse
from django.test import RequestFactory

from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import PERMISSIONS
from controlplane.objects.people.scope import is_operator, may, projects_of
from controlplane.objects.projects.models import Project
from controlplane.web.scope.views import check, permission_required
from tests.factories import MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def a() -> Project:
    return ProjectFactory(slug="a")


@pytest.fixture
def b() -> Project:
    return ProjectFactory(slug="b")


def member(project: Project, role: str) -> User:
    return MembershipFactory(project=project, role=role).user


def asking(user: Any) -> HttpRequest:
    request = RequestFactory().get("/admin/")
    request.user = user
    return request


def slugs(user: Any, role: str = "viewer") -> set[str]:
    return set(projects_of(user, role).values_list("slug", flat=True))


def test_a_member_has_only_the_projects_of_the_memberships(a: Project, b: Project):
    user = member(a, "editor")
    MembershipFactory(user=user, project=b, role="viewer")
    ProjectFactory(slug="c")

    assert slugs(user) == {"a", "b"}
    assert slugs(user, "editor") == {"a"}
    assert slugs(user, "owner") == set()


def test_without_a_membership_there_is_no_project(a: Project):
    """An empty set of memberships never stands for all projects."""
    for user in (UserFactory(), AnonymousUser()):
        assert slugs(user) == set()
        assert not may(user, "viewer", a)
        assert not may(user, "viewer", None)


def test_operators_have_every_project(a: Project, b: Project):
    for user in (UserFactory(operator=True), UserFactory(is_superuser=True)):
        assert is_operator(user)
        assert slugs(user, "owner") == {"a", "b"}
        assert may(user, "editor", None)


def test_inactive_users_have_nothing(a: Project):
    former = [UserFactory(operator=True), UserFactory(is_superuser=True), member(a, "owner")]
    for user in former:
        user.is_active = False
        assert not is_operator(user)
        assert slugs(user) == set()
        assert not may(user, "viewer", a)


@pytest.mark.parametrize(
    ("role", "allowed"),
    [("viewer", ["viewer"]), ("editor", ["viewer", "editor"]), ("owner", ["viewer", "editor", "owner"])],
)
def test_each_role_may_what_the_roles_before_it_may(role: str, allowed: list[str], a: Project, b: Project):
    user = member(a, role)

    assert [asked for asked in ("viewer", "editor", "owner") if may(user, asked, a)] == allowed
    assert [asked for asked in ("viewer", "editor", "owner") if may(user, asked, a.pk)] == allowed
    assert not may(user, "viewer", b)


def test_members_read_what_projects_share_and_only_operators_change_it(a: Project):
    user = member(a, "owner")

    assert may(user, "viewer", None)
    assert not may(user, "editor", None)


def test_an_unknown_role_is_an_error_and_no_permission(a: Project):
    with pytest.raises(ValueError, match="admin"):
        may(member(a, "owner"), "admin", a)
    with pytest.raises(ValidationError) as refused:
        MembershipFactory(project=a, role="admin")

    assert list(refused.value.message_dict) == ["role"]


def test_a_role_that_this_version_does_not_know_gives_nothing(a: Project):
    user = member(a, "viewer")
    Membership.objects.update(role="auditor")

    assert slugs(user) == set()
    assert not may(user, "viewer", a)
    assert not user.has_perm("projects.view_token")


def test_a_user_is_a_member_of_a_project_once(a: Project):
    user = member(a, "viewer")

    with pytest.raises(ValidationError, match="member of the project already"):
        MembershipFactory(user=user, project=a, role="owner")


def test_permissions_come_from_roles_and_not_from_single_grants(a: Project):
    """What was given to single users in Django's way would apply to every project."""
    viewer, editor, nobody, operator = (
        member(a, "viewer"),
        member(a, "editor"),
        UserFactory(),
        UserFactory(operator=True),
    )
    nobody.groups.add(Group.objects.create(name="readers"))

    assert viewer.has_perm("projects.view_token")
    assert not viewer.has_perm("projects.change_token")
    assert editor.has_perm("projects.change_token")
    assert not editor.has_perm("fleet.view_instance")
    assert operator.has_perm("fleet.view_instance")
    assert not any(nobody.has_perm(permission) for permission in PERMISSIONS)
    assert viewer.has_module_perms("projects")
    assert not nobody.has_module_perms("projects")
    assert "projects.view_token" in viewer.get_all_permissions()


def test_another_project_is_not_found_and_a_lower_role_is_refused(a: Project, b: Project):
    """Nothing tells a member whether another project exists."""
    request = asking(member(a, "viewer"))

    check(request, "viewer", a)
    with pytest.raises(Http404):
        check(request, "viewer", b)
    with pytest.raises(PermissionDenied):
        check(request, "editor", a)


def test_a_view_can_ask_for_a_role(a: Project):
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("here")

    viewer, editor = asking(member(a, "viewer")), asking(member(a, "editor"))

    assert permission_required("editor")(view)(editor).content == b"here"
    with pytest.raises(PermissionDenied):
        permission_required("editor")(view)(viewer)


def test_a_group_that_had_the_name_of_the_operators_keeps_its_purpose():
    """The upgrade makes nobody an operator."""
    Group.objects.all().delete()
    eve = UserFactory()
    eve.groups.add(Group.objects.create(name="operators"))
    migration = import_module("controlplane.objects.people.migrations.0001_initial")

    migration.create_group(apps, SimpleNamespace(connection=connection))

    assert not Group.objects.get(name="operators").user_set.exists()
    assert list(eve.groups.values_list("name", flat=True)) == ["operators before roles"]


def test_a_group_is_renamed_to_a_name_that_no_group_has():
    """The upgrade also succeeds where somebody has used the name that such a group gets."""
    Group.objects.all().delete()
    eve = UserFactory()
    for name in ("operators before roles", "operators before roles 2", "operators"):
        eve.groups.add(Group.objects.create(name=name))
    migration = import_module("controlplane.objects.people.migrations.0001_initial")

    migration.create_group(apps, SimpleNamespace(connection=connection))

    names = {"operators before roles", "operators before roles 2", "operators before roles 3"}
    assert set(eve.groups.values_list("name", flat=True)) == names
    assert not Group.objects.get(name="operators").user_set.exists()
