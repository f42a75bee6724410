"""
Integration for Django REST framework. It replaces the framework's throttle classes with exact ones of the same names.

>>> REST_FRAMEWORK = {
...     "DEFAULT_THROTTLE_CLASSES": ["enforcement.doors.drf.UserRateThrottle"],
...     "DEFAULT_THROTTLE_RATES": {"user": "1000/day"},
... }

Scopes, rates and ``get_cache_key()`` of subclasses work as before. A rate in a string is a ``sliding_log``: it counts
the requests of exactly the last period, as the framework's own list does. The settings, including trusted proxies, are
those of :mod:`enforcement.doors.django`, whose middleware adds the header fields to every response.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from enforcement.extras import Requirement

with Requirement("The Django REST framework integration", "djangorestframework"):
    from django.core.exceptions import ImproperlyConfigured
    from rest_framework import exceptions, throttling
    from rest_framework.settings import api_settings

from enforcement.decorator import Declared, declared
from enforcement.doors._in_code import counted_address, counter_key
from enforcement.doors.django import get_options, visit_of
from enforcement.http.messages import Refusal, challenge, log_denial
from enforcement.model.limits import Limit
from enforcement.plan.decision import Decision, Denied

_KIND: Final = "key"


class _CurrentRates:
    """The current rates of the settings, which the framework's own class reads only when it is imported."""

    def __get__(self, instance: object, owner: type) -> object:
        return api_settings.DEFAULT_THROTTLE_RATES


class SimpleRateThrottle(throttling.SimpleRateThrottle):
    """
    Count requests in the store, exactly and over any number of processes.

    Django REST framework counts them in a cache. ``rate`` may also be a Limit, or several limits in one string,
    ``"10/minute; 1000/day"``, which are one atomic decision. A subclass's ``parse_rate()`` is not called. The client's
    address depends on TRUSTED_PROXIES, not on NUM_PROXIES.

    Raises:
        ImproperlyConfigured: A rate is not valid.
    """

    THROTTLE_RATES: Any = _CurrentRates()
    cost: int = 1
    decision: Decision | None = None

    def __init_subclass__(cls, **keywords: object) -> None:
        """Raise ImproperlyConfigured for a class with an invalid rate, when its module is imported."""
        super().__init_subclass__(**keywords)
        rate = cls.__dict__.get("rate")
        if rate and isinstance(rate, (str, Limit, list, tuple)):  # an empty rate is that of the scope
            cls._limits(rate)

    def parse_rate(self, rate: Any) -> tuple[int | None, int | None]:
        """Return the quota and the seconds of the first limit of a rate, or None twice for no rate."""
        if rate is None:
            return None, None
        first = self._limits(rate)[0]
        return first.quota, first.window_seconds

    def allow_request(self, request: Any, view: Any) -> bool:
        """Charge a request, if it has a key and a rate, and return whether it may pass. Raises LimitDenied."""
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
            self.decision = visit_of(request).decide([(self._limits(self.rate), name)], self.cost)
        except Denied as denied:
            self.decision = _throttled(denied)
        return self.decision.allowed

    def wait(self) -> float | None:
        """Return the seconds until the same request is worth another try, or None if no wait helps."""
        return _seconds(self.decision)

    def get_ident(self, request: object) -> str:
        """
        Return the address or /64 network of the client, or an empty string if it is unknown. Forwarded addresses count
        only if a trusted proxy wrote them.
        """
        return counted_address(visit_of(request).address(), get_options().bits)

    @classmethod
    def _limits(cls, rate: Declared) -> tuple[Limit, ...]:
        try:
            if isinstance(rate, (str, Limit)):
                return _read(rate)
            return declared([limit for one in rate for limit in (_read(one) if isinstance(one, str) else (one,))])
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(f"The rate of {cls.__name__} is not valid. {exc}") from exc


class AnonRateThrottle(throttling.AnonRateThrottle, SimpleRateThrottle):
    """Limit clients that are not logged in, by address. The scope is ``anon``."""


class UserRateThrottle(throttling.UserRateThrottle, SimpleRateThrottle):
    """Limit each user, and clients that are not logged in by address. The scope is ``user``."""


class ScopedRateThrottle(throttling.ScopedRateThrottle, SimpleRateThrottle):
    """Limit each user in the views of one ``throttle_scope``."""


class PolicyThrottle(throttling.BaseThrottle):
    """
    Charge a request to the published policies of its token.

    A missing or invalid token is answered with 401 or 403, not 429. If a policy holds slots or charges by status, the
    middleware of :mod:`enforcement.doors.django` is required.
    """

    decision: Decision | None = None

    def allow_request(self, request: object, view: object) -> bool:
        """
        Charge a request to the policies of its token, and return whether it may pass. Raises LimitDenied if it is
        denied for another reason than a rate limit.
        """
        try:
            self.decision = visit_of(request).check()
        except Refusal as refusal:
            raise _Refused(refusal) from refusal
        except Denied as denied:
            self.decision = _throttled(denied)
        return self.decision.allowed

    def wait(self) -> float | None:
        """Return the seconds until the same request is worth another try, or None if no wait helps."""
        return _seconds(self.decision)


class LimitDenied(exceptions.APIException):
    """A denial that is not a rate limit, because the token is not valid or a limit cannot be checked now."""

    def __init__(self, decision: Decision) -> None:
        self.status_code = decision.status
        super().__init__(decision.problem()["title"], decision.reason)
        self.wait = _seconds(decision)
        if decision.status == 401:
            self.auth_header = challenge(decision.reason)


class _Refused(exceptions.APIException):
    """A request that is refused without a decision."""

    def __init__(self, refusal: Refusal) -> None:
        self.status_code = refusal.status
        super().__init__(str(refusal), refusal.code)
        self.auth_header = dict(refusal.fields).get("WWW-Authenticate")


def _throttled(denied: Denied) -> Decision:
    """Log a denial, and return its decision if a rate limit made it, or raise LimitDenied for any other denial."""
    log_denial(denied.decision)
    if denied.decision.status != 429:
        raise LimitDenied(denied.decision) from denied
    return denied.decision


def _seconds(decision: Decision | None) -> float | None:
    if decision is None or decision.retry_after_ms is None:
        return None
    return decision.retry_after_ms / 1_000


# The same rate must give the same objects, because a limiter caches limits by identity.
@lru_cache(maxsize=1_024)
def _read(rate: str | Limit) -> tuple[Limit, ...]:
    if isinstance(rate, Limit):
        return declared(rate)
    return tuple(_as_log(limit) for limit in declared(rate))


def _as_log(limit: Limit) -> Limit:
    """
    Return a copy of a limit that counts as the list of the framework does, or the same limit if it follows a calendar.
    """
    return limit if limit.calendar else replace(limit, algorithm="sliding_log")


__all__ = [
    "AnonRateThrottle",
    "LimitDenied",
    "PolicyThrottle",
    "ScopedRateThrottle",
    "SimpleRateThrottle",
    "UserRateThrottle",
]
