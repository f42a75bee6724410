"""
Integration for Flask. Limits are decorators of views.

>>> app = Flask(__name__)
>>> install(app)
>>> @app.get("/search")
... @limited("100/minute", key="ip")
... def search(): ...

``app.config["SLUICEGATE"]`` is a dictionary of :data:`~enforcement.doors._options.NAMES`. What it leaves out is read
from the environment. To check the published policies of every request, pass ``default=check()`` to :func:`install`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache, wraps
from typing import Any, Final, Literal, TypeVar, cast

from enforcement.extras import Requirement

with Requirement("The Flask integration", "sluicegate[flask]"):
    from flask import Blueprint, Flask, Request, Response, current_app, request
    from werkzeug.exceptions import HTTPException, default_exceptions

from enforcement.decorator import Declared, chosen
from enforcement.doors._guard import check_limiter
from enforcement.doors._in_code import (
    EXEMPT,
    LIMITED,
    Group,
    beside,
    check_function,
    check_methods,
    denial_without_limits,
    groups_of,
    logger,
    name_at,
    name_of,
    note_wrapped,
    warn_of_unlimited,
)
from enforcement.doors._options import NAMES, Options, read_options
from enforcement.doors._sync_visit import SyncBody, SyncVisit, usual_token
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import PlainResponse, Refusal, RequestAttributes, without_token
from enforcement.http.usage_request import UsageRequest, usage_answer
from enforcement.limiter import Limiter
from enforcement.plan.costs import Costs, check_costs
from enforcement.plan.decision import Decision, Denied

SETTING: Final = "SLUICEGATE"
_OPTIONS: Final = [name for name in NAMES if name != "USAGE_ENDPOINT"]  # the page is a view of the application
_EXTENSION: Final = "sluicegate"
_VISIT: Final = "sluicegate.visit"
_NESTED: Final = "nested"

View = TypeVar("View", bound=Callable[..., object])
Exempt = TypeVar("Exempt", bound=Callable[..., object] | Blueprint)
Key = Literal["ip", "all"] | Callable[[Request], object]


class WerkzeugDenied(Denied, HTTPException):
    """A denial that is also an error of Werkzeug."""

    def __init__(self, decision: Decision) -> None:
        problem = decision.problem()
        super(Denied, self).__init__(description=problem.get("detail", problem["title"]))
        self.decision = decision


class FlaskVisit(SyncVisit):
    """A request of a Flask application."""

    def __init__(self, installed: _Extension) -> None:
        super().__init__(installed)
        self.finished = False

    def environ(self) -> Mapping[str, object]:
        """Return the environ of the request."""
        return request.environ

    def address(self) -> str | None:
        """Return the address of the client, or None if it is unknown."""
        # The address is empty over a Unix socket.
        return self.installed.options().address(request.remote_addr or None, request.headers.getlist)

    def describe(self, more: Callable[[Request], Any] | None) -> RequestAttributes:
        """Return the attributes of the request, with those that functions of the application return."""
        values: dict[str, str | None] = {"method": request.method, "path": _path(), "ip": self.address()}
        for found in (self.installed.options().attributes, more):
            if found is not None:
                values.update(found(request))
        return RequestAttributes(values, request.headers.get)

    def usage(self) -> PlainResponse:
        """Return the response to a request for the page of own limits."""
        options = self.installed.options()
        asked = UsageRequest(
            "GET" if request.method == "HEAD" else request.method,  # Werkzeug leaves the body out by itself
            lambda: (options.token or usual_token)(request),
            lambda: self.describe(None),
            options.headers,
            options.anonymous,
        )
        return usage_answer(self.installed.limiter(), asked)

    def denied(self, decision: Decision) -> Denied:
        """Return the exception that answers a denial."""
        return _denied_with(decision.status)(decision)

    def finish(self, response: Response) -> Response:
        """Add the header fields to the response, end the visit now or at the end of a stream, and return it."""
        if self._conditional:
            self.settle(response)
        self.add_headers(response.headers)
        self.finished = True
        if self._held and response.is_streamed:
            response.call_on_close(getattr(response.response, "close", _nothing))
            body = response.response if response.direct_passthrough else response.iter_encoded()
            response.response = SyncBody(body, self, response)
        else:
            self.end(response.status_code)
        return response


class _Extension:
    """The options and the limiter of one application."""

    def __init__(
        self, options: Options, limiter: Limiter | None, default: ViewRule | None, configured: dict[str, object]
    ) -> None:
        self._options = options
        self._limiter = limiter
        self._lock = threading.Lock()
        self._looked = False
        self._configured = configured
        self.default = default

    def options(self) -> Options:
        """Return the options of the application."""
        return self._options

    def limiter(self) -> Limiter:
        """Return the limiter of the application, made at the first request if none was given."""
        if self._limiter is None:
            with self._lock:
                self._limiter = self._limiter or self._options.limiter()
        return self._limiter

    def close(self) -> None:
        """Close the limiter. The next request would start it again."""
        if self._limiter is not None:
            self._limiter.close()

    def before(self) -> Any:
        """
        Charge a request to the default if its view has no rule of its own and is not exempt, and return None, or the
        response to a denial that the application makes itself.
        """
        if not self._looked:
            self._looked = True
            if current_app.config.get(SETTING, {}) != self._configured:
                logger.error("app.config[%r] was changed after install(), which has read it. Set it before.", SETTING)
            warn_of_unlimited(current_app.view_functions.values())
        view = current_app.view_functions.get(request.endpoint or "")
        default = self.default
        if default is None or view is None or _path() in self._options.exempt or _is_automatic():
            return None
        rules = getattr(view, LIMITED, ())
        if default.applies() and not any(rule.applies() for rule in rules) and not _is_exempt(view):
            name = _counted_as(view, name_of(view))
            return default.charge(f"{name}#default" if rules else name)
        return None

    def after(self, response: Response) -> Response:
        """Return the response with the header fields of the decisions on its request."""
        visit = request.environ.get(_VISIT)
        return response if visit is None else visit.finish(response)

    def teardown(self, error: BaseException | None) -> None:
        """End a request that got no response."""
        visit = request.environ.get(_VISIT)
        if visit is not None and not visit.finished:
            visit.end(500)


class ViewRule:
    """The result of :func:`limited` or :func:`check`. It decorates a view, or is the default of an application."""

    groups: tuple[Group, ...] = ()

    def applies(self) -> bool:
        """Return whether the present request has a method that is limited."""
        return True

    def charge(self, name: str) -> Any:
        """
        Charge the present request, to which this applies, to the view *name*, and return None, or the response to a
        denial that the application makes itself. Raises Denied and Refusal.
        """
        raise NotImplementedError

    def __call__(self, view: View) -> View:
        """Return the view with this rule, which is charged before it runs. The view may be a coroutine function."""
        if isinstance(view, type):
            raise TypeError(f"view: must be a function; put the rule into decorators of a class, got {view!r}.")
        _check_view(view)
        name, others = name_of(view), getattr(view, LIMITED, ())
        rule = copy(self)
        rule.groups = beside(self.groups, [group for other in others for group in other.groups])

        @wraps(view)
        def limited_view(*args: object, **kwargs: object) -> Any:
            if rule.applies() and (answer := rule.charge(_counted_as(view, name))) is not None:
                return answer
            return current_app.ensure_sync(view)(*args, **kwargs)

        setattr(limited_view, LIMITED, (rule, *others))
        note_wrapped(view)
        return cast(View, limited_view)


class _LimitedView(ViewRule):
    def __init__(
        self, limits: Any, key: Any, scope: str | None, costs: Any, methods: Any, charge_if: Any, on_denial: Any
    ) -> None:
        self._charge_if = check_function("charge_if", charge_if)
        self._on_denial = check_function("on_denial", on_denial)
        self.groups = groups_of(limits, key, scope, costs)
        self._costs = costs
        self._methods = check_methods(methods)

    def applies(self) -> bool:
        return self._methods is None or request.method in self._methods

    def charge(self, name: str) -> Any:
        visit, pairs = _visit(), []
        for group in self.groups:
            found = group.find and current_app.ensure_sync(group.find)(request)
            key = group.key(name, found, visit.address, visit.installed.options().bits)
            if key is None:
                continue
            limits = chosen(group.limits(request)) if callable(group.limits) else group.limits
            if limits is not None:
                pairs.append((limits, key))
        if not pairs:
            return None
        costs = self._costs(request) if callable(self._costs) else self._costs
        try:
            visit.decide(pairs, costs, self._charge_if)
        except Denied as denied:
            answer = None if self._on_denial is None else self._on_denial(denied.decision)
            if answer is None:
                raise
            return answer
        return None


class _CheckedView(ViewRule):
    def __init__(self, costs: Any, attributes: Callable[[Request], Any] | None) -> None:
        self._costs = costs if costs is None or callable(costs) else check_costs(costs)
        self._attributes = attributes

    def charge(self, name: str) -> Any:
        visit = _visit()
        options = visit.installed.options()
        shown = (options.token or usual_token)(request)
        token = shown or without_token(shown, options.anonymous)
        costs = (options.costs or 1) if self._costs is None else self._costs
        visit.charge_policies(token, visit.describe(self._attributes), costs(request) if callable(costs) else costs)


def install(app: Flask, limiter: Limiter | None = None, *, default: ViewRule | None = None) -> None:
    """
    Add what the decorators of this module need to *app*, whose ``SLUICEGATE`` configuration is read now.

    Every response gets the header fields of the decisions on its request. Denials are answered as problems (RFC 9457),
    also if a view itself raises Denied, unless *app* has a handler for Denied. A limiter that is made here starts at
    the first request, and closes when the process ends.

    Args:
        limiter: None: one is made from the configuration and the environment.
        default: The rule of all views that have none of their own and are not exempt. It also applies to the methods
            that a view's own rules leave out. A request that reaches no view is not charged.
    Raises:
        TypeError: *default* is not a rule.
        ValueError: The configuration is not valid, or the application has it installed already.
    """
    if default is not None and not isinstance(default, ViewRule):
        raise TypeError(f"default: must be what limited() or check() returns, got {default!r}.")
    check_limiter(limiter, Limiter)
    if _EXTENSION in app.extensions:
        raise ValueError("app: Sluicegate is already installed.")
    configured = app.config.get(SETTING, {})
    options = read_options(configured, f"app.config[{SETTING!r}]", names=_OPTIONS)
    installed = app.extensions[_EXTENSION] = _Extension(options, limiter, default, dict(configured))
    app.before_request(installed.before)
    app.after_request(installed.after)
    app.teardown_request(installed.teardown)
    for kind, answer in ((Denied, _answer_denied), (Refusal, _answer_refused)):
        if kind not in app.error_handler_spec[None][None]:  # else the application has its own
            app.register_error_handler(kind, answer)
    if limiter is None:
        weakref.finalize(app, installed.close)  # also when the process ends


def limited(
    limits: Declared | Callable[[Request], Declared | None] | Sequence[tuple[object, Key]],
    *,
    key: Key | None = None,
    scope: str | None = None,
    costs: Costs | Callable[[Request], Costs] = 1,
    methods: Sequence[str] | None = None,
    charge_if: Callable[[Response], bool] | None = None,
    on_denial: Callable[[Decision], object] | None = None,
) -> ViewRule:
    """
    Return a decorator of views, sync or async, that charges each request to limits in code.

    Put it below ``@app.get(...)``. In a class-based view, put it into ``decorators``. A slot of a concurrency limit is
    held until the response is complete.

    Args:
        limits: ``"100/minute"``, ``"10/second; 1000/day"``, a Limit, or several. Several are one atomic decision. Or a
            function of the request that returns them, or None if no limit applies. Or pairs of
            limits and a key, which are one decision, too, such as ``[("50/minute", "ip"), ("100/minute", "all")]``.
        key: Whom a request counts for. ``"ip"`` is the client's address, or the /64 network of an IPv6 address.
            ``"all"`` is everybody together. A function of the request returns a string, an integer or a UUID, or None
            to exempt the request.
        scope: Name of the counters. None: that of the view. Views of the same scope share counters.
        costs: The costs of a request, or a function of the request that returns them.
        methods: HTTP methods that are limited. None: all.
        charge_if: Returns whether a request stays charged, by its response. A denied one is never charged. None: all.
        on_denial: Called with the decision that denies a request. It returns the response of the view, or None for the
            usual one.
    Raises:
        ValueError: Limits, key, scope, costs or methods are not valid.
        TypeError: *limits* holds something that is not a limit, or a function is none.
    """
    return _LimitedView(limits, key, scope, costs, methods, charge_if, on_denial)


def check(
    *,
    costs: Costs | Callable[[Request], Costs] | None = None,
    attributes: Callable[[Request], object] | None = None,
) -> ViewRule:
    """
    Return a decorator of views that charges each request to the published policies of its token.

    Slots are held until the response is complete; ``charge_on`` looks at its status.

    Args:
        costs: The costs of a request, or a function of the request that returns them. None: those of the option
            ``COSTS``, else one request.
        attributes: Returns attributes to add to ``method``, ``path``, ``ip`` and ``header.<name>``.
    Raises:
        ValueError: The costs are not valid.
    """
    return _CheckedView(costs, attributes)


def exempt(view: Exempt, *, nested: bool = False) -> Exempt:
    """
    Mark a view, or all views of a blueprint, as exempt from the default of :func:`install`, and return it.

    Args:
        nested: Whether the blueprints that are registered on this one are exempt as well.
    Raises:
        TypeError: *view* is neither of both, or has no blueprints in it.
    """
    if isinstance(view, Blueprint):
        setattr(view, EXEMPT, _NESTED if nested else True)
        return view
    _check_view(view)
    if nested:
        raise TypeError(f"nested: must be False for a view, which has no blueprints in it, got {view!r}.")
    setattr(view, EXEMPT, True)
    return view


def get_limiter() -> Limiter:
    """Return the limiter of the present application, for views that use it directly."""
    return _installed().limiter()


def _installed() -> _Extension:
    installed = current_app.extensions.get(_EXTENSION)
    if not isinstance(installed, _Extension):
        raise RuntimeError("Sluicegate is not installed: call enforcement.doors.flask.install(app).")
    return installed


def _visit() -> FlaskVisit:
    """Return the visit of the present request. It is kept with the request, because ``g`` may outlive that in tests."""
    visit = request.environ.get(_VISIT)
    if not isinstance(visit, FlaskVisit):
        visit = request.environ[_VISIT] = FlaskVisit(_installed())
    return visit


def _path() -> str:
    """Return the whole path of the present request, also if the application is mounted below another."""
    return f"{request.root_path}{request.path}"


def _check_view(view: object) -> None:
    if not callable(view):
        raise TypeError(f"view: must be a function or class, got {view!r}. Of a blueprint, limit before_request().")


@exempt
def usage() -> Response:
    """
    Return the page on which a token sees its own limits. It is charged to none of them.

    >>> app.add_url_rule(USAGE_PATH, view_func=usage)
    """
    return _response(_visit().usage())


def _counted_as(view: object, name: str) -> str:
    """Return the name of the counters of a function with this full name, which is called in the present request."""
    if "<" not in name:
        return name
    return name_at(request.endpoint, view, current_app.view_functions.get(request.endpoint or ""))


def _is_exempt(view: object) -> bool:
    """Return whether the view of the present request is exempt, by itself or by the blueprint that it belongs to."""
    if getattr(view, EXEMPT, False):
        return True
    marks = [getattr(current_app.blueprints[name], EXEMPT, None) for name in request.blueprints]
    return any(marks[:1]) or _NESTED in marks


def _is_automatic() -> bool:
    """Return whether Flask answers the request, an OPTIONS such as browsers send ahead, without calling the view."""
    return request.method == "OPTIONS" and bool(getattr(request.url_rule, "provide_automatic_options", False))


@lru_cache
def _denied_with(status: int) -> type[WerkzeugDenied]:
    """
    Return the class of denials with a status.

    Flask finds the handler of a status, such as 429, by the class of the error, which must be Werkzeug's own.
    """
    return type("WerkzeugDenied", (WerkzeugDenied, default_exceptions[status]), {})


def _answer_denied(denied: Denied) -> Response:
    visit = _visit()
    visit.note(denied.decision)
    return _response(denial_without_limits(denied.decision, visit.installed.options().headers))


def _answer_refused(refusal: Refusal) -> Response:
    return _response(refusal.answer(_visit().installed.options().headers))


def _response(answer: PlainResponse) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers))


def _nothing() -> None:
    """Do nothing."""


__all__ = ["USAGE_PATH", "ViewRule", "check", "exempt", "get_limiter", "install", "limited", "usage"]
