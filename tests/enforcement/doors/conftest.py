"""Published tokens, and real servers in front of which the doors stand."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx2
import pytest
import redis
import uvicorn

from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.tokens import digest, mint
from enforcement.store.client import load_library
from enforcement.store_calls.publication import Publication, publish_call
from tests.enforcement.world import eventually

Issue = Callable[..., str]
Serve = Callable[[Any], httpx2.Client]


@pytest.fixture
def issue(client_of_store: redis.Redis) -> Issue:
    """Publish a token of a project of its own that falls under the given limits; return its secret."""
    load_library(client_of_store)
    published = 0

    def publish(*limits: Limit, active: bool = True, revoked: bool = False, expires_at_us: int | None = None) -> str:
        nonlocal published
        published += 1
        secret, policy, project = mint("live"), f"pol_{published}", f"proj_{published}"
        token: dict[str, Any] = {"schema": 1, "id": f"tok_{published}", "project": project, "name": "test"}
        token |= {"policy": policy, "revoked": revoked, "expires_at_us": expires_at_us, "overrides": []}
        documents: dict[str, Any] = {
            f"policy:{policy}": {"schema": 1, "id": policy, "slug": "test", "name": "Test", "version": 1}
            | {"limits": [limit.to_json() for limit in limits]},
            f"project:{project}": {"schema": 1, "id": project, "slug": f"test-{published}", "active": active}
            | {"policy": None, "overrides": []},
        }
        publication = Publication(published, 0, "test", documents, {digest(secret): token})
        function, keys, arguments = publish_call(publication, Keys())
        client_of_store.fcall(function, len(keys), *keys, *arguments)
        return secret

    return publish


@pytest.fixture
def watcher(store: ValkeyServer) -> Iterator[Limiter]:
    """Give a limiter that sees what the application's has counted."""
    with closing(Limiter(store.url, timeout=1.0)) as limiter:
        yield limiter


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve an ASGI application with uvicorn on a port of its own; return a client of it."""
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(serving(app))


@pytest.fixture
def serve_wsgi() -> Iterator[Serve]:
    """Serve a WSGI application with wsgiref, a thread a connection; return a client of it."""
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(_wsgiref(app))


class _Uvicorn(uvicorn.Server):
    """Ends within milliseconds; uvicorn looks ten times a second whether it should."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.005)


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[httpx2.Client]:
    """Serve an ASGI application while the block runs; give a client of it."""
    usual: dict[str, Any] = {"log_level": "critical", "proxy_headers": False, "timeout_graceful_shutdown": 5}
    config = uvicorn.Config(app, port=0, **usual | options)
    server = _Uvicorn(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        # Whoever could need certificates reads them all, which takes longer than most tests.
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=10.0) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: tests break connections on purpose."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def get_stderr(self) -> Any:
        return io.StringIO()


@contextmanager
def _wsgiref(app: Any) -> Iterator[httpx2.Client]:
    server = make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{server.server_port}", verify=False, timeout=10.0) as client:
            yield client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
