"""What the ASGI and the WSGI middleware are given alike, and check when they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from enforcement.base import BaseLimiter
from enforcement.doors._http import TrustedProxies, check_preset
from enforcement.plan.plan import Costs

App = TypeVar("App")
AnyLimiter = TypeVar("AnyLimiter", bound=BaseLimiter)
Request = TypeVar("Request")


class Guard(Generic[App, AnyLimiter, Request]):
    """An application behind a limiter, which is asked about each request."""

    @staticmethod
    def usual_token(request: Any) -> str | None:
        """Return a request's token where nothing else is said: that of the usual header fields."""
        raise NotImplementedError

    @staticmethod
    def make_lock() -> Any:
        """Return the lock under which the limiter is started, once."""
        raise NotImplementedError

    def __init__(
        self,
        app: App,
        limiter: AnyLimiter | None = None,
        *,
        token: Callable[[Request], str | None] | None = None,
        costs: Callable[[Request], Costs] | None = None,
        attributes: Callable[[Request], Mapping[str, str]] | None = None,
        headers: str = "ietf",
        exempt: Iterable[str] = ("/healthz",),
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        """Take what the class describes. Raises ValueError: an unknown preset, or a network that is none."""
        self.app = app
        self.limiter = limiter
        self._token: Callable[[Request], str | None] = token or self.usual_token
        self._by_usual_fields = token is None
        self._costs = costs
        self._attributes = attributes
        self._headers = check_preset(headers)
        self._exempt = frozenset(exempt)
        self._proxies = TrustedProxies(trusted_proxies)
        self._started = False
        self._starting = self.make_lock()


__all__ = ["Guard"]
