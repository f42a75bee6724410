"""
Integration for Django. It has a decorator for limits in code, and middleware for published policies.

>>> @limited("10/minute", key="ip")
... def search(request): ...

``settings.SLUICEGATE`` is a dictionary of :data:`~enforcement.doors._options.NAMES`. What it leaves out is read from
the environment. A process has one limiter, which runs in threads, also for asynchronous views: under WSGI and in tests
each of these has an event loop of its own, and connections cannot be shared between event loops.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import wraps
from typing import Any, Final, Literal, TypeVar

from enforcement.extras import Requirement

with Requirement("The Django integration", "Django"):
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.apps import AppConfig
    from django.conf import settings
    from django.core import checks
    from django.core.exceptions import ImproperlyConfigured
    from django.core.signals import setting_changed
    from django.http import HttpRequest, HttpResponse

from enforcement.decorator import Declared, chosen, declared
from enforcement.doors._in_code import (
    EXEMPT,
    LIMITED,
    beside,
    check_function,
    check_methods,
    denial_without_limits,
    groups_of,
    name_at,
)
from enforcement.doors._options import Options, read_options
from enforcement.doors._sync_visit import DjangoVisit, in_thread
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import PlainResponse, Refusal
from enforcement.limiter import Limiter
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision, Denied

SETTING: Final = "SLUICEGATE"
_VISIT: Final = "_sluicegate_visit"

View = TypeVar("View", bound=Callable[..., object])
Key = Literal["ip", "user", "all"] | Callable[[HttpRequest], object]


class _Installation:
    """The settings and the limiter of this process, created when they are first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._options: Options | None = None
        self._limiter: Limiter | None = None

    def options(self) -> Options:
        """Return the settings, read at the first call. Raises ImproperlyConfigured if they are not valid."""
        if self._options is None:
            try:
                self._options = read_options(getattr(settings, SETTING, {}), SETTING)
            except ValueError as exc:
                raise ImproperlyConfigured(str(exc)) from exc
        return self._options

    def limiter(self) -> Limiter:
        """Return the limiter that all requests of this process use, which is made at the first call."""
        if self._limiter is None:
            options = self.options()
            with self._lock:
                self._limiter = self._limiter or options.limiter()
        return self._limiter

    def forget(self) -> None:
        """Close the limiter, and drop the settings, which are read again when they are next needed."""
        limiter, self._limiter, self._options = self._limiter, None, None
        if limiter is not None:
            limiter.close()


_installed = _Installation()
get_options = _installed.options
get_limiter = _installed.limiter
atexit.register(_installed.forget)


def _reload(*, setting: str, **_: object) -> None:
    if setting == SETTING:
        _installed.forget()


setting_changed.connect(_reload, dispatch_uid="sluicegate")


def visit_of(request: Any) -> DjangoVisit:
    """Return the one visit of a request, also if the framework has wrapped it, made at the first call."""
    request = getattr(request, "_request", request)
    visit: DjangoVisit | None = getattr(request, _VISIT, None)
    if visit is None:
        visit = DjangoVisit(request, _installed)
        setattr(request, _VISIT, visit)
        request.sluicegate = None
    return visit


class DecisionMiddleware:
    """
    Add the header fields of the decisions to each response.

    It also answers Denied as a problem, and frees slots when the response is complete. The view finds the latest
    decision in ``request.sluicegate``.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        get_options()  # reports invalid settings when the server starts
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Return the response, or an awaitable of it in an async stack, with the decisions' header fields."""
        if iscoroutinefunction(self):
            return self._serve(request)
        visit = visit_of(request)
        visit.managed = True
        try:
            return visit.finish(self._after(visit, self.get_response(request)))
        except BaseException:  # also SystemExit, or the cancellation of an async request: its slots must be freed
            visit.end(500)
            raise

    async def _serve(self, request: HttpRequest) -> Any:
        visit = visit_of(request)
        visit.managed = True
        try:
            response = await self.get_response(request)
            return await in_thread(lambda: visit.finish(self._after(visit, response)))
        except BaseException:
            await in_thread(visit.end, 500)
            raise

    def _after(self, visit: DjangoVisit, response: Any) -> Any:
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the response to a denial that a view itself raised, or None for any other exception."""
        if isinstance(exception, (Denied, Refusal)):
            return _answer(visit_of(request), exception)
        return None


class LimitMiddleware(DecisionMiddleware):
    """
    Pass a request to its view if every policy of its token admits it, and answer it with the denial otherwise.

    Paths in ``SLUICEGATE["EXEMPT"]`` and views under :func:`exempt` need no token. A request that reaches no view,
    because its path does not exist for instance, is checked before it is answered. Unless
    ``SLUICEGATE["USAGE_ENDPOINT"]`` is False, ``/.well-known/sluicegate/usage`` shows each token its own limits.
    """

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        self.process_view = self._check_awaited if iscoroutinefunction(self) else self._check

    def __call__(self, request: HttpRequest) -> Any:
        """Return the response, or an awaitable of it in an async stack. A path of ours has the page of own limits."""
        if request.path == USAGE_PATH and get_options().usage_endpoint:
            return in_thread(usage, request) if iscoroutinefunction(self) else usage(request)
        return super().__call__(request)

    def _check(self, request: HttpRequest, view: object, args: object, kwargs: object) -> HttpResponse | None:
        visit = visit_of(request)
        if request.path in get_options().exempt or getattr(view, EXEMPT, False):
            visit.checked = True
            return None
        try:
            visit.check()
        except (Denied, Refusal) as exc:
            return _answer(visit, exc)
        return None

    async def _check_awaited(
        self, request: HttpRequest, view: object, args: object, kwargs: object
    ) -> HttpResponse | None:
        return await in_thread(self._check, request, view, args, kwargs)

    def _after(self, visit: DjangoVisit, response: Any) -> Any:
        return response if visit.checked else self._check(visit.request, None, (), {}) or response


def exempt(view: View) -> View:
    """Mark a view as exempt from :class:`LimitMiddleware`, and return the view. In a class, decorate ``dispatch``."""
    setattr(view, EXEMPT, True)
    return view


@exempt
def usage(request: HttpRequest) -> HttpResponse:
    """Return the page on which a token sees its own limits. This view is for sites without :class:`LimitMiddleware`."""
    return _response(visit_of(request).usage())


def limited(
    limits: Declared | Callable[[HttpRequest], Declared | None] | Sequence[tuple[object, Key]],
    *,
    key: Key | None = None,
    scope: str | None = None,
    costs: Costs | Callable[[HttpRequest], Costs] = 1,
    methods: Sequence[str] | None = None,
    charge_if: Callable[[HttpRequest], bool] | None = None,
    on_denial: Callable[[HttpRequest, Decision], object] | None = None,
) -> Callable[[View], View]:
    """
    Return a decorator of sync and async views that charges each request to limits in code.

    For class-based views use ``@method_decorator(limited(...), name="dispatch")``.

    Args:
        limits: ``"10/minute"``, ``"10/second; 1000/day"``, a Limit, or several. Several are one atomic decision. Or a
            function of the request that returns them, or None if no limit applies. Or pairs of
            limits and a key, which are one decision, too, such as ``[("50/minute", "ip"), ("100/minute", "all")]``.
        key: Whom a request counts for. ``"ip"`` is the client's address, or the /64 network of an IPv6 address.
            ``"user"`` is the primary key of the logged-in user, else the address. ``"all"`` is everybody together. A
            function of the request returns a string, an integer or a UUID, or None to exempt the request.
        scope: Name of the counters. None: that of the view. Views of the same scope share counters.
        costs: The costs of a request, or a function of the request that returns them.
        methods: HTTP methods that are limited, at least one. None: all.
        charge_if: Returns whether a request stays charged, by its response. A denied one is never charged. None: all.
        on_denial: Called with the request and the decision that denies it. It returns the response, or None for the
            usual one.
    Raises:
        ValueError: Limits, key, scope, costs or methods are not valid.
        TypeError: *limits* holds something that is not a limit, or a function is none or asynchronous.
    """
    limit = _ViewLimit(limits, key, scope, costs, methods, charge_if, on_denial)

    def decorate(view: Any) -> Any:
        owner = getattr(getattr(view, "func", None), "__self__", None)
        # The dispatch method of an asynchronous class is not a coroutine function, but returns a coroutine.
        awaited = iscoroutinefunction(view) or getattr(owner, "view_is_async", False)
        others: tuple[_ViewLimit, ...] = getattr(view, LIMITED, ())
        rule = limit.beside(others)
        decorated = wraps(view)(_limit_awaited(view, rule) if awaited else _limit_called(view, rule))
        setattr(decorated, LIMITED, (rule, *others))
        return decorated

    return decorate


class _ViewLimit:
    """The limits in code of one view, and whom they count."""

    def __init__(
        self, limits: Any, key: Any, scope: str | None, costs: Any, methods: Any, charge_if: Any, on_denial: Any
    ) -> None:
        self._charge_if = check_function("charge_if", charge_if)
        self._on_denial = check_function("on_denial", on_denial)
        self._groups = groups_of(limits, key, scope, costs, kinds=("ip", "user", "all"))
        self._costs = costs
        self._methods = check_methods(methods)

    def beside(self, others: Iterable[_ViewLimit]) -> _ViewLimit:
        """Return a copy that counts apart from the other limits of its view."""
        limit = copy(self)
        limit._groups = beside(self._groups, [group for other in others for group in other._groups])
        return limit

    def applies_to(self, request: HttpRequest) -> bool:
        """Return whether the method of the request is limited."""
        return self._methods is None or request.method in self._methods

    def callers(self, request: HttpRequest) -> list[object]:
        """Return the user or the key that each group counts a request by, or None."""
        return [_user(request) if it.kind == "user" else it.find and it.find(request) for it in self._groups]

    async def callers_awaited(self, request: HttpRequest) -> list[object]:
        """Return the user or the key that each group counts a request to an async view by, or None."""
        found = [_user_awaited(request) if it.kind == "user" else it.find and it.find(request) for it in self._groups]
        return [await one if isinstance(one, Awaitable) else one for one in found]

    def decide(self, visit: DjangoVisit, view: Any, callers: list[object]) -> Any:
        """
        Charge a request to the limits of a view, but those whose key is None, and return None, or the response to a
        denial that the site makes itself. Raises Denied and Refusal.
        """
        request, pairs = visit.request, []
        match = request.resolver_match  # None for a request that no site has routed
        name = name_at(match and match.route, view, match and match.func)
        for group, caller in zip(self._groups, callers, strict=True):
            key = group.key(name, caller, visit.address, get_options().bits)
            if key is None:
                continue
            limits = chosen(group.limits(request)) if callable(group.limits) else group.limits
            if limits is not None:
                pairs.append((limits, key))
        if not pairs:
            return None
        try:
            visit.decide(pairs, self._costs(request) if callable(self._costs) else self._costs, self._charge_if)
        except Denied as denied:
            answer = None if self._on_denial is None else self._on_denial(request, denied.decision)
            if answer is None:
                raise
            return answer
        return None


def _limit_called(view: Any, limit: _ViewLimit) -> Any:
    def limited_view(request: HttpRequest, *args: object, **kwargs: object) -> Any:
        if not limit.applies_to(request):
            return view(request, *args, **kwargs)
        visit = visit_of(request)
        managed, visit.managed = visit.managed, True
        try:
            response = limit.decide(visit, view, limit.callers(request))
            if response is None:
                response = view(request, *args, **kwargs)
        except (Denied, Refusal) as exc:
            response = _answer(visit, exc)
        except BaseException:
            if not managed:
                visit.end(500)
            raise
        return response if managed else visit.finish(response)

    return limited_view


def _limit_awaited(view: Any, limit: _ViewLimit) -> Any:
    async def limited_view(request: HttpRequest, *args: object, **kwargs: object) -> Any:
        if not limit.applies_to(request):
            return await view(request, *args, **kwargs)
        visit = visit_of(request)
        managed, visit.managed = visit.managed, True
        try:
            response = await in_thread(limit.decide, visit, view, await limit.callers_awaited(request))
            if response is None:
                response = await view(request, *args, **kwargs)
        except (Denied, Refusal) as exc:
            response = _answer(visit, exc)
        except BaseException:
            if not managed:
                await in_thread(visit.end, 500)
            raise
        return response if managed else await in_thread(visit.finish, response)

    return limited_view


def _answer(visit: DjangoVisit, exc: Denied | Refusal) -> HttpResponse:
    """Return a new response to a request that may not pass, after noting the decision if there is one."""
    if isinstance(exc, Refusal):
        return _response(exc.answer(get_options().headers))
    visit.note(exc.decision)
    return _response(denial_without_limits(exc.decision, get_options().headers))


def _response(answer: PlainResponse) -> HttpResponse:
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


def _user(request: HttpRequest) -> object:
    if not hasattr(request, "user"):
        raise ImproperlyConfigured("key='user' needs django.contrib.auth's AuthenticationMiddleware.")
    return request.user.pk if request.user.is_authenticated else None


async def _user_awaited(request: HttpRequest) -> object:
    if not hasattr(request, "auser"):
        raise ImproperlyConfigured("key='user' needs django.contrib.auth's AuthenticationMiddleware.")
    user = await request.auser()
    return user.pk if user.is_authenticated else None


class SluicegateConfig(AppConfig):
    """Run the system checks. Add ``"enforcement.doors.django.SluicegateConfig"`` to INSTALLED_APPS."""

    name = "enforcement.doors.django"
    label = "sluicegate"

    def ready(self) -> None:
        """Register :func:`check_settings` with Django."""
        checks.register(check_settings)


def check_settings(**_: object) -> list[checks.CheckMessage]:
    """Return check messages for the settings that would fail or count wrongly in production."""
    try:
        read_options(getattr(settings, SETTING, {}), SETTING)
    except ValueError as exc:
        return [checks.Error(str(exc), id="sluicegate.E001")]
    found: list[checks.CheckMessage] = []
    ours = [f"{__name__}.{kind.__name__}" for kind in (DecisionMiddleware, LimitMiddleware)]
    if sum(settings.MIDDLEWARE.count(name) for name in ours) > 1:
        text = "LimitMiddleware includes DecisionMiddleware. Keep only one of them in MIDDLEWARE."
        found.append(checks.Error(text, id="sluicegate.E002"))
    behind = settings.USE_X_FORWARDED_HOST or settings.SECURE_PROXY_SSL_HEADER
    if behind and not getattr(settings, SETTING, {}).get("TRUSTED_PROXIES"):
        text = (
            "The site is behind a proxy that is not trusted. All clients appear under its address and share one limit."
        )
        hint = "Add the addresses of the proxy to SLUICEGATE['TRUSTED_PROXIES']."
        found.append(checks.Warning(text, hint=hint, id="sluicegate.W001"))
    return [*found, *_check_throttles(getattr(settings, "REST_FRAMEWORK", {}))]


def _check_throttles(options: Mapping[str, Any]) -> Iterator[checks.CheckMessage]:
    """Yield check messages for the settings of Django REST framework if it uses our throttles."""
    if not any("enforcement.doors.drf" in str(name) for name in options.get("DEFAULT_THROTTLE_CLASSES", ())):
        return
    for scope, rate in options.get("DEFAULT_THROTTLE_RATES", {}).items():
        try:
            _ = rate is None or declared(rate)
        except (TypeError, ValueError) as exc:
            text = f"REST_FRAMEWORK['DEFAULT_THROTTLE_RATES'][{scope!r}]: {exc}"
            yield checks.Error(text, id="sluicegate.E003")
    if options.get("NUM_PROXIES") is not None:
        text = "REST_FRAMEWORK['NUM_PROXIES'] has no effect on these throttles."
        hint = "Add the addresses of the proxies to SLUICEGATE['TRUSTED_PROXIES']."
        yield checks.Warning(text, hint=hint, id="sluicegate.W002")


__all__ = [
    "USAGE_PATH",
    *("DecisionMiddleware", "LimitMiddleware", "SluicegateConfig", "exempt", "get_limiter", "limited", "usage"),
]
