"""The rows that a user of the admin may see and change. Every list, count and export of the admin asks here."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import OPERATORS, ROLES, VIEWER, at_least
from controlplane.objects.projects.models import Project


def is_operator(user: Any) -> bool:
    """Return whether the user may do everything in every project, as a superuser or a member of the operators."""
    if not (user.is_authenticated and user.is_active):
        return False
    return user.is_superuser or _kept(user, "operator", lambda: user.groups.filter(name=OPERATORS).exists())


def projects_of(user: Any, role: str = VIEWER) -> QuerySet[Project]:
    """
    Return a query of the projects in which the user has at least *role*, which are all of them for operators.

    Inactive users have none.
    """
    if is_operator(user):
        return Project.objects.all()
    # By their ids, from which the database knows how many rows a project has. Behind a query of memberships, it expects
    # few, and reads those of a large project one by one.
    return Project.objects.filter(pk__in=joined(user, role))


def joined(user: Any, role: str = VIEWER) -> list[str]:
    """Return the ids of the projects in which a membership gives the user at least *role*. Operators need none."""
    enough = at_least(role)
    return [pk for pk, held in _roles(user).items() if held in enough]


def may(user: Any, role: str, project: Project | str | None) -> bool:
    """
    Return whether the user has at least *role* in a project.

    Args:
        project: The project or its id. None stands for what all projects share, which members read and only operators
            change.
    """
    enough = at_least(role)
    if is_operator(user):
        return True
    if project is None:
        return role == VIEWER and is_member(user)
    key = project.pk if isinstance(project, Project) else project
    return _roles(user).get(key, "") in enough


def is_member(user: Any, role: str = VIEWER) -> bool:
    """Return whether the user has at least *role* in some project. Operators have, even if there is no project."""
    enough = at_least(role)
    return is_operator(user) or any(held in enough for held in _roles(user).values())


def keeps_access(user: Any, permission: str) -> Callable[[], bool]:
    """
    Return a function that reads anew whether the user still sees all projects that they see now.

    Args:
        permission: What the user must still be permitted, as ``has_perm`` takes it.
    """
    began = None if is_operator(user) else set(_roles(user))

    def keeps() -> bool:
        present = get_user_model().objects.filter(pk=user.pk, is_active=True, is_staff=True).first()
        if present is None or not present.has_perm(permission):
            return False
        if is_operator(present):
            return True
        # A project that was deleted meanwhile was not taken from the user.
        return began is not None and not Project.objects.filter(pk__in=began - set(_roles(present))).exists()

    return keeps


def _roles(user: Any) -> dict[str, str]:
    """Return the user's role in each of the projects by the project's id."""
    return _kept(user, "roles", lambda: _read_roles(user)) if user.is_active else {}


def _read_roles(user: Any) -> dict[str, str]:
    rows = Membership.objects.filter(user=user.pk, role__in=ROLES).order_by()
    return dict(rows.values_list("project_id", "role"))


def _kept(user: Any, name: str, read: Any) -> Any:
    """Return what *read* returns. The user, whom each request loads anew, keeps it."""
    cache: dict[str, Any] = getattr(user, "_sluicegate_access", {})
    user._sluicegate_access = cache
    if name not in cache:
        cache[name] = read()
    return cache[name]
