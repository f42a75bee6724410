"""The response to a form of the admin whose user was signed out when it was sent."""

from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from controlplane.core.error_page import page_before

NOT_SAVED = "You were signed out, so the form was not saved. Log in, and then check it and save it again."


class SignedOut:
    """Say that such a form was not saved, and lead to the page of the form after the log-in."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        # Dialogs say it themselves.
        if request.method != "POST" or "HX-Request" in request.headers:
            return response
        login, leads_to = reverse("admin:login"), urlsplit(response.get("Location", ""))
        if leads_to.path == login and leads_to.query.startswith("next=") and request.path_info != login:
            messages.warning(request, NOT_SAVED)
            response["Location"] = f"{login}?{urlencode({'next': _page(request)})}"
        return response


def _page(request: HttpRequest) -> str:
    """Return the address of the page that has the form. The form itself may be sent to one that has no page."""
    came_from = urlsplit(request.headers.get("Referer", ""))
    if came_from.netloc == request.get_host() and came_from.path == request.path:
        return request.get_full_path()
    return page_before(request) or reverse("admin:index")
