"""The middleware that lets nobody into the admin before the second factor."""

from collections.abc import Callable
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django_otp.middleware import is_verified

from controlplane.objects.people import second_factor

# The pages that a user needs after the password alone.
OPEN = ("login", "logout", "jsi18n", "second-factor", "second-factor-code")


class SecondFactorGate:
    """
    Lead users with an authenticator to the page that asks for its code, until they have given one.

    If the setting REQUIRE_SECOND_FACTOR is on, lead all others to the page that adds an authenticator.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: object) -> HttpResponse | None:
        match = request.resolver_match
        if match is None or match.url_name in OPEN or not request.path_info.startswith("/admin/"):
            return None
        user = request.user
        if not user.is_authenticated or is_verified(user):
            return None
        if second_factor.device_of(user) is not None:
            return HttpResponseRedirect(code_url(request.get_full_path()))
        return HttpResponseRedirect(reverse("second-factor")) if settings.REQUIRE_SECOND_FACTOR else None


def code_url(following: str) -> str:
    """Return the address of the page that asks for a code, and then leads to the address *following*."""
    return f"{reverse('second-factor-code')}?{urlencode({'next': following})}"
