"""Choose the upstream of a request, and answer what asks about the proxy itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from enforcement.aio import Limiter
from enforcement.doors.proxy.answers import PRESET, answer, problem, refuse
from enforcement.doors.proxy.connection import RawHeaders
from enforcement.doors.proxy.credentials import NoCredential
from enforcement.doors.proxy.families import tighter
from enforcement.doors.proxy.fields import (
    BadRequest,
    forwarded_fields,
    has_dot_segments,
    request_fields,
    request_head,
    shows_token,
    spellings,
)
from enforcement.doors.proxy.forwarding import Forwarding
from enforcement.doors.proxy.places import Places
from enforcement.doors.proxy.pool import Pool
from enforcement.doors.proxy.settings import ProxySettings, UpstreamSettings
from enforcement.exporters.metrics import Metric, Values
from enforcement.exporters.text import CONTENT_TYPE, exposition
from enforcement.http.addresses import TrustedProxies
from enforcement.http.asgi import METERED, App, Receive, Scope, Send, comes_from
from enforcement.http.messages import PlainResponse
from enforcement.http.slow_clients import cut_off
from enforcement.logs import RateLimitedLogger
from enforcement.metering.bound import ReadOptions
from enforcement.plan.decision import Decision
from enforcement.stats import Stats

if TYPE_CHECKING:
    from enforcement.doors.proxy.websocket import Tunnel

logger = logging.getLogger("sluicegate.proxy")

_SAY: Final = RateLimitedLogger(logger)
_CHOSEN: Final = "sluicegate.upstream"
"""Where the scope of a request that was read by a meter has its upstream, and the path and query that this gets."""


class Proxy:
    """
    The ASGI application behind the middleware.

    Args:
        limiter: Decides. The middleware starts and closes it.
        settings: Those of the proxy.
    """

    def __init__(self, limiter: Limiter, settings: ProxySettings) -> None:
        self._limiter = limiter
        self._settings = settings
        self._proxies = TrustedProxies(settings.trusted)
        self._upstreams = tuple(_Upstream(upstream, settings.places) for upstream in settings.upstreams)
        special = any(upstream.asking for upstream in settings.upstreams)
        self.upstream_options: Callable[[Scope], ReadOptions] | None = self._options_of if special else None
        self.pages: Mapping[str, Callable[[Scope], PlainResponse]] = {
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": self._metrics,
        }
        limiter.report("crowded", self._crowded)
        self._own_metrics = (
            Metric(
                "proxy.requests",
                "gauge",
                "{request}",
                "Requests under way to an upstream, by the path that it serves.",
                self._requests,
                ("upstream",),
            ),
            Metric(
                "proxy.requests.refused",
                "counter",
                "{request}",
                "Requests refused because a token or project had its share of the places, or because all were taken.",
                self._refused,
                ("upstream", "share"),
            ),
            Metric(
                "proxy.clients.cut_off",
                "counter",
                "{client}",
                "Clients that sent nothing of a body or read nothing of a response for too long.",
                lambda _: (({"while": what}, count) for what, count in cut_off.items()),
                ("while",),
            ),
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Forward one request that was admitted, answer one about the proxy itself, or refuse anything else."""
        scope[PRESET] = self._settings.headers
        if scope["type"] == "http":
            page = self.pages.get(scope["path"])
            return self._forward(scope, receive, send) if page is None else answer(scope, send, page(scope))
        return self._live(receive, send) if scope["type"] == "lifespan" else self._tunnel(scope, receive, send)

    def move_metrics(self) -> App:
        """Answer requests for metrics by 404 from now on, and return the application that answers them elsewhere."""
        pages = self.pages
        self.pages = {**pages, "/metrics": lambda scope: problem(scope, 404, "Metrics have a port of their own")}

        async def monitor(scope: Scope, receive: Receive, send: Send) -> None:
            page = pages.get(scope["path"]) if scope["type"] == "http" else None
            await answer(scope, send, problem(scope, 404, "No such page") if page is None else page(scope))

        return monitor

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        first = None
        try:
            upstream, target = scope.get(_CHOSEN) or self._choose(scope)
            fields = request_fields(scope["headers"], upstream.replaced)
            if scope["method"] == "TRACE":
                # The upstream would show its credential, and the fields of proxies before this one.
                raise BadRequest("The proxy does not forward TRACE", 501)
            if fields.websocket:
                raise BadRequest("The server of this proxy cannot open WebSocket connections", 501)
            if scope["http_version"][0] != "1" and fields.length is None:
                # HTTP/2 does not announce a body. Only its first message tells whether there is one.
                first = await receive()
                if first["type"] == "http.disconnect":
                    return
                fields.chunked = bool(first.get("body") or first.get("more_body"))
            added = _credential(upstream, scope)
            head = request_head(scope, target, upstream.authority, fields, self._proxies, added)
        except BadRequest as exc:
            await refuse(scope, send, exc.status, str(exc))
            return
        if self._settings.headers != "ietf":
            send = tighter(send, scope["sluicegate.decision"], self._settings.headers)
        forwarding = Forwarding
        if METERED in scope:
            forwarding = _metered_forwarding()
            scope[METERED].exchange.upstream = upstream.settings.host
        subject = scope["sluicegate.decision"].plan.subject
        going = forwarding(upstream.pool, self._settings.silence, subject, scope, receive, send)
        await going.run(head, fields, first)

    async def _tunnel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one WebSocket connection."""
        await receive()
        try:
            if scope["path"] in self.pages:
                # The middleware admits whatever asks for these paths, and none of it is for an upstream.
                raise BadRequest("This path belongs to the proxy", 404)
            upstream, target = self._choose(scope)
            fields = request_fields(scope["headers"], upstream.replaced)
            headers = fields.passing + _credential(upstream, scope) + forwarded_fields(scope, fields, self._proxies)
            tunnel = _tunnels()
        except BadRequest as exc:
            await refuse(scope, send, exc.status, str(exc))
            return
        connection = tunnel(upstream.pool, self._settings.silence, scope, receive, send)
        await connection.run(upstream.authority, target, headers)

    def upstream_keeps_signature(self, scope: Scope) -> bool:
        """Return whether the upstream gets the field ``Authorization`` of a request, as it has no credential there."""
        try:
            upstream, _ = scope.get(_CHOSEN) or self._choose(scope)
        except BadRequest:
            return True
        return b"authorization" not in upstream.replaced

    def upstream_target(self, scope: Scope) -> str:
        """Return the path and query under which the upstream gets a request, or its own if no upstream gets it."""
        try:
            chosen = scope[_CHOSEN] = self._choose(scope)
        except BadRequest:
            return str(scope["path"])
        return chosen[1].decode("latin-1")

    def upstream_fields(self, scope: Scope) -> Mapping[str, int]:
        """Return the fields that the upstream of a request allows beside those that a bound knows."""
        chosen = scope.get(_CHOSEN)
        return chosen[0].settings.allowed_fields if chosen else {}

    def _options_of(self, scope: Scope) -> ReadOptions:
        """Return what the upstream of a request needs to be asked otherwise, after :meth:`upstream_target`."""
        chosen = scope.get(_CHOSEN)
        return chosen[0].settings.asking if chosen else {}

    def _choose(self, scope: Scope) -> tuple[_Upstream, bytes]:
        """
        Return the upstream of a request, and the path and query that it gets.

        Raises:
            BadRequest: No upstream serves the path, or it must not get the address.
        """
        path, raw = scope["path"], scope.get("raw_path") or quote(scope["path"]).encode()
        if not path.startswith("/"):
            # For "OPTIONS *" and whole URLs, limits by path would not see the path that the upstream uses.
            raise BadRequest("The request must name a path")
        upstream = next((it for it in self._upstreams if it.serves(raw)), None)
        if upstream is None:
            raise BadRequest("No upstream serves this path", 404)
        if upstream.confined and has_dot_segments(path):
            # It might leave the part of the upstream that it was sent to, together with the credential.
            raise BadRequest("The path must not have a segment '.' or '..'")
        target = upstream.target(raw, scope["query_string"])
        if shows_token(target):
            # The upstream would write it into its log.
            raise BadRequest("A token must stand in a header field, not in the address of the request")
        return upstream, target

    async def _live(self, receive: Receive, send: Send) -> None:
        """Close the connections with the server."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                logging.getLogger("uvicorn.error").addFilter(_is_of_this_proxy)
                await send({"type": "lifespan.startup.complete"})
            else:
                for upstream in self._upstreams:
                    upstream.pool.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _health(self, scope: Scope) -> PlainResponse:
        return _page(200, "text/plain; charset=utf-8", b"ok\n")

    def _readiness(self, scope: Scope) -> PlainResponse:
        """Respond whether policies are loaded, and which revision."""
        revision = self._limiter.revision
        state = {"ready": revision > 0, "revision": revision, "state": self._limiter.state}
        return _page(
            200 if revision > 0 else 503, "application/json", json.dumps(state, separators=(",", ":")).encode()
        )

    def _metrics(self, scope: Scope) -> PlainResponse:
        if not comes_from(scope, self._settings.metrics, self._proxies):
            return problem(scope, 403, "Metrics are not for this address")
        self._limiter.time_store_calls()  # from the first scrape on, as it costs each call a microsecond
        return _page(200, CONTENT_TYPE, exposition(self._limiter.stats(), self._own_metrics))

    def _requests(self, _: Stats) -> Values:
        for upstream in self._upstreams:
            yield {"upstream": upstream.label}, upstream.pool.places.taken

    def _crowded(self) -> Mapping[str, int]:
        """Return how many requests were refused at all upstreams, by the share that was taken."""
        counts = [upstream.pool.places.refused for upstream in self._upstreams]
        return {share: sum(of[share] for of in counts) for share in ("token", "project", "full")}

    def _refused(self, _: Stats) -> Values:
        for upstream in self._upstreams:
            for share, count in upstream.pool.places.refused.items():
                yield {"upstream": upstream.label, "share": share}, count


class _Upstream:
    """One upstream, with its connections."""

    def __init__(self, settings: UpstreamSettings, places: Places) -> None:
        self.settings = settings
        self.label = settings.prefix or "/"
        self.pool = Pool(settings.host, settings.port, tls=settings.tls, places=places)
        self.authority = settings.authority
        self.has_credential = settings.credentials.configured
        self.replaced = spellings([settings.credentials.field] if self.has_credential else [])
        self.confined = bool(settings.prefix or settings.base)
        self._prefix, self._base = settings.prefix.encode(), settings.base.encode()
        self._below = self._prefix + b"/"

    def serves(self, path: bytes) -> bool:
        """Return whether a path, as the client has written it, is for this upstream."""
        return path.startswith(self._below) or path == self._prefix

    def target(self, path: bytes, query: bytes) -> bytes:
        """
        Return the path and query for the upstream.

        They are as the client has written them, because another spelling might name another resource. Only the prefix
        is replaced.
        """
        target = self._base + path[len(self._prefix) :]
        return (target or b"/") + (b"?" + query if query else b"")


def _is_of_this_proxy(record: logging.LogRecord) -> bool:
    """
    Return whether a line of uvicorn is about a fault of the proxy.

    To leave a response incomplete is how the proxy tells the client that the upstream broke off. It has logged that.
    """
    return record.msg != "ASGI callable returned without completing response."


def _credential(upstream: _Upstream, scope: Scope) -> RawHeaders:
    """Return the credential for a request in a list, which is empty if the upstream has none, or raise BadRequest."""
    if not upstream.has_credential:
        return []
    decision: Decision = scope["sluicegate.decision"]
    try:
        return upstream.settings.credentials.of(decision.plan.subject[0])
    except NoCredential as exc:
        raise BadRequest("The proxy has no credential for the upstream", 503) from exc


def _metered_forwarding() -> type[Forwarding]:
    """Return the class that forwards metered requests, which most proxies never need."""
    from enforcement.doors.proxy.metered import MeteredForwarding

    return MeteredForwarding


def _tunnels() -> type[Tunnel]:
    """Return the class that forwards WebSocket connections, or raise BadRequest if what it needs is not installed."""
    try:
        from enforcement.doors.proxy.websocket import Tunnel
    except ModuleNotFoundError as exc:
        _SAY.warning("websocket", "%s", exc)
        raise BadRequest("This proxy does not forward WebSocket connections", 501) from exc
    return Tunnel


def _page(status: int, kind: str, body: bytes) -> PlainResponse:
    return PlainResponse(status, (("Content-Type", kind), ("Content-Length", str(len(body)))), body)
