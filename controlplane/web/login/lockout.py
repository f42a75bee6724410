"""The lock-out after failed log-ins, by name and address, and by address alone."""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from axes.attempts import get_cool_off_threshold
from axes.handlers.database import AxesDatabaseHandler
from axes.helpers import get_cool_off
from axes.models import AccessAttempt
from django.conf import settings
from django.db.models import Max, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from controlplane.core.error_page import error_page
from controlplane.core.requests import came_through_unknown_proxy, client_address
from controlplane.web.login.known_browsers import address_of_browser
from enforcement.http.addresses import network_of

logger = logging.getLogger(__name__)

MINUTE = timedelta(minutes=1)


class AxesRequest(HttpRequest):
    """A request to which axes has added the address by which it counts, as :func:`address_of` returns it."""

    axes_ip_address: str | None


def address_of(request: HttpRequest) -> str | None:
    """
    Return the client's IPv4 address, or its IPv6 network without the length, by which log-ins are counted, or None.

    Of IPv6 it is the first address of the /64 network, because a client has all of the network. A browser in which the
    user has logged in before has an address of its own.
    """
    if (browser := address_of_browser(request)) is not None:
        return browser
    address = client_address(request)
    return address and network_of(address).partition("/")[0]


class LockoutHandler(AxesDatabaseHandler):
    """
    The handler that also locks an address which fails with many names.

    Otherwise one address could try a common password with every name.
    """

    def get_failures(self, request: AxesRequest, credentials: dict[str, object] | None = None) -> int:
        """Return the failures of this name at this address, or at least the limit if the address is locked."""
        failures = super().get_failures(request, credentials)
        by_address = failures_of(request.axes_ip_address, request).aggregate(n=Sum("failures_since_start"))["n"] or 0
        locked = by_address >= settings.ADDRESS_FAILURE_LIMIT
        return max(failures, settings.AXES_FAILURE_LIMIT) if locked else failures


def failures_of(address: str | None, request: HttpRequest) -> QuerySet[AccessAttempt]:
    """Return a query of the failed log-ins from an address that still count."""
    return AccessAttempt.objects.filter(ip_address=address, attempt_time__gte=get_cool_off_threshold(request))


def states_of(attempts: Iterable[AccessAttempt], request: HttpRequest) -> dict[int, tuple[str, str]]:
    """Return for each row of failed log-ins, by its primary key, what it says in words, and the kind of its badge."""
    attempts = list(attempts)
    since = timezone.now() - get_cool_off(request)
    counting = AccessAttempt.objects.filter(attempt_time__gte=since)
    by_address = counting.filter(ip_address__in={attempt.ip_address for attempt in attempts})
    sums = dict(by_address.order_by().values_list("ip_address").annotate(Sum("failures_since_start")))
    return {attempt.pk: _state_of(attempt, sums, since) for attempt in attempts}


def _state_of(attempt: AccessAttempt, sums: dict[str, int], since: datetime) -> tuple[str, str]:
    failures, most = attempt.failures_since_start, settings.AXES_FAILURE_LIMIT
    if attempt.attempt_time < since:
        return f"over, {failures} failures" if failures != 1 else "over, 1 failure", ""
    if failures >= most:
        return "locked out", "bad"
    if sums.get(attempt.ip_address, 0) >= settings.ADDRESS_FAILURE_LIMIT:
        return f"address locked out, {sums[attempt.ip_address]} failures", "bad"
    return f"{failures} of {most} failures", "warn"


def locked_out(request: AxesRequest, response: HttpResponse | None, credentials: object) -> HttpResponse:
    """Return the page for a locked-out client, which says how long the lock-out lasts."""
    last = failures_of(request.axes_ip_address, request).aggregate(at=Max("attempt_time"))["at"] or timezone.now()
    left = max(last + settings.AXES_COOLOFF_TIME - timezone.now(), MINUTE)
    minutes = -(-left // MINUTE)
    if came_through_unknown_proxy(request):
        # A client may also have invented the header, so the lock-out stays.
        logger.warning(
            "Log-ins from %s are refused for %d minutes. The request was forwarded. If this "
            "is the address of a proxy, all its clients are locked out, so add it to SLUICEGATE_TRUSTED_PROXIES.",
            request.axes_ip_address,
            minutes,
        )
    sentence = (
        f"Log-ins from your address are refused for {minutes} minute{'' if minutes == 1 else 's'}. Then try again, or "
        "ask an administrator for a new password."
    )
    page = error_page(request, 429, "Too many failed log-ins", sentence)
    page["Retry-After"] = str(minutes * 60)
    return page
