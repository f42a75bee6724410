"""
The decision service as an ASGI application.

>>> app = DecisionService(Limiter.from_env(), ServiceSettings.from_env())

It answers subrequests by HTTP, and Envoy by gRPC if the server sends trailers. Every failure has an answer, because a
proxy takes none for permission to pass the request on.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from enforcement.aio import Limiter
from enforcement.exporters.text import CONTENT_TYPE, exposition
from enforcement.http.asgi import App, Receive, Scope, Send, comes_from, encoded, header_of
from enforcement.http.limits_page import USAGE_PATH
from enforcement.http.messages import DENIAL_FIELD, PlainResponse, error_answer
from enforcement.service import ext_authz, rls
from enforcement.service.forward_auth import ForwardAuth
from enforcement.service.grpc import UNIMPLEMENTED, MessageReader, UnaryCall, end, is_call
from enforcement.service.judge import Judge
from enforcement.service.limits_page import UsagePage
from enforcement.service.settings import ServiceSettings, limiter_settings

logger = logging.getLogger("sluicegate.service")

SECRET_FIELD: Final = b"sluicegate-secret"
"""The header field in which a caller shows the shared secret."""


class Endpoint(Protocol):
    """A handler of the requests for one path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

    async def refuse(self, answer: PlainResponse, send: Send) -> None:
        """Deny the request that a caller asks about with a response, in the form that the caller understands."""


class DecisionService:
    """
    The ASGI application of the service.

    Args:
        limiter: Decides. It is started and closed with the server.
        settings: Those of the service.
    """

    def __init__(self, limiter: Limiter, settings: ServiceSettings) -> None:
        self._limiter = limiter
        self._settings = settings
        self._restricted = settings.restricted
        self._reader = MessageReader()
        judge = Judge(limiter, settings.anonymous)
        checks = (
            ForwardAuth(judge, settings, "/v1/check"),
            ForwardAuth(judge, settings, "/v1/check403", denials=(401, 403), repeats_body=True),
            ForwardAuth(judge, settings, "/v1/envoy", denials=range(400, 500)),
        )
        self._endpoints: dict[str, Endpoint] = {
            **{check.path: check for check in checks},
            ext_authz.PATH: UnaryCall(ext_authz.ExtAuthz(judge, settings), ext_authz.denied, self._reader, settings),
            rls.PATH: UnaryCall(rls.RateLimitService(judge, settings), rls.denied, self._reader, settings),
        }
        if settings.usage_endpoint:
            self._endpoints[USAGE_PATH] = UsagePage(limiter, settings)
        # Only Envoy adds a path, and it would take 503 for a failure at each of them.
        below = (*checks[1:], ForwardAuth(judge, settings, "/v1/check", denials=range(400, 500)))
        self._below: tuple[tuple[str, Endpoint], ...] = tuple((f"{check.path}/", check) for check in below)
        self._pages: Mapping[str, Callable[[Scope], PlainResponse]] = {
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the life of the service."""
        if scope["type"] == "http":
            path = scope["path"]
            endpoint = self._endpoints.get(path) or next((it for at, it in self._below if path.startswith(at)), None)
            if endpoint is None:
                await self._show(scope, receive, send)
            else:
                await self._decide(endpoint, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "The decision service has no WebSockets."})

    def move_metrics(self) -> App:
        """Answer requests for metrics by 404 from now on, and return the application that answers them elsewhere."""
        pages, gone = self._pages, self._error(404, "Metrics have a port of their own", "not_found")
        self._pages = {**pages, "/metrics": lambda scope: gone}

        async def monitor(scope: Scope, receive: Receive, send: Send) -> None:
            page = pages.get(scope["path"]) if scope["type"] == "http" else None
            await _send(send, self._error(404, "No such page", "not_found") if page is None else page(scope))

        return monitor

    async def _decide(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        if self._restricted and not self._may_ask(scope):
            if is_call(scope):
                await self._reader.drain(receive)
            await endpoint.refuse(self._error(403, "This caller may not ask", "caller_refused"), send)
            return
        try:
            await endpoint(scope, receive, send)
        except OSError as exc:
            # Servers raise it from send() if the caller has left. Should it come from elsewhere, the caller is waiting.
            logger.debug("The caller left before its answer was sent: %s", exc)
            with suppress(Exception):
                await endpoint.refuse(self._error(503, "The decision failed", "internal_error"), send)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the caller left
            logger.warning("What the decision for %s waited for was cancelled.", scope["path"])
            with suppress(Exception):
                await endpoint.refuse(self._error(503, "The decision failed", "internal_error"), send)
        except Exception:
            # A proxy takes no answer for permission. The decisions were all made before the first message was sent.
            logger.exception("A decision for %s failed.", scope["path"])
            with suppress(Exception):  # which servers raise if the failed answer has begun
                await endpoint.refuse(self._error(503, "The decision failed", "internal_error"), send)

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that asks for no decision."""
        page = self._pages.get(scope["path"])
        if page is not None:
            await _send(send, page(scope))
        elif is_call(scope):
            await self._reader.drain(receive)
            await end(send, UNIMPLEMENTED, f"The decision service has no method {scope['path']}.")
        else:
            await _send(send, self._error(404, "The decision service has no such path", "not_found"))

    def _may_ask(self, scope: Scope) -> bool:
        settings, client = self._settings, scope.get("client")
        if settings.callers is not None and settings.callers.trusts(client[0] if client else None):
            return True
        secret = header_of(scope, SECRET_FIELD)
        return bool(settings.secret) and secret is not None and hmac.compare_digest(secret.encode(), settings.secret)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._limiter.start()
                except Exception as exc:
                    await send({"type": "lifespan.startup.failed", "message": f"Sluicegate: {exc}"})
                    raise
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._limiter.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _error(self, status: int, title: str, code: str) -> PlainResponse:
        return error_answer(self._settings.headers, status, title, code, headers=((DENIAL_FIELD, code),))

    def _health(self, scope: Scope) -> PlainResponse:
        return _page(200, "text/plain", b"ok\n")

    def _readiness(self, scope: Scope) -> PlainResponse:
        revision, mark = self._limiter.revision, self._settings.draining_file
        draining = bool(mark) and os.path.exists(mark)
        ready = revision > 0 and not draining
        state = {"ready": ready, "revision": revision, "state": "draining" if draining else self._limiter.state}
        return _page(200 if ready else 503, "application/json", json.dumps(state).encode())

    def _metrics(self, scope: Scope) -> PlainResponse:
        if not comes_from(scope, self._settings.metrics, self._settings.trusted):
            return self._error(403, "Metrics are not for this address", "metrics_refused")
        self._limiter.time_store_calls()  # from the first scrape on, as it costs each call a microsecond
        return _page(200, CONTENT_TYPE, exposition(self._limiter.stats()))


def create_app() -> DecisionService:
    """Return the service, configured by environment variables, or raise ValueError."""
    return DecisionService(Limiter.from_settings(limiter_settings()), ServiceSettings.from_env())


async def _send(send: Send, answer: PlainResponse) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})


def _page(status: int, kind: str, body: bytes) -> PlainResponse:
    return PlainResponse(status, (("Content-Type", kind), ("Content-Length", str(len(body)))), body)
