"""Actions on the page of a row, which open a dialog."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any, Protocol

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.db.models import Model, QuerySet
from django.db.models.options import Options
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.safestring import mark_safe
from unfold.decorators import action as theme_action
from unfold.enums import ActionVariant
from unfold.forms import BaseDialogForm

from controlplane.changes.change.transaction import OpenChange
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.site import change_url, done, in_dialog, list_url
from controlplane.web.kit.state import state_of


class Page(Protocol):
    """What an action needs of the page that has it."""

    model: type[Any]
    opts: Options

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]: ...
    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool: ...
    def permits(self, request: HttpRequest, kind: str, obj: Model | str | None = None) -> bool: ...
    def sees(self, request: HttpRequest, key: str) -> bool: ...
    def page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse: ...
    def present(self, request: HttpRequest, object_id: str) -> Any: ...
    def changing(self, request: HttpRequest, reason: str = "") -> AbstractContextManager[OpenChange]: ...
    def message_user(self, request: HttpRequest, message: Any, level: int = messages.INFO) -> None: ...


def may_change(page: Page, request: HttpRequest, object_id: str) -> bool:
    return page.has_change_permission(request, object_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What the dialog of an action says and asks, and the text of its button."""

    title: str
    description: str
    submit: str
    form: type[BaseDialogForm] = ReasonDialog


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAction:
    """
    An action on the page of a row.

    Another user may delete the row while its dialog is open. The action then leads to the list, and says so. A row
    that the user may not see gets the same response. Opened by its address alone, a dialog is a page.

    Attributes:
        name: The end of its address.
        may: Returns whether the user may do it to the row with this key, as an address has it.
        answer: Returns the response from the page, the request, the valid form of the dialog if there is one, and the
            key of the row.
    """

    name: str
    title: str
    icon: str
    answer: Callable[..., HttpResponse]
    dialog: Asking | None = None
    may: Callable[[Any, HttpRequest, str], bool] = may_change
    variant: ActionVariant = ActionVariant.DEFAULT

    def join(self, page: Page) -> None:
        """Give the page the methods that the theme looks for: of the action, and of its permission."""

        def may(request: HttpRequest, object_id: str | None = None) -> bool:
            return self.may(page, request, object_id or "")

        setattr(page, self.name, MethodType(self._method(), page))
        setattr(page, f"has_{self.name}_permission", may)

    def _method(self) -> Callable[..., HttpResponse]:
        asking = self.dialog
        dialog = asking and {
            "title": asking.title,
            "description": asking.description,
            "form_class": asking.form,
            "form_submit_text": asking.submit,
        }

        def answer(page: Page, request: HttpRequest, *args: Any, object_id: str) -> HttpResponse:
            return self.answer(page, request, *args, object_id)

        answer.__name__ = self.name
        options = {"description": self.title, "icon": self.icon, "variant": self.variant, "permissions": [self.name]}
        inner = theme_action(**options, dialog=dialog)(answer)

        @wraps(inner)  # which also copies what the theme has noted at the function
        def outer(page: Page, request: HttpRequest, object_id: str) -> HttpResponse:
            key = unquote(object_id)
            if not page.sees(request, key):
                return _gone(page, request)
            if not in_dialog(request):
                state_of(request).dialog.back = change_url(page.model(pk=key))
            elif request.method == "GET":
                state_of(request).dialog.row = _row(page, request, key)
            try:
                response = inner(page, request, object_id=object_id)
            except page.model.DoesNotExist:
                return _gone(page, request)
            return response if in_dialog(request) else _as_page(page, request, response, key, asking)

        return outer


@dataclass(frozen=True, slots=True)
class Done:
    """What an action has done: the message of it, if any, and the row to whose page it leads, or None for the same."""

    message: str = ""
    level: int = messages.SUCCESS
    to: Model | None = None


def in_one_change[M: Model](do: Callable[[OpenChange, M, dict[str, Any]], Done]) -> Callable[..., HttpResponse]:
    """
    Return the answer of an action that is one change of the row, with the reason that its dialog asks for.

    Args:
        do: Changes the locked row, and takes what the form has.
    """

    def answer(page: Page, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
        with page.changing(request, form.cleaned_data["reason"]) as tx:
            row = page.present(request, object_id)
            outcome = do(tx, row, form.cleaned_data)
            if outcome.message:
                page.message_user(request, outcome.message, outcome.level)
        return done(change_url(outcome.to or row))

    return answer


def _as_page(page: Page, request: HttpRequest, response: HttpResponse, key: str, asking: Asking | None) -> HttpResponse:
    """Return the response of an action as a browser needs it without the script of the dialogs."""
    if "HX-Redirect" in response:
        return HttpResponseRedirect(response["HX-Redirect"])
    if asking is None or type(response) is not HttpResponse:
        return response  # a page already, such as that of a new secret
    row = _row(page, request, key)
    title = f"{asking.title}: {row}"
    return page.page(request, "dialog.html", title=title, original=row, dialog=mark_safe(response.text))


def _row(page: Page, request: HttpRequest, key: str) -> Model | None:
    """Return the row of a dialog, or None if it was deleted meanwhile."""
    return page.get_queryset(request).filter(pk=key).first()


def _gone(page: Page, request: HttpRequest) -> HttpResponse:
    """Return a response that leads to the list, which says that nothing was done."""
    what = page.opts.verbose_name
    text = f"This {what} does not exist any more. Another user may have deleted it. Nothing was changed."
    messages.error(request, text)
    url = list_url(page.model)
    return done(url) if in_dialog(request) else HttpResponseRedirect(url)
