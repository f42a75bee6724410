"""
A streaming reverse proxy behind the ASGI middleware.

>>> uvicorn --factory enforcement.doors.proxy:create_app

Bodies are streamed in both directions. The environment sets:

- ``SLUICEGATE_UPSTREAM_URL``: where requests go, ``http://`` or ``https://``, with a path prefix if needed.
- ``SLUICEGATE_UPSTREAM_TIMEOUT``: seconds that the upstream may be silent, 60 by default.
- ``SLUICEGATE_HEADERS``: preset of the rate limit fields, ``ietf`` by default.
- ``SLUICEGATE_TRUSTED_PROXIES``: networks, separated by commas, whose ``X-Forwarded-For`` is trusted. Then run uvicorn
  with ``--no-proxy-headers``, because it would rewrite addresses by a list of its own.
- ``SLUICEGATE_ANONYMOUS_PROJECT``: slug of the project that requests without a token count for. If it is not set, they
  are refused with 401.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, Final

from enforcement.extras import Requirement

with Requirement("The proxy", "sluicegate[proxy]"):
    import httpx2
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

from enforcement.aio import Limiter
from enforcement.doors.asgi import LimitMiddleware
from enforcement.http.asgi import Receive, Scope, Send
from enforcement.http.messages import TrustedProxies, check_anonymous, check_preset, error_answer, find_token
from enforcement.model.tokens import is_well_formed
from enforcement.settings import named_as
from enforcement.store.errors import MAX_PORT

logger = logging.getLogger("sluicegate.proxy")

CONNECT_SECONDS: Final = 5.0
MOST_CONNECTIONS: Final = 1000
# Shorter than upstreams keep idle connections (uvicorn: 5 s), or one would close just as it is used again.
IDLE_SECONDS: Final = 2.0
PROBES: Final = ("/healthz", "/readyz")

RawHeaders = list[tuple[bytes, bytes]]

# Fields about one connection, not about the message (RFC 9110, 7.6.1).
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Fields that this proxy sets itself. It has no use for Expect, because it sends a body without waiting.
_OWN_REQUEST: Final = frozenset(
    {b"host", b"expect", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
)
# The server in front of this application adds its own.
_OWN_RESPONSE: Final = frozenset({b"date", b"server"})


class _ClientGone(Exception):
    """The client has left before its response was complete."""


class _RequestBody:
    """The body of the request. After it was read once, it notices when the client leaves."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the body as they arrive. Raises _ClientGone if the client leaves before its end."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            more = message.get("more_body", False)
            if not more:
                self._read.set()
            if message.get("body"):
                yield message["body"]

    async def skip(self) -> None:
        """Read and drop a body that is known to be empty."""
        async for _ in self.chunks():
            pass

    async def watch(self) -> None:
        """Wait until the client leaves, and raise _ClientGone then."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise _ClientGone


class Upstream:
    """An ASGI application that forwards requests to an upstream."""

    def __init__(self, client: httpx2.AsyncClient, url: httpx2.URL, proxies: TrustedProxies, preset: str) -> None:
        self._client = client
        self._preset = preset
        self._url = url
        self._prefix = url.raw_path.partition(b"?")[0].rstrip(b"/")
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one HTTP request to the upstream, and send its response to the client, or refuse anything else."""
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "This proxy only forwards HTTP requests."})
            return
        body = _RequestBody(receive)
        forwarding = _Forwarding(self._client, send, self._preset)
        if not scope["path"].startswith("/"):
            # For "OPTIONS *" and whole URLs, limits by path would not see the path that the upstream uses.
            await forwarding.fail(400, "The request must name a path", "no_path")
            return
        with contextlib.suppress(_ClientGone):
            await _while_watching(forwarding.run(await self._request(scope, body)), body.watch())

    async def _request(self, scope: Scope, body: _RequestBody) -> httpx2.Request:
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        if not has_body:
            await body.skip()
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        return httpx2.Request(
            scope["method"],
            self._url,
            headers=self._headers(scope),
            content=body.chunks() if has_body else None,
            # Exactly as the client sent it: parsed and written again, it might name another resource.
            extensions={"target": self._prefix + scope["raw_path"] + query, "timeout": self._client.timeout.as_dict()},
        )

    def _headers(self, scope: Scope) -> RawHeaders:
        headers = _passing(scope["headers"], _OWN_REQUEST | _credential_fields(scope["headers"]))
        peer = scope["client"][0] if scope.get("client") else None
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if not self._proxies.trusts(peer):
            forwarded = []
        headers.append((b"x-forwarded-for", b", ".join([*forwarded, (peer or "unknown").encode()])))
        headers.append((b"x-forwarded-proto", scope["scheme"].encode()))
        headers += [(b"x-forwarded-host", value) for name, value in scope["headers"] if name == b"host"]
        return headers


class _Forwarding:
    """One request to the upstream, and its response to the client."""

    def __init__(self, client: httpx2.AsyncClient, send: Send, preset: str) -> None:
        self._client = client
        self._send = send
        self._preset = preset
        self._begun = False

    async def run(self, request: httpx2.Request) -> None:
        """Send the request to the upstream, and stream the response back to the client."""
        try:
            response = await self._client.send(request, stream=True)
            try:
                await self._pass_on(response)
            finally:
                await response.aclose()
        except httpx2.PoolTimeout:
            await self.fail(503, "The proxy is at its limit of connections to the upstream", "upstream_busy")
        except httpx2.TimeoutException:
            await self.fail(504, "The upstream did not answer in time", "upstream_timeout")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            logger.warning("upstream failed: %s: %s", type(error).__name__, error)
            await self.fail(502, "The upstream could not be reached or broke off", "upstream_failed")

    async def _pass_on(self, response: httpx2.Response) -> None:
        headers = _passing(response.headers.raw, _OWN_RESPONSE)
        self._begun = True
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        # Raw chunks stay compressed as the upstream sent them.
        async for chunk in response.aiter_raw():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, status: int, title: str, code: str) -> None:
        """Send an error response to the client in place of the upstream's response, unless that has begun."""
        if self._begun:
            # The server closes the connection of an unfinished response, so the client knows that it is not complete.
            return
        answer = error_answer(self._preset, status, title, code)
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": answer.body})


def create_app() -> Starlette:
    """
    Return the proxy as an ASGI application, configured by environment variables.

    Raises:
        ValueError: A variable is missing or not valid. The message names it.
    """
    url = _upstream_url(os.environ)
    networks, trusted = _trusted(os.environ)
    limiter = Limiter.from_env()
    preset = _headers(os.environ)
    client = httpx2.AsyncClient(
        timeout=httpx2.Timeout(_silence(os.environ), connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=IDLE_SECONDS),
        trust_env=False,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    door = Middleware(
        LimitMiddleware,
        limiter,
        headers=preset,
        exempt=PROBES,
        trusted_proxies=networks,
        anonymous=_anonymous(os.environ),
    )
    # ASGI applications serve every method. No request to an exempt path may reach the upstream.
    app = Starlette(
        routes=[Route("/healthz", PlainTextResponse("ok\n")), Route("/readyz", _Readiness(limiter))],
        middleware=[door],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.router.default = Upstream(client, url, trusted, preset)
    return app


class _Readiness:
    """Respond whether policies are loaded, and which revision."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        revision = self._limiter.revision
        state = {"ready": revision > 0, "revision": revision, "state": self._limiter.state}
        await JSONResponse(state, status_code=200 if revision > 0 else 503)(scope, receive, send)


async def _while_watching(work: Coroutine[Any, Any, None], watch: Coroutine[Any, Any, None]) -> None:
    """Run both coroutines until the work is done or the watch raises, then cancel the other."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(watch)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _passing(headers: Iterable[tuple[bytes, bytes]], own: frozenset[bytes]) -> RawHeaders:
    """Return the header fields to forward, with names in lower case, without those of this hop and those in *own*."""
    fields = [(name.lower(), value) for name, value in headers]
    named = {part.strip().lower() for name, value in fields if name == b"connection" for part in value.split(b",")}
    return [(name, value) for name, value in fields if name not in _HOP_BY_HOP | own and name not in named]


def _credential_fields(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """
    Return a set of the names of the header fields that hold the token, or another credential of ours, or an empty set.
    They must not reach the upstream or its log.
    """
    fields = {name: value.decode("latin-1") for name, value in headers if name in (b"authorization", b"x-api-key")}
    token = find_token(fields.get(b"authorization"), fields.get(b"x-api-key"))
    shown = {name: value.split()[-1] for name, value in fields.items() if value.strip()}
    return frozenset(name for name, value in shown.items() if value == token or is_well_formed(value))


def _upstream_url(environ: Mapping[str, str]) -> httpx2.URL:
    text = environ.get("SLUICEGATE_UPSTREAM_URL", "")
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as exc:
        raise ValueError(f"SLUICEGATE_UPSTREAM_URL: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"SLUICEGATE_UPSTREAM_URL: must be an http or https URL without a query, got {text!r}.")
    if url.port is not None and not 1 <= url.port <= MAX_PORT:
        raise ValueError(f"SLUICEGATE_UPSTREAM_URL: the port must be an integer from 1 to {MAX_PORT}, got {url.port}.")
    return url


def _trusted(environ: Mapping[str, str]) -> tuple[list[str], TrustedProxies]:
    networks = environ.get("SLUICEGATE_TRUSTED_PROXIES", "").split(",")
    try:
        return networks, TrustedProxies(networks)
    except ValueError as exc:
        raise ValueError(f"SLUICEGATE_TRUSTED_PROXIES: {exc}; separate networks by commas.") from exc


def _headers(environ: Mapping[str, str]) -> str:
    with named_as({"preset": "SLUICEGATE_HEADERS"}):
        return check_preset(environ.get("SLUICEGATE_HEADERS") or "ietf")


def _anonymous(environ: Mapping[str, str]) -> str | None:
    project = environ.get("SLUICEGATE_ANONYMOUS_PROJECT") or None
    with named_as({"anonymous": "SLUICEGATE_ANONYMOUS_PROJECT"}):
        check_anonymous(project)
    return project


def _silence(environ: Mapping[str, str]) -> float:
    text = environ.get("SLUICEGATE_UPSTREAM_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise ValueError(
            f"SLUICEGATE_UPSTREAM_TIMEOUT: must be seconds, more than 0 and less than 86400, got {text!r}."
        )
    return seconds
