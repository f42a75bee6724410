"""A real store, a decision service and an application, for the proxies that ask."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from enforcement.embedded import ValkeyServer, free_port
from enforcement.testing import Store
from tests.enforcement.world import World, eventually
from tests.forks import sluicegate
from tests.proxies.running import Application, serving

WITH_ROOM = {"SLUICEGATE_TIMEOUT_MS": "200", "SLUICEGATE_COSTS_HEADER": "X-Sluicegate-Costs"} | {
    "SLUICEGATE_ATTRIBUTES_HEADER": "X-Sluicegate-Attributes",
    # Clients come from other addresses of this host than the proxy.
    "SLUICEGATE_TRUSTED_PROXIES": "127.0.0.1",
}
"""A busy machine decides within these, and answers before the proxies' timeouts."""


class Service:
    """``sluicegate serve`` with its workers, which are one process group."""

    command = "serve"

    def __init__(self, store: str, log: Path, *options: str, **environment: str) -> None:
        self.port, self._log = free_port(), log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")}
        variables = inherited | {"SLUICEGATE_REDIS_URL": store, **environment}
        self._process = sluicegate([self.command, "--port", str(self.port), *options], variables, log)
        ready = eventually(lambda: self._process.poll() is not None or self._is_ready(), 30)
        if not ready or self._process.poll() is not None:
            self.kill()
            raise AssertionError(f"The service did not start:\n{self._log.read_text()}")

    def _is_ready(self) -> bool:
        try:
            return self.revision > 0
        except OSError:
            return False

    @property
    def revision(self) -> int:
        """The revision that it enforces."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
            return int(json.load(answer)["revision"])

    def freeze(self) -> None:
        """Suspend all its processes."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Kill all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class OwnProxy(Service):
    """``sluicegate proxy`` with its workers."""

    command = "proxy"


Serve = Callable[..., Service]


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """Give one store a module; a test that harms it mends it."""
    with ValkeyServer(persistent=False) as server:
        yield server


@pytest.fixture
def world(server: ValkeyServer) -> World:
    """Give an empty store that has the function library, and a publisher for it."""
    Store(server).clear()
    return World(server.url)


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    """Give one application a module."""
    with serving() as application:
        yield application


@pytest.fixture
def serve(server: ValkeyServer, tmp_path: Path) -> Iterator[Serve]:
    """Start decision services on a store that has documents; they end with the test."""
    with ExitStack() as services:

        def start(*options: str, store: str = server.url, **environment: str) -> Service:
            service = Service(store, tmp_path / "service.log", *options, **environment)
            services.callback(service.kill)
            return service

        yield start
