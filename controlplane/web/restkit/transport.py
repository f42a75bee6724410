"""Checks of a request before any view: an encrypted connection, and a body of a known length."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from controlplane.web.restkit.problems import plain_problem

API_ROOT = "/api/"
PLAIN = (
    "This address is served over HTTPS only. If the request carried a key, replace the key, because it was sent "
    "unencrypted."
)

NO_LENGTH = "Send the body with Content-Length. A body with Transfer-Encoding is not read."


class HttpsOnly:
    """
    Refuse a request to REST that came over plain HTTP, if the installation uses HTTPS.

    A redirect would answer it, so that a client with a wrong address would go on sending its key unencrypted.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if settings.HTTPS and request.path_info.startswith(API_ROOT) and not request.is_secure():
            return plain_problem(request, 403, "https_required", PLAIN)
        return self.get_response(request)


class LengthRequired:
    """
    Refuse a request to REST whose body has no length.

    Django and REST framework take such a body for an empty one. A change would be accepted and not made, and a token
    would be rotated with the default overlap in place of the one that was sent.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "Transfer-Encoding" in request.headers and request.path_info.startswith(API_ROOT):
            return plain_problem(request, 411, "length_required", NO_LENGTH)
        return self.get_response(request)
