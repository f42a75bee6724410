"""What keeps each page of the admin to the projects of the user."""

from collections.abc import Callable
from functools import reduce, wraps
from operator import or_
from typing import Any, ClassVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse

from controlplane.access.roles import EDITOR, OWNER, VIEWER
from controlplane.access.scope import is_member, is_operator, may, projects_of
from controlplane.projects.models import Project

__all__ = ["EDITOR", "OWNER", "VIEWER", "ScopedAdmin", "check", "operators_only", "permission_required", "project_for"]


class ScopedAdmin:
    """
    A mixin that narrows the rows and the permissions of a page to the projects of the user. It comes before ModelAdmin.

    Each page names the way from its row to the id of a project in ``project_path``, such as "project_id",
    "policy__project_id", or "pk" for projects themselves. A page without any is for operators only. A row for which
    all paths lead to None is shared: with ``shared``, members read it, and only operators change it.
    """

    project_path: ClassVar[str | tuple[str, ...]] = ()
    shared: ClassVar[bool] = False
    # The least role in the project of a row for each kind of access. None stands for operators.
    roles: ClassVar[dict[str, str | None]] = {"view": VIEWER, "add": EDITOR, "change": EDITOR, "delete": EDITOR}

    @property
    def project_paths(self) -> tuple[str, ...]:
        return (self.project_path,) if isinstance(self.project_path, str) else self.project_path

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """Return the query of the rows that the user may see, from which Django makes lists, pages and searches."""
        return self.narrowed(super().get_queryset(request), request.user)

    def narrowed(self, rows: QuerySet, user: Any) -> QuerySet:
        """Return those of *rows* that the user may see."""
        if is_operator(user):
            return rows
        if (role := self.roles["view"]) is None or not self.project_paths:
            return rows.none()
        projects = projects_of(user, role).values("pk")
        found = reduce(or_, (Q(**{f"{path}__in": projects}) for path in self.project_paths))
        if self.shared and is_member(user):
            found |= Q(**{f"{path}__isnull": True for path in self.project_paths})
        return rows.filter(found)

    def project_of(self, row: Model) -> str | None:
        """Return the id of the project that a row belongs to, or None if all projects share it."""
        return next(filter(None, (_follow(row, path) for path in self.project_paths)), None)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self._allowed(request, "view", obj) and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._allowed(request, "add", None) and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self._allowed(request, "change", obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self._allowed(request, "delete", obj) and super().has_delete_permission(request, obj)

    def _allowed(self, request: HttpRequest, kind: str, obj: Model | None) -> bool:
        role = self.roles[kind]
        if role is None or not self.project_paths:
            return is_operator(request.user)
        if obj is None:
            return is_member(request.user, role)
        project = self.project_of(obj)
        return may(request.user, role, project) if project or self.shared else is_operator(request.user)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        """Return the field with the rows that the user may choose, which the page of that model narrows."""
        options["queryset"] = self._choices(db_field, request, options.get("queryset"))
        return super().formfield_for_foreignkey(db_field, request, **options)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        options["queryset"] = self._choices(db_field, request, options.get("queryset"))
        return super().formfield_for_manytomany(db_field, request, **options)

    def _choices(self, db_field: Any, request: HttpRequest, rows: QuerySet | None) -> QuerySet:
        model = db_field.remote_field.model
        rows = model._default_manager.all() if rows is None else rows
        if model is Project:  # of a new row, whose project the user must be allowed to change
            return rows.filter(pk__in=projects_of(request.user, self.roles["add"] or OWNER).values("pk"))
        page = admin.site._registry.get(model)
        return page.narrowed(rows, request.user) if isinstance(page, ScopedAdmin) else rows


def _follow(row: Model, path: str) -> str | None:
    """Return the value at the end of a path such as "policy__project_id", or None if something on it is None."""
    value: Any = row
    for name in path.split("__"):
        value = getattr(value, name) if value is not None else None
    return value or None


def check(request: HttpRequest, role: str, project: Project | str | None) -> None:
    """
    Do nothing if the user has at least *role* in a project. None stands for what all projects share.

    Raises:
        Http404: The user may not even see the project, so that nothing says whether it exists.
        PermissionDenied: The user may see the project and has a lower role.
    """
    if not may(request.user, VIEWER, project):
        raise Http404
    if not may(request.user, role, project):
        raise PermissionDenied


def project_for(request: HttpRequest, role: str = VIEWER, **lookup: Any) -> Project:
    """
    Return the project with this ``slug`` or ``pk``, in which the user has at least *role*.

    Raises:
        Http404: There is no such project, or the user may not see it.
        PermissionDenied: The user may see the project and has a lower role.
    """
    project = projects_of(request.user).filter(**lookup).first()
    if project is None:
        raise Http404
    check(request, role, project)
    return project


View = Callable[..., HttpResponse]


def permission_required(role: str) -> Callable[[View], View]:
    """
    Return a decorator for a view of the admin, which answers 403 unless the user has at least *role* in some project.

    The view narrows what it reads by projects_of() and checks what it changes by check(). It may be a method.
    """
    return _guarded(lambda user: is_member(user, role))


def operators_only(view: View) -> View:
    """Return the view, which answers 403 to everybody but operators. It may be a method."""
    return _guarded(is_operator)(view)


def _guarded(allows: Callable[[Any], bool]) -> Callable[[View], View]:
    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kw: Any) -> HttpResponse:
            request = next(arg for arg in args if isinstance(arg, HttpRequest))
            if not allows(request.user):
                raise PermissionDenied
            return view(*args, **kw)

        return guarded

    return decorate
