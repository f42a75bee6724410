"""The decision service, as ``sluicegate serve`` runs it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx2
import pytest

from enforcement.embedded import free_port
from tests.enforcement.service import oracle
from tests.enforcement.world import eventually
from tests.forks import sluicegate

Start = Callable[..., httpx2.Client]


@contextmanager
def running(url: str, *options: str, **environment: str) -> Iterator[httpx2.Client]:
    """Run ``sluicegate serve`` on a store while the block runs, and give a client of it."""
    port = free_port()
    variables = {"SLUICEGATE_REDIS_URL": url, "SLUICEGATE_TIMEOUT_MS": "1000", **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")}
    process = sluicegate(["serve", "--port", str(port), *options], inherited | variables)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=10.0) as client:
            assert eventually(lambda: process.poll() is not None or answers(client), 20)
            assert process.poll() is None
            yield client
    finally:
        process.terminate()
        # uvicorn shuts down and then ends by the signal, as other programs expect of it.
        assert process.wait(20) in (0, -signal.SIGTERM)


def answers(client: httpx2.Client) -> bool:
    """Return whether the service has its documents."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def start(server) -> Iterator[Start]:
    """Start services on the module's store; they end with the test."""
    with ExitStack() as services:
        yield lambda *options, **environment: services.enter_context(running(server.url, *options, **environment))


@pytest.fixture(scope="module")
def reader() -> Iterator[oracle.Oracle]:
    """Give a process that reads and writes messages with packages made from definitions of Envoy."""
    with oracle.running() as running:
        yield running
