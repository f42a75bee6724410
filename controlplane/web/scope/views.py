"""Base classes that keep each page of the admin to the projects of the user."""

from collections.abc import Callable
from functools import reduce, wraps
from operator import or_
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse

from controlplane.objects.people.roles import EDITOR, OWNER, VIEWER
from controlplane.objects.people.scope import is_member, is_operator, joined, may, projects_of
from controlplane.objects.projects.models import Project


class ScopedAdmin:
    """
    A mixin that narrows the rows and the permissions of a page to the projects of the user. It comes before ModelAdmin.

    Each page names the way from its row to the id of a project in ``project_path``, such as "project_id",
    "policy__project_id", or "pk" for projects themselves. Without any, and without ``shared``, only operators see it.

    Attributes:
        project_path: One path or several. A row belongs to each project that one of them leads to.
        shared: Whether members read the rows that belong to no project. Only operators change them.
        roles: The least role in the project of a row for each kind of access. None stands for operators.
        linked_filters: Columns by which pages link to the list, besides those of its filters.
    """

    project_path: ClassVar[str | tuple[str, ...]] = ()
    shared: ClassVar[bool] = False
    roles: ClassVar[dict[str, str | None]] = {"view": VIEWER, "add": EDITOR, "change": EDITOR, "delete": EDITOR}
    linked_filters: ClassVar[tuple[str, ...]] = ()

    @property
    def project_paths(self) -> tuple[str, ...]:
        return (self.project_path,) if isinstance(self.project_path, str) else self.project_path

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """Return the query of the rows that the user may see, from which Django makes lists, pages and searches."""
        return self.narrowed(super().get_queryset(request), request.user)

    def narrowed(self, rows: QuerySet, user: Any, kind: str = "view") -> QuerySet:
        """Return those of *rows* to which the user has this kind of access."""
        if is_operator(user):
            return rows
        role, found = self.roles[kind], Q(pk__in=())
        if role is not None and self.project_paths:
            # Without a query of the projects, which the database would join to each row.
            projects = joined(user, role)
            found = reduce(or_, (Q(**{f"{path}__in": projects}) for path in self.project_paths))
        if self.shared and kind == "view" and is_member(user):
            if not self.project_paths:
                return rows
            found |= Q(**{f"{path}__isnull": True for path in self.project_paths})
        return rows.filter(found)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.allows(request, "view", obj) and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.allows(request, "add") and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.allows(request, "change", obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.allows(request, "delete", obj) and super().has_delete_permission(request, obj)

    def allows(self, request: HttpRequest, kind: str, obj: Model | str | None = None) -> bool:
        """
        Return whether the user has this kind of access to a row, or without one to some row.

        Args:
            obj: The row, or its key as an address has it, as the theme's actions give it.
        """
        if isinstance(obj, str):
            obj = self.model._default_manager.filter(pk=unquote(obj)).first()
        if is_operator(request.user):
            return True
        if obj is None:
            role = self.roles[kind]
            reads_shared = self.shared and kind == "view"
            return bool(reads_shared or (role and self.project_paths)) and is_member(request.user, role or VIEWER)
        return self.narrowed(self.model._default_manager.filter(pk=obj.pk), request.user, kind).exists()

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """
        Return whether an address may filter the list so. Members filter only by what the list offers.

        Django allows every column, also one that no page shows, such as the digest of a secret, and the rows of other
        projects that refer to a shared one. The number of hits would tell their values, one character at a time.
        """
        if not super().lookup_allowed(lookup, value, request):
            return False
        column = lookup.partition("__")[0]
        if request is None or is_operator(request.user) or column in self._filtered_by(request):
            return True
        # A name that is no column, such as that of a filter by time, reads nothing.
        return column not in {"pk", *_names(self.model)}

    def _filtered_by(self, request: HttpRequest) -> set[str]:
        """Return the columns and parameters by which the list or a link to it filters."""
        given = [one[0] if isinstance(one, tuple | list) else one for one in self.get_list_filter(request)]
        return {*self.linked_filters, *(one if isinstance(one, str) else one.parameter_name for one in given)}

    def sees(self, request: HttpRequest, key: Any) -> bool:
        """Return whether there is a row with this primary key that the user may see."""
        try:
            return self.get_queryset(request).filter(pk=key).exists()
        except (ValueError, ValidationError):  # it cannot be a key of this model
            return False

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        self.check_saved(request, obj, change)

    def check_saved(self, request: HttpRequest, obj: Model, change: bool) -> None:
        """
        Do nothing if the user may have the row that was just saved, with its new values.

        Raises:
            PermissionDenied: The row belongs to a project in which the user may not change it. What was saved is
                undone, because the request runs in one transaction.
        """
        if not self.allows(request, "change" if change else "add", obj):
            raise PermissionDenied

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        """Answer 404, also for a row that the user may not see, instead of leading to the first page."""
        raise Http404

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        """Return the field with the rows that the user may choose. Only operators leave out the project of a row."""
        options["queryset"] = self.choices(db_field.remote_field.model, request.user, options.get("queryset"))
        field = super().formfield_for_foreignkey(db_field, request, **options)
        if field is not None and f"{db_field.name}_id" == self.project_path:
            field.required = field.required or not is_operator(request.user)
        return field

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        options["queryset"] = self.choices(db_field.remote_field.model, request.user, options.get("queryset"))
        return super().formfield_for_manytomany(db_field, request, **options)

    def choices(self, model: type[Model], user: Any, rows: QuerySet | None = None) -> QuerySet:
        """Return those of the rows of another model that the user may choose in the form of this page."""
        rows = model._default_manager.all() if rows is None else rows
        if model is Project:  # to which the user must be allowed to add
            return rows.filter(pk__in=projects_of(user, self.roles["add"] or OWNER).values("pk"))
        page = admin.site._registry.get(model)
        return page.narrowed(rows, user) if isinstance(page, ScopedAdmin) else rows


def _names(model: type[Model]) -> set[str]:
    """Return the names of a model's columns and of the relations that lead to it, as a query has them."""
    fields = model._meta.get_fields(include_hidden=True)
    return {field.name for field in fields} | {getattr(field, "attname", field.name) for field in fields}


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
