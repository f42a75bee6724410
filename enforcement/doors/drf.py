"""
The door for Django REST framework: its throttle classes, under their own names, with exact counts.

>>> REST_FRAMEWORK = {
...     "DEFAULT_THROTTLE_CLASSES": ["enforcement.doors.drf.UserRateThrottle"],
...     "DEFAULT_THROTTLE_RATES": {"user": "1000/day"},
... }

Scopes, rates and ``get_cache_key()`` of subclasses mean what they meant. Settings, trusted proxies among them, are
those of :mod:`enforcement.doors.django`, whose middleware tells what is left in every response.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from rest_framework import exceptions, throttling
from rest_framework.settings import api_settings

from enforcement.decorator import Declared, declared
from enforcement.doors._http import Refusal
from enforcement.doors._in_code import counted_address, counter_key
from enforcement.doors.django import visit_of
from enforcement.model.limits import Limit
from enforcement.plan.decision import Decision, Denied

_KIND: Final = "key"


class SimpleRateThrottle(throttling.SimpleRateThrottle):
    """
    Counts in the store what Django REST framework counts in a cache: exactly, over any number of processes.

    ``rate`` may also be several limits in one text, ``"10/minute; 1000/day"``, which are one atomic decision, or a
    Limit. A subclass's ``parse_rate()`` is not asked. What an address is, TRUSTED_PROXIES says, and not NUM_PROXIES.

    Raises:
        ImproperlyConfigured: A rate that cannot be used.
    """

    cost: int = 1
    decision: Decision | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Read the rate that a class states, so that a wrong one is found when its module is imported."""
        super().__init_subclass__(**keywords)
        rate = cls.__dict__.get("rate")
        if rate and isinstance(rate, (str, Limit, list, tuple)):  # an empty one asks for that of the scope
            cls._limits(rate)

    @property
    def THROTTLE_RATES(self) -> Any:
        """The rates of the settings as they are, and not as they were when this module was imported."""
        return api_settings.DEFAULT_THROTTLE_RATES

    def parse_rate(self, rate: Any) -> tuple[int | None, int | None]:
        """Return quota and seconds of the first limit of a rate."""
        if rate is None:
            return None, None
        first = self._limits(rate)[0]
        return first.quota, first.window_seconds

    def allow_request(self, request: Any, view: Any) -> bool:
        """Charge a request, unless it has no key or its throttle no rate. Raises LimitDenied."""
        if self.rate is None:
            return True
        key = self.get_cache_key(request, view)
        try:
            name = counter_key("drf", _KIND, key)
        except Refusal as refusal:
            raise _Refused(refusal) from refusal
        if name is None:
            return True
        try:
            self.decision = visit_of(request).decide(self._limits(self.rate), name, self.cost)
        except Denied as denied:
            self.decision = _throttled(denied)
        return self.decision.allowed

    def wait(self) -> float | None:
        """Return the seconds until the same request can pass; None: no wait helps."""
        return _seconds(self.decision)

    def get_ident(self, request: Any) -> str:
        """Return the client's address. Of forwarded ones only those that trusted proxies have written are believed."""
        return counted_address(visit_of(request).address())

    @classmethod
    def _limits(cls, rate: Declared) -> tuple[Limit, ...]:
        try:
            return _read(rate) if isinstance(rate, (str, Limit)) else declared(rate)
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(f"The rate of {cls.__name__} cannot be used. {exc}") from exc


class AnonRateThrottle(throttling.AnonRateThrottle, SimpleRateThrottle):
    """Limits who is not logged in, by address. Scope ``anon``."""


class UserRateThrottle(throttling.UserRateThrottle, SimpleRateThrottle):
    """Limits each user, and who is not logged in by address. Scope ``user``."""


class ScopedRateThrottle(throttling.ScopedRateThrottle, SimpleRateThrottle):
    """Limits each user in the views of one ``throttle_scope``."""


class PolicyThrottle(throttling.BaseThrottle):
    """
    Charges a request to the published policies of its token.

    A token that is none, or none any more, is 401 or 403 and not 429. Where a policy holds slots or charges by status,
    the middleware of :mod:`enforcement.doors.django` has to be there.
    """

    decision: Decision | None = None

    def allow_request(self, request: Any, view: Any) -> bool:
        """Charge a request. Raises LimitDenied: another denial than of a rate."""
        try:
            self.decision = visit_of(request).check()
        except Refusal as refusal:
            raise _Refused(refusal) from refusal
        except Denied as denied:
            self.decision = _throttled(denied)
        return self.decision.allowed

    def wait(self) -> float | None:
        """Return the seconds until the same request can pass; None: no wait helps."""
        return _seconds(self.decision)


class LimitDenied(exceptions.APIException):
    """A denial that is no rate limit: of a token that is not valid, or of a limit that cannot be checked now."""

    def __init__(self, decision: Decision) -> None:
        self.status_code = decision.status
        super().__init__(decision.problem()["title"], decision.reason)
        self.wait = _seconds(decision)
        if decision.status == 401:
            self.auth_header = 'Bearer realm="sluicegate", error="invalid_token"'


class _Refused(exceptions.APIException):
    """A request that no decision is made about."""

    def __init__(self, refusal: Refusal) -> None:
        self.status_code = refusal.answer.status
        super().__init__(str(refusal), refusal.code)
        self.auth_header = dict(refusal.answer.headers).get("WWW-Authenticate")


class LimitHeadersMixin:
    """For views: tells in the response what was decided on its request, where the middleware is not installed."""

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the response with its rate limit fields."""
        response = super().finalize_response(request, response, *args, **kwargs)  # type: ignore[misc]
        visit = visit_of(request)
        if not visit.managed:
            visit.tell(response)
        return response


def _throttled(denied: Denied) -> Decision:
    """Return a denial that is a rate limit. Raises LimitDenied: it is another."""
    if denied.decision.status != 429:
        raise LimitDenied(denied.decision) from denied
    return denied.decision


def _seconds(decision: Decision | None) -> float | None:
    if decision is None or decision.retry_after_ms is None:
        return None
    return decision.retry_after_ms / 1_000


# The same text gives the same limits, which a limiter knows again by identity.
@lru_cache(maxsize=1_024)
def _read(rate: str | Limit) -> tuple[Limit, ...]:
    return declared(rate)


__all__ = [
    "AnonRateThrottle",
    "LimitDenied",
    "LimitHeadersMixin",
    "PolicyThrottle",
    "ScopedRateThrottle",
    "SimpleRateThrottle",
    "UserRateThrottle",
]
