"""The base of the ASGI and the WSGI middleware, with their common arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

from enforcement.base import BaseLimiter
from enforcement.http.addresses import TrustedProxies
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import check_anonymous, check_preset
from enforcement.logs import RateLimitedLogger
from enforcement.model.checks import check_switch
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision

logger = logging.getLogger("sluicegate.doors")
_often = RateLimitedLogger(logger, seconds=600)

DECISION: Final = "sluicegate.decision"
"""Where the middleware keeps its decision, in the scope or environ of a request."""

_MOST_MIDDLEWARE: Final = 100

GuardedApp = TypeVar("GuardedApp")
AnyLimiter = TypeVar("AnyLimiter", bound=BaseLimiter)
Request = TypeVar("Request")


def check_limiter(limiter: object, kind: type[BaseLimiter]) -> None:
    """Raise TypeError if a limiter is given that is of the other kind, such as one for threads on an event loop."""
    if limiter is not None and not isinstance(limiter, kind):
        name = kind.__module__.removesuffix(".limiter")
        raise TypeError(f"limiter: must be an {name}.{kind.__name__}, got {limiter!r}.")


def _warn_of_twice(app: object) -> None:
    """Log that an application is behind two limiters, as far as middleware shows what is behind it."""
    for _ in range(_MOST_MIDDLEWARE):
        if app is None:
            return
        if isinstance(app, Guard):
            logger.error("%s is installed twice, so that each request is charged twice.", type(app).__qualname__)
            return
        app = getattr(app, "app", None)


def warn_of_both(request: Mapping[str, object], subject: tuple[str, str]) -> None:
    """
    Log that the policies of one token are charged by the middleware, and then again by what the application asks for.

    Args:
        request: Its scope or environ.
        subject: Ids of the project and of the token that are charged now.
    """
    decision = request.get(DECISION)
    if isinstance(decision, Decision) and decision.plan.subject == subject:
        message = "LimitMiddleware has charged the policies of a token, which are charged again. Leave one of them out."
        _often.warning("both", message)


def _check_exempt(paths: Iterable[str]) -> frozenset[str]:
    """Return the paths, or raise ValueError if one is not whole. A string would exempt each of its characters."""
    result = frozenset(() if isinstance(paths, str) else paths)
    if isinstance(paths, str) or not all(isinstance(path, str) and path.startswith("/") for path in result):
        raise ValueError(f"exempt: must be a list of paths that begin with /, got {paths!r}.")
    return result


class Guard(Generic[GuardedApp, AnyLimiter, Request]):
    """An application behind a limiter of a kind, which decides on each request."""

    kind: type[BaseLimiter]

    @staticmethod
    def usual_token(request: Any) -> str | None:
        """Return the token in a request's usual header fields, or None, as each subclass implements it."""
        raise NotImplementedError

    @staticmethod
    def make_lock() -> Any:
        """Return a new lock that allows the limiter to be started only once, as each subclass implements it."""
        raise NotImplementedError

    def __init__(
        self,
        app: GuardedApp,
        limiter: AnyLimiter | None = None,
        *,
        token: Callable[[Request], str | None] | None = None,
        costs: Callable[[Request], Costs] | None = None,
        attributes: Callable[[Request], Mapping[str, str]] | None = None,
        headers: str = "ietf",
        exempt: Iterable[str] = ("/healthz",),
        trusted_proxies: Iterable[str] = (),
        anonymous: str | None = None,
        usage_endpoint: bool = True,
        metered: bool = False,
        allowed_fields: Mapping[str, object] | None = None,
        json_rpc: Iterable[str] = (),
    ) -> None:
        """Set the attributes from the arguments, or raise ValueError or TypeError if one is not valid."""
        check_limiter(limiter, self.kind)
        self.app = app
        _warn_of_twice(app)
        self.limiter = limiter
        self._token: Callable[[Request], str | None] = token or self.usual_token
        self._by_usual_fields = token is None
        self._costs = costs
        self._attributes = attributes
        self._headers = check_preset(headers)
        self._exempt = _check_exempt(exempt)
        self._shows_usage = check_switch("usage_endpoint", usage_endpoint)
        # One look-up tells the usual request from all others.
        self._unlimited = self._exempt | {USAGE_PATH} if usage_endpoint else self._exempt
        self._proxies = TrustedProxies(trusted_proxies)
        self._anonymous = check_anonymous(anonymous)
        self._started = False
        self._starting = self.make_lock()
        self._allowed_fields = allowed_fields or {}
        self._json_rpc: frozenset[str] = frozenset()
        if json_rpc:
            self._deny_as_json_rpc(json_rpc)
        if check_switch("metered", metered):
            self._meter()

    def _deny_as_json_rpc(self, paths: Iterable[str]) -> None:
        """Deny requests to MCP servers as the middleware for ASGI does."""
        raise ValueError("json_rpc: must be empty, as only the middleware for ASGI can read the requests of MCP.")

    def _meter(self) -> None:
        """Begin to meter requests, as the middleware for ASGI does."""
        raise ValueError("metered: must be False, as only the middleware for ASGI can read what answers cost.")
