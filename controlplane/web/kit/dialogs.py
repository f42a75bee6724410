"""Actions on the page of a row, which open a dialog."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.safestring import mark_safe
from unfold.decorators import action as theme_action

from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import change_url, done, in_dialog, list_url
from controlplane.web.kit.state import state_of


def action(**options: Any) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """
    Return a decorator for an action on the page of a row, with the *options* of the theme's decorator.

    Another user may delete the row while its dialog is open. The action then leads to the list, and says so. A row
    that the user may not see gets the same response. Opened by its address alone, a dialog is a page.
    """

    def decorate(function: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        inner = theme_action(**options)(function)

        @wraps(inner)  # which also copies what the theme has noted at the function
        def outer(page: PartsPage, request: HttpRequest, *args: Any, **kw: Any) -> HttpResponse:
            if "object_id" in kw and not page.sees(request, page.key_of(kw["object_id"])):
                return _gone(page, request)
            if "object_id" in kw and in_dialog(request) and request.method == "GET":
                state_of(request).dialog.row = _row(page, request, kw)
            elif "object_id" in kw and not in_dialog(request):
                state_of(request).dialog.back = change_url(page.model(pk=page.key_of(kw["object_id"])))
            try:
                response = inner(page, request, *args, **kw)
            except page.model.DoesNotExist:
                return _gone(page, request)
            return response if in_dialog(request) else _as_page(page, request, response, kw, options.get("dialog"))

        return outer

    return decorate


def _as_page(
    page: PartsPage, request: HttpRequest, response: HttpResponse, kw: dict[str, Any], dialog: Any
) -> HttpResponse:
    """Return the response of an action as a browser needs it without the script of the dialogs."""
    if "HX-Redirect" in response:
        return HttpResponseRedirect(response["HX-Redirect"])
    if dialog is None or type(response) is not HttpResponse:
        return response  # a page already, such as that of a new secret
    row = _row(page, request, kw)
    title = f"{dialog['title']}: {row}"
    return page.page(request, "dialog.html", title=title, original=row, dialog=mark_safe(response.text))


def _row(page: PartsPage, request: HttpRequest, kw: dict[str, Any]) -> Any:
    """Return the row of a dialog, or None if it was deleted meanwhile."""
    return page.get_queryset(request).filter(pk=page.key_of(kw["object_id"])).first()


def _gone(page: PartsPage, request: HttpRequest) -> HttpResponse:
    """Return a response that leads to the list, which says that nothing was done."""
    what = page.opts.verbose_name
    text = f"This {what} does not exist any more. Another user may have deleted it. Nothing was changed."
    messages.error(request, text)
    url = list_url(page.model)
    return done(url) if in_dialog(request) else HttpResponseRedirect(url)
