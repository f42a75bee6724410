"""The common parts of the pages of tokens and of management keys, and the filters and labels of their lists."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from unfold.decorators import display
from unfold.enums import ActionVariant

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.tables.searching import IndexedSearch
from controlplane.objects.projects.models import Credential
from controlplane.web.kit.dialogs import Asking, Done, Page, RowAction, in_one_change, may_change
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.filters import EndsFilter
from controlplane.web.kit.forms import RecordedForm
from controlplane.web.kit.parts import Filter
from controlplane.web.kit.secret import secret_page
from controlplane.web.kit.site import instant
from controlplane.web.kit.state import state_of
from controlplane.web.kit.tags import tag
from controlplane.web.pages.tokens.secret_search import owner_of, read_secrets, searched_secret

STATUS = {"active": ("check_circle", "good"), "revoked": ("block", "bad"), "expired": ("event_busy", "warn")}
UNKNOWN_END = mark_safe('<span title="It was created before the end of secrets was kept">–</span>')
# The default life of a credential, so that one that nobody renews ends by itself.
EXPIRY_DAYS = 90


STATUSES = [("active", "active"), ("revoked", "revoked"), ("expired", "expired"), ("all", "all")]


def with_status(rows: Any, status: str, request: HttpRequest) -> QuerySet[Any]:
    """Return those of *rows*, which are tokens or keys, with this status."""
    now = timezone.now()
    if status == "active":
        return rows.live(now)
    if status == "revoked":
        return rows.exclude(revoked_at=None)
    return rows.filter(revoked_at=None, expires_at__lte=now) if status == "expired" else rows


STATUS_FILTER = Filter(name="status", title="status", choices=STATUSES, usual="active", narrow=with_status)


class CredentialAdmin(EditPage):
    """The base class of the pages of tokens and management keys."""

    has_secret = True
    # Without the beginning of the secret, which is cumbersome to type.
    asked_name = attrgetter("name")
    list_filter: Sequence[object] = (STATUS_FILTER, EndsFilter)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if (secret := searched_secret(request)) and self.has_view_permission(request):
            return owner_of(self, request, secret)
        return super().changelist_view(request, extra_context)

    @display(description="Secret")
    def shown_prefix(self, credential: Credential) -> str:
        """Return the beginning and the end of the secret, which is all that is known of it."""
        return format_html("{}…{}", credential.prefix, credential.secret_end or UNKNOWN_END)

    @display(description="Status")
    def state(self, credential: Credential) -> str:
        return tag(credential.status, *STATUS[credential.status])

    @display(description="Last used", ordering="last_used_at")
    def last_used(self, credential: Credential) -> str:
        return instant(credential.last_used_at)

    @display(description="Ends", ordering="expires_at")
    def ends(self, credential: Credential) -> str:
        return instant(credential.revoked_at or credential.expires_at)

    @display(description="Created", ordering="created_at")
    def created(self, credential: Credential) -> str:
        return instant(credential.created_at)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        end = timezone.now() + timedelta(days=EXPIRY_DAYS)
        return {"expires_at": end.replace(second=0, microsecond=0), **super().get_changeform_initial_data(request)}

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        """Return the page under the name alone, because the buttons beside it leave no room for more."""
        if row := context.get("original"):
            context["crumb"] = row.name
        return super().render_change_form(request, context, **options)

    def save_row(self, request: HttpRequest, obj: Credential, form: RecordedForm) -> None:
        """Save the credential, or issue a new one, and keep its secret for the response to this request."""
        if not obj._state.adding:
            obj.save()
            return
        state = state_of(request)
        fields = {name: form.cleaned_data[name] for name in self.issued if name in form.cleaned_data}
        _, state.secret = self.issue(state.tx, id=obj.pk, **fields)
        obj.refresh_from_db()
        obj._state.adding = False

    def record(self, tx: OpenChange, obj: Credential, before: dict[str, Any] | None) -> None:
        if before is not None:  # a new credential was recorded when it was issued
            super().record(tx, obj, before)

    def response_add(self, request: HttpRequest, obj: Credential, post_url_continue: str | None = None) -> HttpResponse:
        self.message_user(request, f"{obj} was created.", messages.SUCCESS)
        secret = state_of(request).secret
        return secret_page(self, request, obj, secret, self.snippets(request, secret))


def revoking[C: Credential](
    revoke: Callable[[OpenChange, C], None],
    dialog: Asking,
    may: Callable[[Page, HttpRequest, str], bool] = may_change,
) -> RowAction:
    """Return the action that revokes a token or management key."""

    def do(tx: OpenChange, row: C, given: dict[str, Any]) -> Done:
        revoke(tx, row)
        return Done(f"{row} is revoked.")

    answer, danger = in_one_change(do), ActionVariant.DANGER
    return RowAction(name="revoke", title="Revoke", icon="block", variant=danger, may=may, answer=answer, dialog=dialog)


CREDENTIAL_SEARCH = IndexedSearch(
    beginnings=("name",),
    exact_beginnings=("prefix",),
    wholes=("id",),
    help=("Name, id, beginning of the secret",) * 2,
    has_few_rows=True,
    readings=(read_secrets,),
)
