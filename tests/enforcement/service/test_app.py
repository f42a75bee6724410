"""The service itself: who may ask, its probes, and that every failure has an answer."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys

import httpx2
import pytest

from enforcement import aio
from enforcement.cli import main
from enforcement.service.app import DecisionService
from enforcement.service.settings import ServiceSettings
from tests.enforcement.doors.conftest import bearer
from tests.enforcement.service.running import service
from tests.enforcement.world import eventually, fixed


def test_probes_and_unknown_paths(world, start):
    """Probes need no token; a path that does not exist is no permission."""
    world.everything(fixed(5))
    client = start()

    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").json() == {"ready": True, "revision": world.revision, "state": "ok"}
    for path in ("/", "/v1/checks", "/v1/check404", "/v1/check403x"):
        assert client.get(path).status_code == 404, path


def test_a_service_that_is_drained_says_so_and_still_answers(world, server, tmp_path):
    """A proxy has time to choose another instance: the service ends some seconds later, or at the second signal."""
    secret = world.everything(fixed(5))
    with service(server.url, tmp_path, arguments=["--drain", "60"], timeout_ms="1000") as drained:
        client = httpx2.Client(base_url=f"http://127.0.0.1:{drained.port}", verify=False, timeout=10.0)
        drained.send(signal.SIGTERM)

        assert eventually(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/readyz").json() == {"ready": False, "revision": world.revision, "state": "draining"}
        assert client.get("/v1/check", headers=bearer(secret)).status_code == 200
        assert drained.running
        drained.send(signal.SIGTERM)
        assert drained.wait() == 0
        with pytest.raises(httpx2.TransportError):
            client.get("/healthz")


@pytest.mark.parametrize("seconds", ["-1", "301", "1.5", "", "x", "0000"])
def test_how_long_to_drain_is_checked(seconds, capsys):
    """It is a number of seconds, and the message says which."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--drain", seconds])

    assert ended.value.code == 2
    assert "--drain: must be an integer from 0 to 300" in capsys.readouterr().err


def test_a_caller_shows_the_secret_or_stands_in_a_network(world, start):
    """Either is enough; without any, nothing is charged."""
    secret = world.everything(fixed(5))
    shared = {"Sluicegate-Secret": "a-secret-of-callers"}
    elsewhere = {"SLUICEGATE_SERVICE_CALLERS": "192.0.2.0/24", "SLUICEGATE_SERVICE_SECRET": "a-secret-of-callers"}
    closed, local = start(**elsewhere), start(SLUICEGATE_SERVICE_CALLERS="127.0.0.1")

    refused = closed.get("/v1/check", headers=bearer(secret))
    assert (refused.status_code, refused.json()["code"]) == (403, "caller_refused")
    assert closed.get("/v1/check403", headers=bearer(secret)).status_code == 403
    wrong = {**bearer(secret), "Sluicegate-Secret": "another"}
    assert closed.get("/v1/check", headers=wrong).status_code == 403
    assert closed.get("/healthz").status_code == 200
    assert closed.get("/v1/check", headers={**bearer(secret), **shared}).status_code == 200
    assert local.get("/v1/check", headers=bearer(secret)).headers["RateLimit"].startswith('"rpm";r=3')


def test_metrics_are_for_listed_networks(world, start):
    """Private ones by default. They tell nothing of a project, token or limit, and each worker tells of itself."""
    secret = world.everything(fixed(1))
    client = start("--workers", "2", SLUICEGATE_TRUSTED_PROXIES="192.0.2.1")
    strict = start("--server", "uvicorn", SLUICEGATE_METRICS_NETWORKS="10.0.0.0/8", SLUICEGATE_SERVICE_CALLERS="::1")
    for _ in range(2):
        client.get("/v1/check", headers=bearer(secret))

    shown = client.get("/metrics")
    assert shown.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = [line for line in shown.text.splitlines() if not line.startswith("#")]
    assert all(re.search(r'[{,]worker="\d+"}', line) for line in samples), samples
    assert not any(word in shown.text for word in (secret, "rpm", "api", "shop", "tok_"))
    # A client of a proxy that nobody declared.
    assert client.get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 403
    refused = strict.get("/metrics")
    assert (refused.status_code, refused.json()["code"]) == (403, "metrics_refused")
    inside = strict.get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"})
    assert inside.status_code == 200
    assert 'sluicegate_state{state="ok"} 1.0' in inside.text


async def test_an_answer_that_has_begun_is_not_begun_again(world, server, caplog):
    """Some servers raise while they send. A second answer raised again, and nobody caught it."""
    secret = world.everything(fixed(5))
    limiter = aio.Limiter(server.url, timeout=1.0)
    sent = []

    async def send(message):
        if message["type"] == "http.response.body" or sent:
            raise RuntimeError("Unexpected message")
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/check", "client": None}
    scope["headers"] = [(b"authorization", f"Bearer {secret}".encode())]
    await DecisionService(limiter, ServiceSettings())(scope, asyncio.Event().wait, send)

    assert [message["status"] for message in sent] == [200]
    assert "Unexpected message" in caplog.text
    await limiter.close()


async def test_an_unexpected_error_is_a_denial(world, server, monkeypatch, caplog):
    """A proxy takes no answer for permission, so that there is one whatever happens."""
    secret = world.everything(fixed(5))
    limiter = aio.Limiter(server.url, timeout=1.0)
    app = DecisionService(limiter, ServiceSettings())

    async def broken(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(limiter, "find_plan", broken)
    sent = []
    scope = {"type": "http", "method": "GET", "path": "/v1/check403", "client": None}
    scope["headers"] = [(b"authorization", f"Bearer {secret}".encode())]

    async def send(message):
        sent.append(message)

    await app(scope, asyncio.Event().wait, send)

    assert [sent[0]["status"], dict(sent[0]["headers"])[b"sluicegate-status"]] == [403, b"503"]
    assert "on purpose" in caplog.text
    await limiter.close()


async def test_a_cancelled_look_up_is_a_denial_and_a_cancelled_call_is_none(world, server, monkeypatch):
    """Only the server knows that a caller has left, and cancels its call. All other callers wait for an answer."""
    limiter, sent = aio.Limiter(server.url, timeout=1.0), []
    app = DecisionService(limiter, ServiceSettings())
    scope = {"type": "http", "method": "GET", "path": "/v1/check", "client": None}
    scope["headers"] = [(b"authorization", f"Bearer {world.everything(fixed(5))}".encode())]

    async def cancelled(*_):
        raise asyncio.CancelledError

    async def stuck(*_):
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    monkeypatch.setattr(limiter, "find_plan", cancelled)
    await app(scope, asyncio.Event().wait, send)
    statuses = [it.get("status") for it in sent]
    monkeypatch.setattr(limiter, "find_plan", stuck)
    call = asyncio.ensure_future(app(scope, asyncio.Event().wait, send))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert statuses == [503, None]
    assert len(sent) == 2
    await limiter.close()


def test_the_command_says_what_is_wrong(monkeypatch):
    """One sentence, and no traceback."""
    command = [sys.executable, "-m", "enforcement", "serve", "--deadline", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert result.returncode == 2
    assert result.stderr.startswith("sluicegate serve: SLUICEGATE_DEADLINE_MS: must be at least")
    assert len(result.stderr.splitlines()) == 1
