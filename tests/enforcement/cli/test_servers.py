"""What ``sluicegate serve`` and ``sluicegate proxy`` check before a server starts, and how a started one behaves."""

from __future__ import annotations

import os
import resource
import signal
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import pytest

from enforcement.cli import serve
from enforcement.embedded import ValkeyServer, free_port
from enforcement.testing import Published
from tests.docs.tls import certificate
from tests.enforcement.service.running import Service, service
from tests.enforcement.world import eventually
from tests.scale import scale

SERVERS = ["h2corn", "uvicorn"]
HEAD = b"GET /v1/check HTTP/1.1\r\nHost: a.test\r\n"


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--port", "99999"], "--port: must be an integer from 1 to 65535, got '99999'"),
        (["--port", "0"], "--port: must be an integer from 1 to 65535, got '0'"),
        (["--host", ""], "--host: must not be empty"),
        (["--host", "nowhere.invalid"], "--host, --port: cannot listen on nowhere.invalid, port 9000: "),
        (["--certfile", "{cert}"], "--certfile and --keyfile: must be given together."),
        (["--keyfile", "{key}"], "--certfile and --keyfile: must be given together."),
        (["--certfile", "{cert}", "--keyfile", "{key}.no"], "--keyfile: cannot be read: No such file or directory"),
        (["--certfile", "{key}", "--keyfile", "{cert}"], "must be PEM files of one key without a password: "),
        (["--certfile", "{cert}", "--keyfile", "{other}"], "KEY_VALUES_MISMATCH"),
    ],
)
def test_an_option_that_cannot_work_is_named(capsys, certificates, kind, options, rule):
    """In one sentence, before a server has started. uvicorn listened on port 34463 for 99999."""
    options = [option.format_map(certificates) for option in options]
    try:
        status = serve.main(["--server", kind, *options])
    except SystemExit as exc:
        status = exc.code

    assert status == 2
    assert rule in capsys.readouterr().err


@pytest.mark.parametrize("kind", SERVERS)
def test_a_port_that_is_busy_is_named(capsys, kind):
    """By both servers with the same words and status."""
    with closing(socket.create_server(("127.0.0.1", 0))) as busy:
        port = busy.getsockname()[1]
        assert serve.main(["--server", kind, "--port", str(port)]) == 2

    sentence = f"sluicegate serve: --host, --port: cannot listen on 127.0.0.1, port {port}: Address already in use\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--http1-port", "9000"], "--http1-port: must differ from --port, got 9000"),
        (["--http1-port", "9010", "--server", "uvicorn"], "--http1-port: is for h2corn only"),
        (["--metrics-port", "9000"], "--metrics-port: must differ from the other ports, got 9000"),
        (["--http1-port", "0"], "--http1-port: must be an integer from 1 to 65535, got '0'"),
        (["--http1-port", "{busy}"], "--host, --http1-port: cannot listen on 127.0.0.1, port {busy}: "),
    ],
)
def test_a_second_port_that_cannot_work_is_named(capsys, options, rule):
    """It is refused before a server has started."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        busy = listener.getsockname()[1]
        try:
            status = serve.main(["--port", "9000", *(option.format(busy=busy) for option in options)])
        except SystemExit as exc:
            status = exc.code

    assert status == 2
    assert rule.format(busy=busy) in capsys.readouterr().err


def test_the_second_port_answers_what_the_first_refuses(server, tmp_path):
    """h2corn answers HTTP/1.0 by an empty 400. Both ports have one limiter, and end together."""
    port, metrics = free_port(), free_port()
    ports = ["--http1-port", str(port), "--metrics-port", str(metrics)]
    with service(server.url, tmp_path, arguments=[*ports, "--workers", "2"]) as running:
        first, second = (first_line(at, b"GET /v1/check HTTP/1.0\r\n\r\n") for at in (running.port, port))
        newer = first_line(port, b"GET /v1/check HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        asked = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        pages = [first_line(at, asked) for at in (running.port, port, metrics)]
        assert running.end() == 0

    assert pages == [b"HTTP/1.1 404 Not Found"] * 2 + [b"HTTP/1.1 200 OK"]
    assert first == b"HTTP/1.1 400 Bad Request"
    assert (second, newer) == (b"HTTP/1.1 401 Unauthorized",) * 2
    with pytest.raises(ConnectionRefusedError):
        first_line(port, HEAD)


def first_line(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        return connection.recv(65_536).partition(b"\r\n")[0]


@pytest.fixture(scope="module", autouse=True)
def published(server: ValkeyServer) -> None:
    """Publish something, for without documents the service is not ready."""
    with closing(Published(server.url)) as publisher:
        publisher.project("shop")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> dict[str, Path]:
    """Files of a certificate, of its key, and of the key of another certificate."""
    (one, two) = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    (cert, key), (_, other) = certificate(one), certificate(two)
    return {"cert": cert, "key": key, "other": other}


@pytest.fixture(params=scale(["h2corn"], SERVERS))
def started(request: pytest.FixtureRequest, server: ValkeyServer, tmp_path: Path) -> Iterator[Service]:
    with service(server.url, tmp_path, server=request.param, arguments=["--workers", "2"]) as running:
        yield running


@pytest.mark.proof
def test_stalled_callers_do_not_keep_the_service_from_ending(started):
    """A caller that never sends the rest of its request waits for nobody. The status says that all went well."""
    stalled = [socket.create_connection(("127.0.0.1", started.port)) for _ in range(4)]
    for number, caller in enumerate(stalled):
        caller.sendall(HEAD if number % 2 else HEAD + b"Content-Length: 9\r\n\r\n1")
    asked = time.monotonic()

    assert started.end() == 0
    assert time.monotonic() - asked < 20
    for caller in stalled:
        caller.close()


@pytest.mark.proof
def test_a_worker_that_was_killed_is_replaced(started):
    """And the processes end with the one that was started, whichever they are."""
    before = started.processes()
    victim = next(pid for pid in before[1:] if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)

    assert eventually(lambda: len(started.processes()) == len(before) and victim not in started.processes(), 20)
    assert eventually(started.ready, 20)
    after = started.processes()
    started.end()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in after), 10)


@pytest.mark.proof
@pytest.mark.parametrize("kind", scale(["h2corn"], SERVERS))
def test_more_connections_than_files_end_no_worker(server, tmp_path, kind):
    """A worker of h2corn ended with all its requests. Those who wait are served when others leave."""
    most = resource.prlimit(0, resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, most[1]))
    try:
        # The service raises its limit as far as it may, so the hard one is lowered for it alone.
        with service(server.url, tmp_path, server=kind, prefix=("prlimit", "--nofile=150:200")) as running:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
            before = running.processes()
            callers = [_connect(running.port) for _ in range(300)]
            time.sleep(0.5)
            for caller in callers:
                caller.close()
            assert eventually(running.ready, 20)
            assert running.processes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


@pytest.mark.parametrize("kind", SERVERS)
def test_tls(server, tmp_path, certificates, kind):
    """
    A caller without TLS gets no answer that it could take for permission.

    The signal ends the service with status 0. uvicorn sends itself the signal again, which looked like a failure.
    """
    files = ["--certfile", str(certificates["cert"]), "--keyfile", str(certificates["key"])]
    trusting = ssl.create_default_context(cafile=str(certificates["cert"]))
    with service(server.url, tmp_path, server=kind, arguments=files, context=trusting) as running:
        with urllib.request.urlopen(f"{running.address}/healthz", context=trusting) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises((OSError, HTTPException)):
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/v1/check", timeout=5)
        assert running.end(signal.SIGTERM) == 0


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("option", ["--http1-port", "--metrics-port"])
def test_a_second_port_names_the_extra_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """uvicorn serves it, which the extra of the decision service does not install."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    assert serve.main([option, str(free_port())]) == 2
    assert capsys.readouterr().err.endswith("needs the extra 'proxy': pip install 'sluicegate[proxy]'\n")
