"""
The actions on many tokens in their list.

An action asks with the number of the tokens, the first of them and the search that found them. It changes some hundred
at once. For more, it starts a job, and leads to its page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from unfold.widgets import UnfoldAdminTextInputWidget

from controlplane.core.tables.digests import Summary, summary_of
from controlplane.core.text import PRINTABLE, unprintable
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token, check_is_future, isoformat
from controlplane.operations.jobs import many_tokens, run
from controlplane.releases.review.attaching import tokens_review
from controlplane.releases.review.labelling import labels_review
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.filters import label_of
from controlplane.web.kit.forms import BACK, InstantInput
from controlplane.web.kit.parts import BulkAction
from controlplane.web.kit.selection import selection
from controlplane.web.kit.site import actor_of, change_url
from controlplane.web.kit.state import state_of
from controlplane.web.kit.times import zone_name
from controlplane.web.pages.review.views import settle


class BulkForm(forms.Form):
    """
    The reason of a change of many tokens, and in other forms what they get.

    Attributes:
        name: The name of the token, or of several the number.
    """

    change_reason = forms.CharField(
        max_length=500, label="Reason", validators=[PRINTABLE], widget=UnfoldAdminTextInputWidget
    )

    def __init__(self, *args: Any, projects: list[Project], name: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.projects, self.name = projects, name
        self.order_fields([name for name in self.fields if name != "change_reason"])

    def arguments(self) -> dict[str, Any]:
        """Return what the job needs, from a valid form."""
        return {}


class BulkDeletionForm(BulkForm):
    asked_name = forms.CharField(max_length=200, widget=UnfoldAdminTextInputWidget)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["asked_name"].label = f"Type {self.name} to delete"

    def clean_asked_name(self) -> str:
        if self.cleaned_data["asked_name"].strip() != self.name:
            raise ValidationError(f"Type {self.name} to delete. Nothing is deleted yet.")
        return self.name


class BulkPolicyForm(BulkForm):
    policy = forms.CharField(
        required=False,
        max_length=63,
        label="Slug of the policy",
        widget=UnfoldAdminTextInputWidget,
        help_text="If empty, the tokens have no policy of their own any more.",
    )

    def clean_policy(self) -> str | None:
        """Return the id of the policy, or None for none."""
        slug = self.cleaned_data["policy"].strip()
        if not slug:
            return None
        owner = self.projects[0] if len(self.projects) == 1 else None
        policy = Policy.objects.filter(Q(project=None) | Q(project=owner), slug=slug).first()
        if policy is None:
            raise ValidationError(f"There is no policy {slug!r} that all of these tokens may have.")
        return policy.pk

    def arguments(self) -> dict[str, Any]:
        return {"policy": self.cleaned_data["policy"]}


class BulkExpiryForm(BulkForm):
    expires_at = forms.DateTimeField(required=False, label="End", widget=InstantInput)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["expires_at"].help_text = f"In {zone_name()}. If empty, the tokens never end."

    def clean_expires_at(self) -> Any:
        end = self.cleaned_data["expires_at"]
        try:
            check_is_future("expires_at", end)
        except ValidationError as exc:
            raise ValidationError(exc.messages) from exc
        return end

    def arguments(self) -> dict[str, Any]:
        return {"expires_at": isoformat(self.cleaned_data["expires_at"])}


class BulkLabelForm(BulkForm):
    label = forms.CharField(
        max_length=200,
        widget=UnfoldAdminTextInputWidget,
        help_text="Such as team=red. With the name alone, such as team, the tokens lose the label.",
    )

    def clean_label(self) -> tuple[str, str | None]:
        text = self.cleaned_data["label"]
        try:
            name, value = label_of(text)
        except ValueError as exc:
            raise ValidationError(f"Must be a label such as team=red: {exc}.") from exc
        if found := unprintable(value or ""):
            raise ValidationError(f"The value must have printable characters only, but contains {found}.")
        return name, value

    def arguments(self) -> dict[str, Any]:
        name, value = self.cleaned_data["label"]
        return {"name": name, "value": value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """
    What is done to many tokens.

    Attributes:
        name: Its name in ``many_tokens.DEEDS``.
        settle: Decides about the deed before it is done, from the request, the tokens and what the form has. It raises
            ReviewNeeded if limits would deny other requests than before, and nobody has confirmed that yet.
    """

    name: str
    verb: str
    effect: str
    form: type[BulkForm] = BulkForm
    settle: Callable[[HttpRequest, QuerySet[Token], dict[str, Any]], None] | None = None

    def __call__(self, page: EditPage, request: HttpRequest, tokens: QuerySet[Token]) -> HttpResponse | None:
        """Ask for what the deed needs, or do it, or start a job that does it."""
        # By their ids, because for a subquery the database would read the tokens of each project.
        state = state_of(request)
        found = state.selection or summary_of(tokens, page.most_at_once, page.counted_by)
        count, projects = found.count, list(Project.objects.filter(pk__in=found.counts).order_by("slug"))
        asked = "change_reason" in request.POST
        name = tokens.get().name if count == 1 else f"{count} tokens"
        form = self.form(request.POST if asked else None, projects=projects, name=name)
        title = f"{self.verb} {count:,} token{'' if count == 1 else 's'}"
        if BACK in request.POST or not (asked and form.is_valid()):
            return self._ask(page, request, tokens, form, title, projects)
        state.tx.reason = form.cleaned_data["change_reason"]
        given = form.arguments()
        if self.settle is not None:
            self.settle(request, tokens, given)
        if count > many_tokens.MOST_IN_A_REQUEST:
            return self._start(request, tokens, found, given, title, projects)
        changed = many_tokens.DEEDS[self.name](state.tx, tokens, given)
        page.message_user(request, _outcome(self.name, changed, count), messages.SUCCESS)
        return None

    def _ask(
        self,
        page: EditPage,
        request: HttpRequest,
        tokens: QuerySet[Token],
        form: BulkForm,
        title: str,
        projects: list[Project],
    ) -> HttpResponse:
        effect = self.effect
        if len(projects) > 1:
            effect += f" They belong to {len(projects)} projects."
        chosen = selection(request, tokens)
        context = {"deed": self.name, "form": form, "projects": projects[:20]}
        action = request.POST["action"]
        is_job = chosen["count"] > many_tokens.MOST_IN_A_REQUEST
        more = {"effect": effect, "action": action, "selection": chosen, "is_job": is_job}
        return page.page(request, "bulk.html", title=title, **context, **more)

    def _start(
        self,
        request: HttpRequest,
        tokens: QuerySet[Token],
        found: Summary,
        given: dict[str, Any],
        title: str,
        projects: list[Project],
    ) -> HttpResponse:
        """Start the job, and lead to the page that shows its progress."""
        job = run.start_on(
            many_tokens.JOB,
            title + (f" of {len(projects)} projects" if len(projects) > 1 else f" of {projects[0]}"),
            tokens,
            request.POST.get("selection") or found.digest,
            total=found.count,
            projects=projects,
            arguments={"deed": self.name, **given},
            **author(request),
        )
        return HttpResponseRedirect(change_url(job))


def _settle_policy(request: HttpRequest, tokens: QuerySet[Token], given: dict[str, Any]) -> None:
    policy = Policy.objects.filter(pk=given["policy"]).first()
    settle(request, tokens_review(tokens, policy, timezone.now()), state_of(request).tx.reason)


def _settle_label(request: HttpRequest, tokens: QuerySet[Token], given: dict[str, Any]) -> None:
    rows = Token.objects.select_related("project").filter(pk__in=tokens.order_by().values("pk"))
    some = rows.order_by("pk")[: many_tokens.MOST_IN_A_REQUEST]
    changed = [(token, token.labels, many_tokens.labels_with(token, given)) for token in some]
    settle(request, labels_review(changed, timezone.now()), state_of(request).tx.reason)


BULK_ACTIONS = (
    BulkAction(
        name="revoke_selected",
        title="Revoke the selected tokens",
        answer=Deed(
            name="revoke",
            verb="Revoke",
            effect="Proxies refuse these tokens within a second. This cannot be undone.",
        ),
    ),
    BulkAction(
        name="policy_selected",
        title="Set the policy of the selected tokens",
        answer=Deed(
            name="policy",
            verb="Set the policy of",
            effect="The limits of the policy replace those of the present policies. Usage of the same limits goes on.",
            form=BulkPolicyForm,
            settle=_settle_policy,
        ),
    ),
    BulkAction(
        name="expiry_selected",
        title="Set the end of the selected tokens",
        answer=Deed(
            name="expiry",
            verb="Set the end of",
            effect="Tokens that are revoked or expired stay as they are.",
            form=BulkExpiryForm,
        ),
    ),
    BulkAction(
        name="label_selected",
        title="Label the selected tokens",
        answer=Deed(
            name="label",
            verb="Label",
            effect="Other labels stay. Tokens that have as many labels as they may have stay as they are.",
            form=BulkLabelForm,
            settle=_settle_label,
        ),
    ),
    # In place of the action of Django, which reads every row that goes with the tokens.
    BulkAction(
        name="delete_selected",
        title="Delete the selected tokens",
        kind="delete",
        answer=Deed(
            name="delete",
            verb="Delete",
            effect="Their overrides are deleted, too. Proxies refuse them as unknown. This cannot be undone.",
            form=BulkDeletionForm,
        ),
    ),
)


def author(request: HttpRequest) -> dict[str, Any]:
    """Return the fields of a job that say who started it, and why."""
    actor, reason = actor_of(request), state_of(request).tx.reason
    named = {"created_by": actor.name, "channel": actor.channel, "request_id": actor.request_id}
    return {"user": request.user, **named, "reason": reason}


def _outcome(deed: str, changed: int, count: int) -> str:
    verb = {"revoke": "revoked", "delete": "deleted"}.get(deed, "changed")
    left = f" {count - changed:,} stayed as they were." if changed < count else ""
    return f"{changed:,} token{'' if changed == 1 else 's'} {verb}.{left}"
