"""What is kept for each request, its id, the address of its client, and the log lines that name both."""

import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from django.conf import settings
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.middleware.common import CommonMiddleware
from django.utils.log import log_response
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars

from enforcement.http.addresses import TrustedProxies

ID_HEADER = "X-Request-Id"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


# Paths that probes and Prometheus request at the address of a container instead of a name of ALLOWED_HOSTS.
MONITORING = frozenset({"/healthz", "/readyz", "/metrics"})


class PerRequest[T]:
    """
    A value for each request, which is made when it is first read.

    It is gone with the request, so it must not refer to the request, as the lazy user of a request does.
    """

    def __init__(self, make: Callable[[HttpRequest], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[HttpRequest, T] = WeakKeyDictionary()

    def __call__(self, request: Any) -> T:
        """Return the value of a request of Django, or of the one that REST framework has wrapped."""
        request = getattr(request, "_request", request)
        if request not in self._values:
            self._values[request] = self._make(request)
        return self._values[request]

    def __len__(self) -> int:
        return len(self._values)


def _request_id(request: HttpRequest) -> str:
    sent = request.headers.get(ID_HEADER, "")
    return sent if _ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"


# The id of a request, which is the value of X-Request-Id if that is valid, else a random one.
request_id = PerRequest(_request_id)


def client_address(request: Any) -> str | None:
    """
    Return the address of the client, found behind the proxies of the setting TRUSTED_PROXIES, or None if it has none.

    The rule is that of the enforcing proxies, so one setting serves both.
    """
    peer = request.META.get("REMOTE_ADDR") or None  # empty over a Unix socket
    return _proxies(tuple(settings.TRUSTED_PROXIES)).client(peer, [request.headers.get("X-Forwarded-For", "")])


def came_through_unknown_proxy(request: Any) -> bool:
    """Return whether a proxy that is not trusted forwarded the request, so that its peer is not the client."""
    forwarded = "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
    return forwarded and not _proxies(tuple(settings.TRUSTED_PROXIES)).trusts(request.META.get("REMOTE_ADDR") or None)


@lru_cache(maxsize=8)
def _proxies(networks: tuple[str, ...]) -> TrustedProxies:
    return TrustedProxies(networks)


def log_author(name: str, channel: str) -> None:
    """Add the author of the present request to its log lines, under the names that the audit uses."""
    bind_contextvars(actor=name, channel=channel)


class RequestLog:
    """Add the id of a request to every log line that is written for it, and to its response."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        clear_contextvars()  # a thread serves many requests
        with bound_contextvars(request_id=request_id(request)):
            response = self.get_response(request)
            response.headers.setdefault(ID_HEADER, request_id(request))
            if response.status_code >= 400:
                # Django would write this line after the last middleware, when the id is no longer bound.
                log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        clear_contextvars()
        return response

    def process_view(self, request: HttpRequest, *_: Any) -> None:
        """Add the user of the admin to the log lines. Elsewhere a session is not even read."""
        if request.path_info.startswith("/admin/") and request.user.is_authenticated:
            log_author(request.user.get_username(), "admin")


class NoNullCharacters:
    """
    Refuse a request of the admin with a null character in its address or in a field.

    PostgreSQL cannot compare a column with such a string, so a search for one, or a choice of a row with such a key,
    would be an error of the server. No browser can type one. The API checks its own fields.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> None:
        if not request.path_info.startswith("/admin/"):
            return
        fields = [value for _, values in request.POST.lists() for value in values]
        if any("\0" in text for text in (request.path_info, unquote(request.META["QUERY_STRING"]), *fields)):
            raise BadRequest("The request has a null character.")


class CommonForHosts(CommonMiddleware):
    """Refuses other hosts than those of ALLOWED_HOSTS, but for monitoring, whose answers have no address in them."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path in MONITORING else super().process_request(request)
