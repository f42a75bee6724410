"""Checks of the role of a user, for views of the admin that are not pages of a model."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse

from controlplane.objects.people.roles import VIEWER
from controlplane.objects.people.scope import is_member, may
from controlplane.objects.projects.models import Project

type View[**P] = Callable[Concatenate[HttpRequest, P], HttpResponse]


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


def permission_required[**P](role: str) -> Callable[[View[P]], View[P]]:
    """
    Return a decorator for a view of the admin, which answers 403 unless the user has at least *role* in some project.

    The view narrows what it reads by projects_of() and checks what it changes by check().
    """

    def decorate(view: View[P]) -> View[P]:
        @wraps(view)
        def guarded(request: HttpRequest, /, *args: P.args, **kw: P.kwargs) -> HttpResponse:
            if not is_member(request.user, role):
                raise PermissionDenied
            return view(request, *args, **kw)

        return guarded

    return decorate
