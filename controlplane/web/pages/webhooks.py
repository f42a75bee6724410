"""The pages of webhooks, and the list of what was sent to them."""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminPasswordWidget

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.people.roles import EDITOR
from controlplane.operations.webhooks import actions
from controlplane.operations.webhooks.models import DELIVERED, FAILED, PENDING, Delivery, Destination
from controlplane.operations.webhooks.targets import MAX_URL_LENGTH
from controlplane.web.kit.dialogs import Asking, Done, RowAction, in_one_change
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.filters import RowFilter
from controlplane.web.kit.forms import ReasonDialog, RecordedForm, WordsField
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.secret import secret_page
from controlplane.web.kit.site import badge, change_url, confirmed, done, in_dialog, instant, link_to, list_url, table
from controlplane.web.kit.times import at
from controlplane.web.scope.rows import BY_OWNERS, RowScope

STATES = {PENDING: "warn", DELIVERED: "good", FAILED: "bad"}


def verification(secret: str) -> list[tuple[str, str, str]]:
    """Return an example of how a receiver verifies a message, with its id, title and code."""
    code = f'from standardwebhooks import Webhook\n\nevent = Webhook("{secret}").verify(body, headers)'
    return [("python", "Python", code)]


class DestinationForm(RecordedForm):
    emails = WordsField(required=False, label="E-mail addresses", help_text="Of an e-mail, with commas between them.")
    service_url = forms.CharField(
        required=False,
        max_length=MAX_URL_LENGTH,
        label="URL of the service",
        widget=UnfoldAdminPasswordWidget,  # its secrets are not shown again
        help_text="Of a chat or pager, as apprise has it, such as slack://TokenA/TokenB/TokenC. It is kept encrypted. "
        "If empty, the former one stays.",
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if cleaned.get("service_url") and cleaned.get("kind") == Destination.CHAT:
            self.instance.set_service(cleaned["service_url"])
        return cleaned


def page_of_secret(page: PartsPage, request: HttpRequest, row: Destination) -> HttpResponse:
    note = "The database does not have it. With it, the receiver verifies that a message is from here."
    secret = actions.secret(row)
    return secret_page(page, request, row, secret, verification(secret), kept=note)


def _test(tx: OpenChange, destination: Destination, given: dict[str, Any]) -> Done:
    if not destination.active:
        return Done(f"Nothing is sent to {destination} while it is not active.", messages.ERROR)
    delivery = actions.test(tx, destination)
    return Done("The test is sent within seconds. Reload this page to see how it went.", to=delivery)


def _rotate(page: PartsPage, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
    if in_dialog(request):
        return confirmed()
    with page.changing(request, form.cleaned_data["reason"]) as tx:
        destination = page.present(request, object_id)
        actions.rotate(tx, destination)
        page.message_user(request, f"{destination} has another secret.", messages.SUCCESS)
    destination.refresh_from_db()
    return page_of_secret(page, request, destination)


TEST = RowAction(
    name="test",
    title="Send a test",
    icon="send",
    answer=in_one_change(_test),
    dialog=Asking(
        title="Send a test to this destination",
        description="It is sent within seconds, and says that nothing is wrong.",
        submit="Send test",
    ),
)
ROTATE = RowAction(
    name="rotate",
    title="Rotate the secret",
    icon="key",
    variant=ActionVariant.DANGER,
    answer=_rotate,
    dialog=Asking(
        title="Rotate the secret of this webhook",
        description="The next page shows the new one. For 24 hours, messages have a signature of each of them.",
        submit="Rotate secret",
    ),
)


@admin.register(Destination)
class DestinationAdmin(EditPage):
    has_secret, asked_name = True, str
    form = DestinationForm
    list_display = ["name", "whose", "kind", "shown_address", "state", "last_sent"]
    list_filter = [("project", RowFilter), ("kind", ChoicesDropdownFilter), "active"]
    list_select_related = ["project"]
    search_fields = ["name", "url"]
    autocomplete_fields = ["project"]
    readonly_fields = ["whose", "shown_address", "sent", "rotated"]
    own_fields = ("kind", "url", "emails", "service_url", "active")
    add_fieldsets = [(None, {"fields": ["name", "project", *own_fields]})]
    fieldsets = [(None, {"fields": ["name", "whose", *own_fields]}), ("Use", {"fields": ["sent", "rotated"]})]
    row_actions = (TEST, ROTATE)
    scope = RowScope(paths=("project_id",), roles={**BY_OWNERS, "view": EDITOR})
    empty = (
        "A destination gets the messages of alerts: a webhook, e-mail addresses, or a chat.",
        "Add a destination",
    )

    def get_fieldsets(self, request: HttpRequest, obj: Destination | None = None) -> list[Any]:
        if obj is None:
            return [*self.add_fieldsets, (None, {"fields": ["change_reason"]})]
        fieldsets = super().get_fieldsets(request, obj)
        if self.has_change_permission(request, obj):
            return fieldsets
        seen = [name if name != "service_url" else "shown_address" for name in fieldsets[0][1]["fields"]]
        return [(None, {"fields": seen}), *fieldsets[1:]]

    def response_add(
        self, request: HttpRequest, obj: Destination, post_url_continue: str | None = None
    ) -> HttpResponse:
        if obj.kind != Destination.WEBHOOK:
            return super().response_add(request, obj, post_url_continue)
        self.message_user(request, f"{obj} was created.", messages.SUCCESS)
        return page_of_secret(self, request, obj)

    @display(description="Project", ordering="project")
    def whose(self, row: Destination) -> str:
        return link_to(row.project) if row.project else "none, of the installation"

    @display(description="Address")
    def shown_address(self, row: Destination) -> str:
        return row.address

    @display(description="State", ordering="active")
    def state(self, row: Destination) -> str:
        return badge("active", "good") if row.active else badge("inactive")

    @display(description="Last message")
    def last_sent(self, row: Destination) -> str:
        last = row.deliveries.first()
        return format_html("{} {}", badge(last.state, STATES[last.state]), instant(last.created_at)) if last else "—"

    @display(description="Messages")
    def sent(self, row: Destination) -> str:
        url = list_url(Delivery, f"?destination__id__exact={row.pk}")
        return format_html('<a class="text-link" href="{}">What was sent</a>', url)

    @display(description="Secret rotated")
    def rotated(self, row: Destination) -> str:
        return instant(row.rotated_at)


def _replay(page: PartsPage, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
    delivery = page.get_queryset(request).get(pk=page.key_of(object_id))
    try:
        with page.changing(request, form.cleaned_data["reason"]) as tx:
            actions.replay(tx, delivery)
            page.message_user(request, "The message is sent again within seconds.")
    except ValidationError:
        messages.error(request, f"Nothing is sent to {delivery.destination} while it is not active.")
    return done(change_url(delivery))


REPLAY = RowAction(
    name="replay",
    title="Send again",
    icon="replay",
    may=lambda page, request, object_id: page.allows(request, "change", object_id),
    answer=_replay,
    dialog=Asking(
        title="Send this message again",
        description="It has the same id and body, so a receiver knows that it is a repetition.",
        submit="Send again",
    ),
)


@admin.register(Delivery)
class DeliveryAdmin(PartsPage):
    list_display = ["kind", "destination", "condition", "attempts", "last_result", "created"]
    list_filter = [("state", ChoicesDropdownFilter), ("destination", RowFilter)]
    list_select_related = ["destination"]
    search_fields = ["message_id", "kind"]
    fields = readonly_fields = [
        *("kind", "to", "condition", "message_id", "created", "delivered", "next_one", "attempts_made", "body"),
    ]
    row_actions = (REPLAY,)
    scope = RowScope(
        paths=("destination__project_id",), roles={"view": EDITOR, "add": None, "change": EDITOR, "delete": None}
    )
    linked_filters = ("destination",)
    ends_with_owner = True
    empty = ("Each message to a destination appears here, with every attempt to send it.", "")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        return super().get_queryset(request).select_related("destination__project")

    @display(description="Destination")
    def to(self, row: Delivery) -> str:
        return link_to(row.destination)

    @display(description="State", ordering="state")
    def condition(self, row: Delivery) -> str:
        return badge(row.state, STATES[row.state])

    @display(description="Last attempt")
    def last_result(self, row: Delivery) -> str:
        return row.result or "—"

    @display(description="Created", ordering="created_at")
    def created(self, row: Delivery) -> str:
        return instant(row.created_at)

    @display(description="Delivered")
    def delivered(self, row: Delivery) -> str:
        return instant(row.delivered_at)

    @display(description="Next attempt")
    def next_one(self, row: Delivery) -> str:
        if row.state != PENDING:
            return "none"
        return instant(row.next_at) if row.destination.active else "when the destination is active again"

    @display(description="Attempts")
    def attempts_made(self, row: Delivery) -> str:
        rows = [(_exactly(one["at"]), f"{one['ms']} ms", one["result"]) for one in reversed(row.log)]
        return table(("When", "Took", "Result"), rows) if rows else "none yet"


def _exactly(text: str) -> str:
    """Return the time of an attempt as every page writes it."""
    return at(datetime.fromisoformat(text), "second")
