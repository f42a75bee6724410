from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from django.db.models import OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.decorators import display
from unfold.widgets import UnfoldAdminRadioSelectWidget

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.tables.counting import CappedCount, as_capped
from controlplane.core.tables.paging import CappedPaginator
from controlplane.objects.emergency.models import suspended
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.roles import EDITOR, OWNER, VIEWER
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.actions import issue_token, revoke_token, rotate_token
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs import many_tokens
from controlplane.releases.publishing.models import RepairedKey
from controlplane.releases.revisions.links import revision_of
from controlplane.releases.revisions.listing import seconds
from controlplane.web.kit.deletion import chosen
from controlplane.web.kit.dialogs import Asking, Page, RowAction
from controlplane.web.kit.filters import EndsFilter, LabelFilter, RowFilter
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.from_files import ManagedPage, with_mark
from controlplane.web.kit.links import statement_url
from controlplane.web.kit.parts import Column, Panel
from controlplane.web.kit.secret import secret_page
from controlplane.web.kit.site import (
    badge,
    change_url,
    confirmed,
    in_dialog,
    instant,
    link_to,
    links,
    list_url,
    list_url_of_audit,
)
from controlplane.web.kit.snippets import token_snippets
from controlplane.web.kit.state import state_of
from controlplane.web.kit.tags import tag
from controlplane.web.pages.counters import (
    COUNTERS_VIEW,
    LIVE_COUNTERS,
    ResetProjectDialog,
    ResetTokenDialog,
    resetting,
)
from controlplane.web.pages.credentials import (
    OWNER_LABEL,
    TOKEN_SEARCH,
    CredentialAdmin,
    StatusFilter,
    TokenForm,
    revoking,
)
from controlplane.web.pages.emergency.suspending import RESUME, SUSPEND, SuspendedFilter, with_suspension
from controlplane.web.pages.near import NEAREST, USAGE_DAY, NearFilter
from controlplane.web.pages.overrides.links import RAISE_LIMIT
from controlplane.web.pages.people import attempts, memberships, users  # noqa: F401  (they register more pages)
from controlplane.web.pages.review.attached_admin import settle_attachment
from controlplane.web.pages.review.views import reviewed
from controlplane.web.pages.tokens.bulk import BULK_ACTIONS, author
from controlplane.web.pages.tokens.hygiene import HYGIENE, HygieneFilter
from controlplane.web.pages.tokens.labels import LABELS_LINK, LABELS_VIEW, label_query, linked_labels, usage_url
from controlplane.web.pages.tokens.secret_search import BY_SECRET_VIEW
from controlplane.web.scope.rows import RowScope

# What the page says above all else, such as that a token is revoked.
STATE_LINE = "admin/sluicegate/state_line.html"


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
    list_filter = ["active", SuspendedFilter, NearFilter]
    search_fields = ["slug", "name"]
    asked_name = str
    steps, settle = (reviewed,), (settle_attachment,)
    autocomplete_fields = ["policy", "anonymous_policy", "token_policy"]
    readonly_fields = ["related"]
    row_actions = (RAISE_LIMIT, resetting(ResetProjectDialog), SUSPEND, RESUME)
    columns = (NEAREST, LIVE_TOKENS)
    panels, views = (Panel(name="state_line", template=STATE_LINE), LIVE_COUNTERS, USAGE_DAY), (COUNTERS_VIEW,)
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


class RotateDialog(ReasonDialog):
    OVERLAPS = (
        ("0", "End it now (the old secret has leaked)"),
        ("3600", "One hour"),
        ("86400", "One day"),
        ("604800", "One week"),
    )
    overlap = forms.ChoiceField(
        choices=OVERLAPS,
        initial="86400",
        label="How long the old secret stays valid",
        widget=UnfoldAdminRadioSelectWidget,
    )
    field_order = ["overlap", "reason"]

    def clean(self) -> dict[str, Any]:
        # The action has checked that the user may see the token.
        token = Token.objects.get(pk=unquote(self.object_id))
        if not token.is_live:
            # A dialog shows only errors that belong to a field.
            self.add_error("overlap", f"This token is {token.status}. Only an active token can be rotated.")
        return super().clean()


def without_policy(token: Token) -> str:
    """Return a sentence or two on what applies to a token that has no policy of its own."""
    others = Policy.objects.filter(Q(is_global=True) | Q(pk=token.project.policy_id)).values_list("slug", flat=True)
    if others:
        return f"This token has no policy of its own. Only limits that it shares apply to it: {', '.join(others)}."
    return "No limit applies to this token, so every request with it passes. Choose a policy for it or for its project."


def issue_from_form(tx: OpenChange, policy: Policy | None, **fields: Any) -> tuple[Token, str]:
    """Issue a token. If no policy is chosen, it gets that of the new tokens of its project."""
    return issue_token(tx, **fields, **({"policy": policy} if policy else {}))


def examples(request: HttpRequest, secret: str) -> list[tuple[str, str, str]]:
    """Return examples of how to use a token, each with its id, title and code."""
    return token_snippets(secret)


@dataclass(frozen=True, slots=True)
class Revocation:
    """How fast the instances had the revocation of a token: the revision that has it, a number, and a time."""

    published: str = ""
    had_by: str = ""
    had_after: str = ""


def revocation_of(request: HttpRequest, token: Token) -> Revocation:
    revision = revision_of("token", token.pk, "token.revoke") if token.revoked_at else None
    if revision is None:
        return Revocation()
    counted = request.user.has_perm("fleet.view_instance") and revision.instances
    had_by = f"{revision.live_on} of {revision.instances}" if counted else ""
    return Revocation(link_to(revision, f"revision {revision.number}"), had_by, seconds(revision.lag_ms))


REVOCATION = Panel(name="revocation", template=STATE_LINE, answer=revocation_of)


def rotate(page: Page, request: HttpRequest, form: RotateDialog, object_id: str) -> HttpResponse:
    """Issue the successor of a token. Its secret is shown on a whole page, because a click beside a dialog loses it."""
    if in_dialog(request):
        return confirmed()
    try:
        with page.changing(request, form.cleaned_data["reason"]) as tx:
            token = page.present(request, object_id)
            issued, secret = rotate_token(tx, token, int(form.cleaned_data["overlap"]))
            page.message_user(request, f"{issued} replaces {token}.", messages.SUCCESS)
    except ValidationError as exc:  # another request has ended the token meanwhile
        messages.error(request, " ".join(exc.messages))
        return HttpResponseRedirect(list_url(Token))
    return secret_page(page, request, issued, secret, token_snippets(secret), former=token)


ROTATE = RowAction(
    name="rotate",
    title="Rotate",
    icon="autorenew",
    answer=rotate,
    dialog=Asking(
        title="Rotate this token",
        description="A new token with a new secret gets the same name, policy, labels, overrides and life span.",
        submit="Create the new secret",
        form=RotateDialog,
    ),
)
REVOKE = revoking(
    revoke_token,
    Asking(
        title="Revoke this token",
        description="Every proxy refuses it from now on. This cannot be undone. A new token has a new secret.",
        submit="Revoke token",
    ),
)


class TokenStatusFilter(StatusFilter):
    """A filter by status, which also finds the live tokens that every proxy refuses for now."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        active, *others = super().lookups(request, model_admin)
        return [active, ("suspended", "suspended"), *others]

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        if self.value() == "suspended":
            return rows.live(timezone.now()).filter(suspended(timezone.now()))
        return super().queryset(request, rows)


class TokenPaginator(CappedPaginator):
    """A paginator of tokens, of whose last use only the day has an index, because the time changes each minute."""

    coarser: ClassVar[dict[str, str]] = {"last_used_at": "last_used_on"}


@admin.register(Token)
class TokenAdmin(
    CredentialAdmin,
):
    form = TokenForm
    paginator = TokenPaginator
    list_display = [
        *("name", "shown_prefix", "project_link", "state", "owner", "policy_link", "label_list"),
        *("nearest", "last_used", "ends", "created"),
    ]
    list_filter = [
        TokenStatusFilter,
        EndsFilter,
        HygieneFilter,
        NearFilter,
        ("project", RowFilter),
        ("policy", RowFilter),
        LabelFilter,
    ]
    list_select_related = ["project", "policy", "suspension"]
    autocomplete_fields = ["project", "policy"]
    readonly_fields = ["project_link", "shown_prefix", "state", "last_used", "created", "related"]
    add_fieldsets = [(None, {"fields": ["project", "name", "policy", "labels", "expires_at"]})]
    fieldsets = [
        (None, {"fields": ["project_link", "name", "policy", "labels", "expires_at"]}),
        ("Details", {"fields": ["state", "shown_prefix", "last_used", "created", "related"]}),
    ]
    bulk_actions, most_at_once, counted_by = BULK_ACTIONS, many_tokens.MOST_IN_A_JOB, "project_id"
    row_actions = (RAISE_LIMIT, resetting(ResetTokenDialog), SUSPEND, RESUME, ROTATE, REVOKE)
    columns = (NEAREST,)
    panels, list_panels = (REVOCATION, LIVE_COUNTERS, USAGE_DAY), (HYGIENE, LABELS_LINK)
    views = (COUNTERS_VIEW, LABELS_VIEW, BY_SECRET_VIEW)
    search = TOKEN_SEARCH
    steps, settle = (reviewed,), (settle_attachment,)
    issued = ("project", "name", "policy", "labels", "expires_at")
    empty = (
        "A token is the credential of a client. Its secret is shown once, when it is created. Proxies know its digest.",
        "Create the first token",
    )
    scope = RowScope(paths=("project_id",))
    issue = staticmethod(issue_from_form)
    snippets = staticmethod(examples)

    def get_fieldsets(self, request: HttpRequest, obj: Token | None = None) -> list[Any]:
        """Return the fields, of which those who may not change them read two as the list shows them."""
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return fieldsets
        read = {"labels": "label_list", "expires_at": "ends"}
        return [(title, {**it, "fields": [read.get(name, name) for name in it["fields"]]}) for title, it in fieldsets]

    @display(description="Status")
    def state(self, token: Token) -> str:
        if not token.is_live:
            return super().state(token)
        # Rotation has made another token of the same name, which stays.
        retiring = tag("retiring", "autorenew", "warn", "Another token has replaced it, and it ends by itself.")
        shown = retiring if token.replaced_by_id else super().state(token)
        return with_suspension(shown, token)

    @display(description="Project", ordering="project__slug")
    def project_link(self, token: Token) -> str:
        return link_to(token.project)

    @display(description="Owner")
    def owner(self, token: Token) -> str:
        """Return the value of the label "owner", with a link to the tokens of the same owner."""
        name = token.labels.get(OWNER_LABEL)
        return links([(name, list_url(Token, f"?{label_query(OWNER_LABEL, name)}"))]) if name else "—"

    @display(description="Labels")
    def label_list(self, token: Token) -> str:
        return linked_labels(token) or "—"

    @display(description="Policy", ordering="policy__slug")
    def policy_link(self, token: Token) -> str:
        return link_to(token.policy)

    @display(description="Links")
    def related(self, token: Token) -> str:
        return links(
            [
                ("overrides", list_url(Override, f"?token__id__exact={token.pk}")),
                ("usage by month", statement_url(token=token.pk)),
                ("explain a denial", f"{reverse('explain-denial')}?token={token.pk}"),
                ("audit entries", list_url_of_audit(token)),
                *((f"usage of {name}={value}", usage_url(name, value)) for name, value in token.labels.items()),
            ]
        )

    def response_add(self, request: HttpRequest, obj: Token, post_url_continue: str | None = None) -> HttpResponse:
        response = super().response_add(request, obj, post_url_continue)
        if obj.policy_id is None:
            self.message_user(request, without_policy(obj), messages.WARNING)
        elif not request.POST.get("policy"):
            text = f"It has the policy of new tokens of {obj.project}, which is {obj.policy}."
            self.message_user(request, text, messages.INFO)
        return response

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Return what the form begins with, which is also the project if there is only one to choose."""
        mine = list(projects_of(request.user, EDITOR).values_list("pk", flat=True)[:2])
        sole = {"project": mine[0]} if len(mine) == 1 else {}
        return {**sole, **super().get_changeform_initial_data(request)}
