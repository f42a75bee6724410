"""
The limits of REST itself, enforced by the library: for each management key, and for each address without a valid key.

They have a prefix of their own in the store. So the processes of the control plane are no instances of the fleet, and
their documents, which do not exist, are not those of the proxies.
"""

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any

from django.conf import settings
from rest_framework import status
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.core.requests import came_through_unknown_proxy, client_address
from controlplane.web.restkit.problems import Problem
from enforcement import Limit, Limiter
from enforcement.http.addresses import network_of
from enforcement.model.keys import rest_prefix
from enforcement.plan.decision import Decision

logger = logging.getLogger(__name__)

# A decision that takes longer is not waited for, and the request passes.
BUDGET_SECONDS = 0.01
ADDRESS = "rest-address"

_limiters: dict[tuple[str, str], Limiter] = {}


class RateLimited(Problem):
    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    default_code = "rate_limited"


def limiter() -> Limiter:
    """Return the limiter of this process, which is new after a change of the settings, as in tests."""
    place = settings.REDIS_URL, rest_prefix(settings.STORE_PREFIX)
    # Two threads may make one at the same time. The one that is dropped has neither a thread nor a connection yet.
    result = _limiters.get(place)
    if result is None:
        result = _limiters.setdefault(place, Limiter(place[0], prefix=place[1], timeout=BUDGET_SECONDS))
    return result


@lru_cache(maxsize=8)
def _limit(name: str, rate: str) -> Limit:
    return replace(Limit.parse(rate), name=name, on_store_failure="allow")


def charge(name: str, rate: str, holder: str) -> Decision | None:
    """
    Charge a request to a limit of REST, and return the decision, or None if the limit is off.

    Raises:
        RateLimited: The limit is used up.
    """
    if not rate:
        return None
    decision = limiter().hit(_limit(name, rate), f"{name}:{holder}")
    if decision.allowed:
        return decision
    headers = decision.headers()
    whose = "from this address without a valid credential" if name == ADDRESS else "with this credential"
    wait = f" Try again in {headers['Retry-After']} s." if "Retry-After" in headers else ""
    raise RateLimited(f"Too many requests {whose}, at most {rate} pass.{wait}", headers=headers)


class ThrottledView(APIView):
    """
    A base class of views that charges each request to a limit.

    A valid key is charged itself, whatever comes of the request. Everything else is charged to the address, but only
    after the key was found to be invalid. So nobody can lock out the keys that others use from the same address.
    """

    decision: Decision | None = None
    throttle_name = "rest"
    throttle_rate = "REST_RATE"

    def perform_authentication(self, request: Request) -> None:
        """
        Raise an error of REST for an invalid credential.

        Raises:
            RateLimited: The limit of the credential, or that of the address, is used up.
        """
        try:
            super().perform_authentication(request)
        except APIException:
            self._charge_address(request)
            raise
        if request.auth is None:
            self._charge_address(request)
        else:
            rate = getattr(settings, self.throttle_rate)
            self.decision = charge(self.throttle_name, rate, self.throttled_holder(request))

    def throttled_holder(self, request: Request) -> str:
        """Return the id of the valid credential to which a request is charged."""
        return request.auth.key.pk

    def _charge_address(self, request: Request) -> None:
        address = client_address(request)
        # A client has all of its IPv6 network. Those who are not known share one counter.
        holder = network_of(address) if address else "unknown"
        try:
            self.decision = charge(ADDRESS, settings.REST_FAILURE_RATE, holder)
        except RateLimited:
            if came_through_unknown_proxy(request):
                # A client may also have invented the header.
                logger.warning(
                    "Requests without a valid key from %s are refused. The request was forwarded. If this is the "
                    "address of a proxy, all its clients share one limit, so add it to SLUICEGATE_TRUSTED_PROXIES.",
                    address,
                )
            raise

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        if self.decision is not None:
            for name, value in self.decision.headers().items():
                response.headers.setdefault(name, value)
        return response
