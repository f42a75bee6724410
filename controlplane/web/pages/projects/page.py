"""The pages of projects."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.db.models import OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html
from unfold.decorators import display

from controlplane.core.tables.counting import CappedCount, as_capped
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.roles import EDITOR, OWNER, VIEWER
from controlplane.objects.people.scope import is_operator
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs import many_tokens
from controlplane.releases.publishing.models import RepairedKey
from controlplane.web.kit.deletion import chosen
from controlplane.web.kit.from_files import ManagedPage, with_mark
from controlplane.web.kit.links import statement_url
from controlplane.web.kit.parts import Column
from controlplane.web.kit.site import (
    badge,
    change_url,
    instant,
    link_to,
    links,
    list_url,
)
from controlplane.web.kit.state import state_of
from controlplane.web.pages.counters import (
    COUNTERS_VIEW,
    LIVE_COUNTERS,
    ResetProjectDialog,
    resetting,
)
from controlplane.web.pages.emergency.state_line import STATE_LINE
from controlplane.web.pages.emergency.suspending import RESUME, SUSPEND, SUSPENDED_FILTER, with_suspension
from controlplane.web.pages.near import NEAR_FILTER, NEAREST, USAGE_DAY
from controlplane.web.pages.overrides.links import RAISE_LIMIT
from controlplane.web.pages.review.attached_admin import settle_attachment
from controlplane.web.pages.review.views import reviewed
from controlplane.web.pages.tokens.bulk import author
from controlplane.web.scope.rows import RowScope


def live_tokens(projects: Sequence[Project], request: HttpRequest) -> dict[str, int]:
    """Return the number of the live tokens of each of the projects on the page, because this counts all of theirs."""
    live = CappedCount(Token.objects.live(timezone.now()).filter(project=OuterRef("pk")))
    shown = Project.objects.filter(pk__in=[project.pk for project in projects]).order_by()
    return dict(shown.annotate(live=live).values_list("pk", "live"))


def linked_tokens(project: Project, live: dict[str, int]) -> str:
    count = as_capped(live.get(project.pk, 0))
    return links([(f"{count:,}", list_url(Token, f"?project__id__exact={project.pk}"))])


LIVE_TOKENS = Column(name="token_count", title="Live tokens", read=live_tokens, show=linked_tokens)


@admin.register(Project)
class ProjectAdmin(
    ManagedPage,
):
    list_display = ["slug", "name", "state", "policy_link", "token_count", "nearest", "created"]
    ordering = ["slug"]
    list_filter = ["active", SUSPENDED_FILTER, NEAR_FILTER]
    search_fields = ["slug", "name"]
    asked_name = str
    steps, settle = (reviewed,), (settle_attachment,)
    autocomplete_fields = ["policy", "anonymous_policy", "token_policy"]
    readonly_fields = ["related"]
    row_actions = (RAISE_LIMIT, resetting(ResetProjectDialog), SUSPEND, RESUME)
    columns = (NEAREST, LIVE_TOKENS)
    panels, views = (STATE_LINE, LIVE_COUNTERS, USAGE_DAY), (COUNTERS_VIEW,)
    policies = linked_filters = ("policy", "anonymous_policy", "token_policy")
    add_fieldsets = [(None, {"fields": ["slug", "name", *policies, "active", "partition_cap", "time_zone"]})]
    fieldsets = [*add_fieldsets, ("Related objects", {"fields": ["related"]})]
    empty = ("A project is a tenant. It owns tokens, and limits that all of them share.", "Add the first project")
    scope = RowScope(paths=("pk",), roles={"view": VIEWER, "add": None, "change": EDITOR, "delete": OWNER})

    def get_readonly_fields(self, request: HttpRequest, obj: Project | None = None) -> list[str]:
        """Return more fields for members, who do not change what is for operators."""
        fixed = [] if is_operator(request.user) else Project.FOR_OPERATORS
        return [*super().get_readonly_fields(request, obj), "intake", *fixed]

    def get_fieldsets(self, request: HttpRequest, obj: Project | None = None) -> Any:
        own = [("Account of the store", {"fields": ["intake"]})] if obj is not None and obj.has_intake else []
        return [*super().get_fieldsets(request, obj), *own]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        return super().get_queryset(request).select_related("policy", "suspension")

    def deletion(self, request: HttpRequest, object_id: str, context: dict[str, Any]) -> HttpResponse:
        """Return the page that asks, or delete the project. A job deletes one that has many tokens."""
        is_job = many_tokens.is_large([self.key_of(object_id)])
        return super().deletion(request, object_id, {**context, "is_job": is_job})

    def delete_model(self, request: HttpRequest, obj: Project) -> None:
        state = state_of(request)
        state.started = None  # an attempt that was undone may have set it
        if many_tokens.is_large([obj.pk]):
            state.started = many_tokens.start_deletion(state.tx, obj, **author(request))
        else:
            super().delete_model(request, obj)

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: str) -> HttpResponse:
        job = state_of(request).started
        if job is None:
            return super().response_delete(request, obj_display, obj_id)
        text = f"{obj_display} is inactive, and a job deletes it with all of its tokens."
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(change_url(job))

    def response_action(self, request: HttpRequest, queryset: QuerySet[Project]) -> HttpResponse | None:
        is_deletion = request.POST.get("action") == "delete_selected"
        if is_deletion and many_tokens.is_large(chosen(request, queryset).order_by().values("pk")):
            most = many_tokens.MOST_IN_A_REQUEST
            text = f"These projects have more than {most:,} tokens together. Delete each of them on its own page."
            messages.error(request, text)
            return None
        return super().response_action(request, queryset)

    @display(description="State", ordering="active")
    def state(self, project: Project) -> str:
        shown = badge("active", "good") if project.active else badge("inactive", "bad")
        return with_mark(with_suspension(shown, project), project)

    @display(description="Policy", ordering="policy__slug")
    def policy_link(self, project: Project) -> str:
        return link_to(project.policy)

    @display(description="Created", ordering="created_at")
    def created(self, project: Project) -> str:
        return instant(project.created_at)

    @display(description="Usage")
    def intake(self, project: Project) -> str:
        status = (
            "It is limited to this project, and its usage comes by a stream of its own. If it was made without "
            "--no-global (manage.py store_acl), its proxies may also write the counters of the global policy, and so "
            "admit or deny requests of all projects under its limits."
        )
        if repaired := RepairedKey.objects.filter(project_id=project.pk).first():
            at, times = instant(repaired.last_at), "once" if repaired.times == 1 else f"{repaired.times:,} times"
            text = "{} Somebody spoilt this stream, so it was deleted with what it held: {}, last at {}, because {}."
            return format_html(text, status, times, at, repaired.reason)
        return status

    @display(description="Links")
    def related(self, project: Project) -> str:
        return links(
            [
                ("tokens", list_url(Token, f"?project__id__exact={project.pk}")),
                ("usage by month", statement_url(project=project.slug)),
                ("own policies", list_url(Policy, f"?project__id__exact={project.pk}")),
                ("overrides", list_url(Override, f"?project__id__exact={project.pk}")),
            ]
        )
