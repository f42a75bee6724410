"""
Integration for WSGI applications.

>>> application = LimitMiddleware(application)

The middleware passes the response of the application on chunk by chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from enforcement.doors._guard import DECISION, Guard
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import (
    TOKEN_FIELDS,
    Header,
    PlainResponse,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    joining,
    token_in,
    without_token,
)
from enforcement.http.progress import Progress
from enforcement.http.usage_request import UsageRequest, usage_answer
from enforcement.limiter import Admission, Limiter
from enforcement.plan.decision import Decision, Denied

_VARIABLES: Final = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in TOKEN_FIELDS}

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class LimitMiddleware(Guard[App, Limiter, Environ]):
    """
    Pass a request on to *app* if every limit admits it, and answer it with the denial otherwise.

    Args:
        app: Any WSGI application.
        limiter: A :class:`enforcement.Limiter`. None: one is made from the environment at the first request. The
            limiter is started at the first request in both cases.
        token: Returns the token of a request, or None. By default ``Authorization: Bearer``, then ``X-API-Key``.
            An empty string is a token that is not valid.
        costs: Returns the costs of a request. By default one request.
        attributes: Returns attributes to add to ``method``, ``path``, ``ip`` and ``header.<name>``, or to replace them.
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        exempt: Paths that are never limited and need no token.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is trusted.
        anonymous: Slug of the project that requests without a token count for. Its anonymous policy decides on them.
            None: they are refused with 401. The answer to a token that is not valid is always 401.
        usage_endpoint: Whether ``/.well-known/sluicegate/usage`` shows each token its own limits. A request for it is
            charged to none of them.
    Raises:
        ValueError: The preset, a network or the project is not valid.

    The application finds the decision in ``environ["sluicegate.decision"]``. A slot of a concurrency limit is held
    until the response is complete or the server closes it.
    """

    kind = Limiter

    @staticmethod
    def usual_token(request: Environ) -> str | None:
        """Return the token in the usual header fields of a request, or None, see :func:`token_in`."""
        return token_in(lambda name: request.get(_VARIABLES[name]))

    @staticmethod
    def make_lock() -> threading.Lock:
        """Return a new lock for threads, which allows the limiter to be started only once."""
        return threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Return the body of the application's response, or of a denial in its place."""
        if (path := _path(environ)) in self._unlimited:
            if path == USAGE_PATH and self._shows_usage:
                return self._show_usage(environ, start_response)
            return self.app(environ, start_response)
        try:
            admitted = self._admit(self.limiter if self._started and self.limiter else self.start(), environ)
        except Refusal as refusal:
            return _answer(environ, start_response, refusal.answer(self._headers))
        except Denied as denied:
            return _answer(environ, start_response, denial(denied.decision, self._headers))
        decision = admitted if isinstance(admitted, Decision) else admitted.decision
        environ[DECISION] = decision
        headers = added_headers(decision, self._headers)
        if isinstance(admitted, Decision):
            return self.app(environ, _adding(headers, start_response))
        return _run_admitted(self.app, environ, _adding(headers, start_response), admitted)

    def _show_usage(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request for the page of own limits."""
        limiter = self.limiter if self._started and self.limiter else self.start()
        method = environ["REQUEST_METHOD"]
        asked = UsageRequest(
            method, lambda: self._token(environ), lambda: self._describe(environ), self._headers, self._anonymous
        )
        return _answer(environ, start_response, usage_answer(limiter, asked))

    def start(self) -> Limiter:
        """Start the limiter, once, and return it. The first request calls this."""
        with self._starting:
            if self.limiter is None:
                self.limiter = Limiter.from_env()
            if not self._started:
                self.limiter.start()
                self._started = True
        return self.limiter

    def close(self) -> None:
        """Close the limiter, if it was started."""
        if self._started and self.limiter is not None:
            self._started = False
            self.limiter.close()

    def _admit(self, limiter: Limiter, environ: Environ) -> Decision | Admission:
        """
        Charge a request, and return its decision, or an admission if it holds slots or is charged by status. Raises
        Refusal or Denied if it may not pass.
        """
        shown = self._token(environ)
        token = shown or without_token(shown, self._anonymous)
        attributes = self._describe(environ)
        plan = limiter.find_plan(token, attributes)
        if isinstance(plan, Decision):
            raise Denied(plan)
        costs = self._costs(environ) if self._costs else 1
        if plan.has_slots or plan.has_charge_on:
            return limiter.admit_plan(plan, costs, attributes)
        decision = limiter.decide(plan, costs)
        if not decision.allowed:
            raise Denied(limiter.noted(decision, attributes))
        return decision

    def _describe(self, environ: Environ) -> RequestAttributes:
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        values: dict[str, str | None] = {
            "method": environ["REQUEST_METHOD"],
            "path": _path(environ),
            # REMOTE_ADDR is empty over a Unix socket.
            "ip": self._proxies.client(environ.get("REMOTE_ADDR") or None, [forwarded] if forwarded else []),
        }
        if self._attributes:
            values.update(self._attributes(environ))
        return RequestAttributes(values, lambda name: _header(environ, name))


def _adding(ours: list[Header], start_response: StartResponse) -> StartResponse:
    """Return a ``start_response`` that adds our header fields to those of the application and calls the given one."""

    def starting(status: str, headers: list[Header], *error: object) -> Callable[[bytes], object]:
        return start_response(status, headers + list(joining((name for name, _ in headers), ours)), *error)

    return starting


def _run_admitted(app: App, environ: Environ, start_response: StartResponse, admission: Admission) -> Iterable[bytes]:
    """Call an application, return its body, and finish the admission when the response is complete."""
    progress = Progress()

    def starting(status: str, headers: list[Header], *error: object) -> Callable[[bytes], object]:
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        progress.begin(int(status[:3]), length)
        return start_response(status, headers, *error)

    try:
        body = app(environ, starting)
    except BaseException:
        admission.finish(progress.status or 500)
        raise
    if isinstance(body, (list, tuple)):
        # Such a body is complete. Return it as it is: the server may take its length.
        admission.finish(progress.status or 500)
        return body
    return _StreamedBody(body, progress, admission)


class _StreamedBody:
    """A response body that finishes the admission at its end, or when the server closes it."""

    def __init__(self, body: Iterable[bytes], progress: Progress, admission: Admission) -> None:
        self._body = body
        self._progress = progress
        self._admission = admission

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            if self._progress.ends_with(len(chunk)):
                self._finish()
            yield chunk
        self._finish()

    def close(self) -> None:
        """Close the body of the application, and finish the admission. Servers call this whatever happened."""
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._finish()

    def _finish(self) -> None:
        self._admission.finish(self._progress.status or 500)


def _answer(environ: Environ, start_response: StartResponse, answer: PlainResponse) -> Iterable[bytes]:
    """Start a response in place of the application, and return its body."""
    start_response(f"{answer.status} {answer.phrase}", list(answer.headers))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


def _path(environ: Environ) -> str:
    """Return the decoded path of a request. WSGI passes its bytes as Latin-1."""
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return path.encode("latin-1").decode("utf-8", "replace")


def _header(environ: Environ, name: str) -> str | None:
    key = name.upper().replace("-", "_")
    value = environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}")
    return value if isinstance(value, str) else None
