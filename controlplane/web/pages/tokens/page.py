"""The pages of tokens."""

from dataclasses import replace
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from unfold.decorators import display

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.tables.paging import CappedPaginator
from controlplane.objects.emergency.models import suspended
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import projects_of
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Token
from controlplane.operations.jobs import many_tokens
from controlplane.web.kit.filters import EndsFilter, LabelFilter, RowFilter, label_of
from controlplane.web.kit.forms import LabelsField, RecordedForm
from controlplane.web.kit.links import statement_url
from controlplane.web.kit.site import (
    link_to,
    links,
    list_url,
    list_url_of_audit,
)
from controlplane.web.kit.snippets import token_snippets
from controlplane.web.kit.tags import tag
from controlplane.web.pages.counters import (
    COUNTERS_VIEW,
    LIVE_COUNTERS,
    ResetTokenDialog,
    resetting,
)
from controlplane.web.pages.emergency.state_line import STATE_LINE
from controlplane.web.pages.emergency.suspending import RESUME, SUSPEND, with_suspension
from controlplane.web.pages.near import NEAR_FILTER, NEAREST, USAGE_DAY
from controlplane.web.pages.overrides.links import RAISE_LIMIT
from controlplane.web.pages.review.attached_admin import settle_attachment
from controlplane.web.pages.review.views import reviewed
from controlplane.web.pages.tokens.bulk import BULK_ACTIONS
from controlplane.web.pages.tokens.credentials import (
    CREDENTIAL_SEARCH,
    STATUS_FILTER,
    STATUSES,
    CredentialAdmin,
    with_status,
)
from controlplane.web.pages.tokens.hygiene import HYGIENE, HYGIENE_FILTER
from controlplane.web.pages.tokens.labels import LABELS_LINK, LABELS_VIEW, label_query, linked_labels, usage_url
from controlplane.web.pages.tokens.rotating import REVOKE, ROTATE
from controlplane.web.pages.tokens.secret_search import BY_SECRET_VIEW, read_secrets
from controlplane.web.scope.rows import RowScope

# The label that says who is responsible for a token.
OWNER_LABEL = "owner"
# A word that is in the slugs of more projects than this finds the tokens of the first ones.
MOST_PROJECTS = 100


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


class TokenForm(RecordedForm):
    labels = LabelsField(
        required=False,
        help_text="One label on each line, such as team = red. Limits count by label.team and match it, and lists "
        "filter by it. Clients cannot change labels.",
    )


def projects_named(request: HttpRequest, word: str) -> Q:
    """Return the condition of the tokens of projects whose slug has a word."""
    # Their ids, because a condition on a joined table keeps the database from its indexes of tokens.
    projects = projects_of(request.user).filter(slug__icontains=word).order_by("slug")
    return Q(project_id__in=list(projects.values_list("pk", flat=True)[:MOST_PROJECTS]))


def read_labels(rows: Any, words: list[str]) -> tuple[Any, list[str]]:
    """Return the tokens with the labels that words such as team=red name, and the other words."""
    others = []
    for word in words:
        try:
            name, value = label_of(word)
        except ValueError:
            value = None
        if value is None:
            others.append(word)
        else:
            rows = rows.with_label(name, value)
    return rows, others


TOKEN_SEARCH = replace(
    CREDENTIAL_SEARCH,
    parts=("labels",),
    help=(
        "Name, label such as team=red, project, id",
        "Beginning of a name, label such as team=red, project, id",
    ),
    has_few_rows=False,
    readings=(read_labels, read_secrets),
    also=projects_named,
)


def with_token_status(rows: Any, status: str, request: HttpRequest) -> QuerySet[Token]:
    """Return the tokens with this status, which may also be that every proxy refuses them for now."""
    if status == "suspended":
        return rows.live(timezone.now()).filter(suspended(timezone.now()))
    return with_status(rows, status, request)


TOKEN_STATUS_FILTER = replace(
    STATUS_FILTER, choices=[*STATUSES[:1], ("suspended", "suspended"), *STATUSES[1:]], narrow=with_token_status
)


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
        TOKEN_STATUS_FILTER,
        EndsFilter,
        HYGIENE_FILTER,
        NEAR_FILTER,
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
    panels, list_panels = (STATE_LINE, LIVE_COUNTERS, USAGE_DAY), (HYGIENE, LABELS_LINK)
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

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
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
