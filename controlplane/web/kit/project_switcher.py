"""
The project that somebody works in, which the frame of the admin shows and carries from list to list.

It narrows nothing by itself. It is a filter in the address of each list that has one, and the links of the menu have
it. The session keeps it for pages without such a filter, so that it survives a walk over them.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import Resolver404, resolve, reverse
from django.utils.http import url_has_allowed_host_and_scheme

from controlplane.core.requests import PerRequest
from controlplane.objects.people.roles import VIEWER
from controlplane.objects.people.scope import projects_of
from controlplane.objects.projects.models import Project
from controlplane.web.scope.views import permission_required

KEY = "project"
# Lists by the name of their address, with their filter by a project.
FILTERS = {
    "policies_policy_changelist": "project__id__exact",
    "projects_token_changelist": "project__id__exact",
    "drafts_policydraft_changelist": "project__id__exact",
    "usage_usagerow_changelist": "project_id",
    "usage_meteredrow_changelist": "project_id",
    "usage_deniedrequest_changelist": "project_id",
    "alerts_alertrule_changelist": "project__id__exact",
}
# A statement without a project may be that of a token, which says nothing of the choice.
LINKED = {**FILTERS, "statements_monthrow_changelist": "project"}
SHOWN, MOST_FOUND = 12, 50


@dataclass(frozen=True, slots=True)
class ProjectChoice:
    """
    The choice of a project that the frame of a page offers.

    Attributes:
        chosen: The project, or None for all.
        only: The only project of a member, who has nothing to choose.
        projects: The first projects to choose from.
        has_more: Whether there are others.
    """

    chosen: Project | None
    only: Project | None
    projects: list[Project]
    has_more: bool


def choice(request: HttpRequest) -> ProjectChoice:
    """Return what the frame of a page offers to its user."""
    first = list(_projects(request)[: SHOWN + 1])
    only = first[0] if len(first) == 1 else None
    return ProjectChoice(chosen(request), only, first[:SHOWN] if len(first) > 1 else [], len(first) > SHOWN)


def carried(name: str, project: Project | None) -> str:
    """Return the query that narrows a list to a project, or an empty string if it cannot be, or for None."""
    if project is None or name not in LINKED:
        return ""
    value = project.slug if name not in FILTERS else project.pk
    return f"?{urlencode({LINKED[name]: value})}"


def _projects(request: HttpRequest) -> QuerySet[Project]:
    return projects_of(request.user).only("id", "slug", "name").order_by("slug")


def _found(request: HttpRequest, key: str) -> Project | None:
    """Return the project with this id or slug that the user may see."""
    return _projects(request).filter(Q(pk=key) | Q(slug=key)).first() if key else None


def _chosen(request: HttpRequest) -> Project | None:
    if not request.user.is_authenticated:
        return None
    match, session = request.resolver_match, getattr(request, "session", {})
    name = (match and match.url_name) or ""
    if name in FILTERS and request.method == "GET" and "_popup" not in request.GET:
        project = _found(request, request.GET.get(FILTERS[name], ""))
        _remember(session, project)
        return project
    if match and name == "projects_project_change":
        return _found(request, unquote(match.kwargs["object_id"]))
    list_name = name.replace("_change", "_changelist")
    if list_name in FILTERS and "_changelist_filters" in request.GET:
        key = QueryDict(request.GET["_changelist_filters"]).get(FILTERS[list_name], "")
        return _found(request, key)
    return _found(request, session.get(KEY, ""))


# The project that the address of a page names, or the one that was chosen last, or None for all.
chosen = PerRequest(_chosen)


def _remember(session: Any, project: Project | None) -> None:
    """Keep a choice. The session is written only if it is another one."""
    key = project.pk if project else ""
    if session.get(KEY, "") != key:
        session[KEY] = key


@permission_required(VIEWER)
def choose_view(request: HttpRequest) -> HttpResponse:
    """Keep the project that was chosen and return to where the user was, or return the page that finds projects."""
    back = request.POST.get("next") or request.GET.get("next", "")
    if request.method == "POST":
        key = request.POST.get("project", "")
        project = _found(request, key)
        if key and project is None:
            raise Http404
        _remember(request.session, project)
        return HttpResponseRedirect(_with(back, project, request.get_host()))
    word = request.GET.get("q", "").strip()
    projects = _projects(request)
    if word:
        projects = projects.filter(Q(slug__icontains=word) | Q(name__icontains=word))
    found = list(projects[: MOST_FOUND + 1])
    context = {**admin.site.each_context(request), "title": "Choose a project", "q": word, "next": back}
    context |= {"found": found[:MOST_FOUND], "has_more": len(found) > MOST_FOUND, "most": MOST_FOUND}
    return TemplateResponse(request, "admin/sluicegate/choose_project.html", context)


def _with(back: str, project: Project | None, host: str) -> str:
    """Return the address to return to, with the filter by the project, or the first page if it is not of the admin."""
    start = reverse("admin:index")
    # This also refuses what cannot be split, such as "http://[".
    if not url_has_allowed_host_and_scheme(back, {host}):
        return start
    parts = urlsplit(back)
    if not parts.path.startswith(start):
        return start
    try:
        name = resolve(parts.path).url_name or ""
    except Resolver404:
        return start
    list_name = name.replace("_change", "_changelist") if name.endswith("_change") else name
    if list_name not in FILTERS:
        return reverse("admin:projects_project_changelist") if name == "projects_project_change" else back
    query = QueryDict(parts.query if name == list_name else "", mutable=True)
    for gone in (FILTERS[list_name], "p"):
        query.pop(gone, None)
    if project:
        query[FILTERS[list_name]] = project.pk
    return reverse(f"admin:{list_name}") + (f"?{query.urlencode()}" if query else "")
