"""The actions that replace the secret of a token, and that end it."""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from unfold.widgets import UnfoldAdminRadioSelectWidget

from controlplane.objects.projects.actions import revoke_token, rotate_token
from controlplane.objects.projects.models import Token
from controlplane.web.kit.dialogs import Asking, RowAction
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.secret import secret_page
from controlplane.web.kit.site import (
    confirmed,
    in_dialog,
    list_url,
)
from controlplane.web.kit.snippets import token_snippets
from controlplane.web.pages.tokens.credentials import (
    revoking,
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


def rotate(page: PartsPage, request: HttpRequest, form: RotateDialog, object_id: str) -> HttpResponse:
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
        description="Proxies refuse it within a second, and the page says which of them do. This cannot be undone. A "
        "new token has a new secret.",
        submit="Revoke token",
    ),
)
