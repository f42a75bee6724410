"""REST over an encrypted connection only, where the installation has one."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from controlplane.api.problems import plain_problem

API_ROOT = "/api/"
PLAIN = (
    "This address is served over HTTPS only. If the request carried a key, replace the key, because it was sent "
    "unencrypted."
)


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
