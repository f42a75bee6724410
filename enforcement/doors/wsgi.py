"""
The door for WSGI applications: middleware that passes the application's response on chunk by chunk.

>>> application = LimitMiddleware(application)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from enforcement.doors._guard import Guard
from enforcement.doors._http import (
    Answer,
    Header,
    Progress,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    find_token,
    joining,
    missing_token,
)
from enforcement.limiter import Limiter
from enforcement.plan.decision import Decision, Denied

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class LimitMiddleware(Guard[App, Limiter, Environ]):
    """
    Lets a request into *app* if every limit admits it, and answers it otherwise.

    Args:
        app: Any WSGI application.
        limiter: A :class:`enforcement.Limiter`; None: made of the environment at the first request. It is started then
            either way.
        token: Returns a request's token, or None for none; None: ``Authorization: Bearer``, then ``X-API-Key``.
        costs: Returns what a request costs; None: one request.
        attributes: Returns attributes beside ``method``, ``path``, ``ip`` and ``header.<name>``, or in their place.
        headers: Preset of :meth:`Decision.headers <enforcement.plan.decision.Decision.headers>`.
        exempt: Paths that are never limited and need no token.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed.
    Raises:
        ValueError: An unknown preset, or a network that is none.

    The application finds the decision in ``environ["sluicegate.decision"]``. A slot of a concurrency limit is held
    until the response is complete, or the server closes it.
    """

    @staticmethod
    def usual_token(request: Environ) -> str | None:
        """Return a request's token: the bearer token or the API key."""
        return find_token(request.get("HTTP_AUTHORIZATION"), request.get("HTTP_X_API_KEY"))

    @staticmethod
    def make_lock() -> threading.Lock:
        """Return the lock under which the limiter is started, once."""
        return threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if _path(environ) in self._exempt:
            return self.app(environ, start_response)
        try:
            visit = self._enter(self.limiter if self._started and self.limiter else self.start(), environ)
        except Refusal as refusal:
            return _answer(environ, start_response, refusal.answer)
        except Denied as denied:
            return _answer(environ, start_response, denial(denied.decision, self._headers))
        environ["sluicegate.decision"] = visit.decision
        visit.headers = added_headers(visit.decision, self._headers)
        return visit.run(self.app, environ, start_response)

    def start(self) -> Limiter:
        """Start the limiter, once; the first request does it."""
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

    def _enter(self, limiter: Limiter, environ: Environ) -> _Visit:
        """Ask for the decision. Raises Refusal or Denied."""
        token = self._token(environ)
        if not token:
            raise missing_token()
        plan = limiter.find_plan(token, self._describe(environ))
        if isinstance(plan, Decision):
            raise Denied(plan)
        costs = self._costs(environ) if self._costs else 1
        if plan.has_slots or plan.has_charge_on:
            admitted = limiter.admit_plan(plan, costs)
            admission = admitted.__enter__()
            return _Admitted(admission.decision, admitted, admission)
        decision = limiter.decide(plan, costs)
        if not decision.allowed:
            raise Denied(decision)
        return _Visit(decision)

    def _describe(self, environ: Environ) -> RequestAttributes:
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        values: dict[str, str | None] = {
            "method": environ["REQUEST_METHOD"],
            "path": _path(environ),
            # Empty over a Unix socket.
            "ip": self._proxies.client(environ.get("REMOTE_ADDR") or None, [forwarded] if forwarded else []),
        }
        if self._attributes:
            values.update(self._attributes(environ))
        return RequestAttributes(values, lambda name: _header(environ, name))


class _Visit:
    """A request inside the application, with what its decision adds to the answer."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.headers: list[Header] = []

    def run(self, app: App, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def starting(status: str, headers: list[Header], *error: Any) -> Callable[[bytes], object]:
            return start_response(status, self.with_headers(headers), *error)

        return app(environ, starting)

    def with_headers(self, headers: list[Header]) -> list[Header]:
        """Return the fields of a response with ours behind the application's own."""
        return headers + list(joining((name for name, _ in headers), self.headers))


class _Admitted(_Visit):
    """A request that holds an admission: slots, or charges that depend on the response."""

    def __init__(self, decision: Decision, manager: Any, admission: Any) -> None:
        super().__init__(decision)
        self._manager = manager
        self._admission = admission
        self._progress = Progress()
        self._left = False

    def run(self, app: App, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def starting(status: str, headers: list[Header], *error: Any) -> Callable[[bytes], object]:
            length = next((value for name, value in headers if name.lower() == "content-length"), None)
            self._progress.begin(int(status[:3]), length)
            return start_response(status, self.with_headers(headers), *error)

        try:
            body = app(environ, starting)
        except BaseException:
            self.leave()
            raise
        if isinstance(body, (list, tuple)):
            self.leave()  # complete, and the server may know the length of it
            return body
        return _Body(body, self)

    def passing(self, chunk: bytes) -> bytes:
        """Look at a chunk on its way to the client."""
        if self._progress.ends_with(len(chunk)):
            self.leave()
        return chunk

    def leave(self) -> None:
        """Leave the admission, once."""
        if self._left:
            return
        self._left = True
        self._admission.charge_for(self._progress.status or 500)
        # Never by an exception, which would take the charge back: a failure of the application counts by charge_on.
        self._manager.__exit__(None, None, None)


class _Body:
    """The application's response; at its end, or when the server closes it, the admission is left."""

    def __init__(self, body: Iterable[bytes], visit: _Admitted) -> None:
        self._body = body
        self._visit = visit

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            yield self._visit.passing(chunk)
        self._visit.leave()

    def close(self) -> None:
        """Close the application's response; servers call this whatever happened."""
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._visit.leave()


def _answer(environ: Environ, start_response: StartResponse, answer: Answer) -> Iterable[bytes]:
    """Give the door's own answer instead of the application's."""
    start_response(f"{answer.status} {answer.phrase}", list(answer.headers))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


def _path(environ: Environ) -> str:
    """Return the decoded path; WSGI hands its bytes over as Latin-1."""
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return path.encode("latin-1").decode("utf-8", "replace")


def _header(environ: Environ, name: str) -> str | None:
    key = name.upper().replace("-", "_")
    value = environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}")
    return value if isinstance(value, str) else None
