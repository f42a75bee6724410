"""Browsers in which a user has logged in before, so that failures of strangers do not lock that user out there."""

import hashlib
import secrets
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv6Address

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse

COOKIE = "sluicegate_browser"
SALT = "controlplane.web.kit.known_browsers"  # the cookies of browsers are signed with it, so it stays
LIFETIME = timedelta(days=180)
LOG_IN = "/admin/login/"
# Addresses that no network uses: fd00::/8 and forty random bits (RFC 4193, 3.2.1).
_PREFIX = bytes.fromhex("fd8c1e52a7f30000")


def address_of_browser(request: HttpRequest) -> str | None:
    """
    Return an IPv6 address that stands for the browser, or None if the user has not logged in with it before.

    Failed log-ins are counted by name and address. So those of a known browser have a count of their own, however many
    strangers share its address, as they all do behind a proxy that is not declared.
    """
    name = request.POST.get("username") or (request.user.get_username() if hasattr(request, "user") else "")
    try:
        known = signing.loads(request.COOKIES.get(COOKIE, ""), salt=SALT, max_age=LIFETIME)
    except signing.BadSignature:
        return None
    if not name or known.get("name") != _digest(name):
        return None
    return str(IPv6Address(_PREFIX + hashlib.sha256(known["id"].encode()).digest()[:8]))


def is_of_a_browser(address: str | None) -> bool:
    """Return whether an address stands for a known browser."""
    try:
        return IPv6Address(address or "").packed.startswith(_PREFIX)
    except ValueError:
        return False


class KnownBrowsers:
    """Give the browser a cookie when somebody logs in to the admin."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if request.method == "POST" and request.path_info == LOG_IN and request.user.is_authenticated:
            known = {"id": secrets.token_hex(16), "name": _digest(request.user.get_username())}
            response.set_cookie(
                COOKIE,
                signing.dumps(known, salt=SALT),
                max_age=LIFETIME,
                path="/admin/",
                secure=settings.HTTPS,
                httponly=True,
                samesite="Lax",
            )
        return response


def _digest(name: str) -> str:
    """Return a digest of a user name, which the cookie holds in its place."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]
