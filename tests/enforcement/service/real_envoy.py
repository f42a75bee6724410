"""A real Envoy with a configuration of ``docker/proxies/envoy``, before an upstream that notes what reaches it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from enforcement.embedded import free_port
from tests.apart import program
from tests.repository import ROOT

CONFIGURATIONS = ROOT / "docker" / "proxies" / "envoy"


class Upstream:
    """Answers each request with ``ok`` and the header field ``X-Tokens-Used``, and keeps its path and header fields."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.tokens_used = 0
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # the body is written after the header

            def do_GET(self) -> None:
                upstream.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.send_header("X-Tokens-Used", str(upstream.tokens_used))
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1_024

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class Envoy:
    """A running Envoy, a client of it, and the upstream behind it."""

    def __init__(self, port: int, admin: int, upstream: Upstream) -> None:
        self.port, self.upstream, self._admin = port, upstream, admin
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=10.0)

    def get(self, path: str = "/", token: str | None = None, **headers: str) -> httpx2.Response:
        shown = {} if token is None else {"X-API-Key": token}
        return self.client.get(path, headers={**shown, **{n.replace("_", "-"): v for n, v in headers.items()}})

    def asks(self, port: int) -> bool:
        """Return whether it sends requests to the instance of the service that listens on a port."""
        clusters = httpx2.get(f"http://127.0.0.1:{self._admin}/clusters", verify=False, timeout=5).text
        return f"sluicegate::127.0.0.1:{port}::health_flags::healthy" in clusters

    def timed(self, path: str = "/", token: str | None = None) -> tuple[float, httpx2.Response]:
        began = time.monotonic()
        answer = self.get(path, token)
        return time.monotonic() - began, answer

    def count(self, name: str) -> int:
        """Return a counter of Envoy about its connections to the service."""
        text = httpx2.get(
            f"http://127.0.0.1:{self._admin}/stats", params={"filter": f"^cluster.sluicegate.{name}$"}, verify=False
        ).text
        return int(text.rpartition(":")[2])


@contextmanager
def envoy(name: str, service: int, folder: Path, *replaced: tuple[str, str]) -> Iterator[Envoy]:
    """
    Run an Envoy while the block runs.

    Args:
        name: The name of a configuration, without its suffix.
        service: The port of the decision service.
        replaced: Pairs of a text in the configuration, and what takes its place.
    """
    upstream, port, admin = Upstream(), free_port(), free_port()
    text = (CONFIGURATIONS / f"{name}.yaml").read_text()
    ports = {9901: admin, 8080: port, 9000: service, 8000: upstream.port}
    for old, new in (*((f"port_value: {a}", f"port_value: {b}") for a, b in ports.items()), *replaced):
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.yaml").write_text(text)
    # Without --disable-hot-restart an Envoy ends with the thread that started it.
    command = [program("envoy", "envoy"), "-c", folder / f"{name}.yaml", "--disable-hot-restart", "--concurrency", "1"]
    with (folder / "envoy.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        running = Envoy(port, admin, upstream)
        try:
            _wait(admin, process, folder / "envoy.log")
            yield running
        finally:
            running.client.close()
            process.terminate()
            process.wait(20)
            upstream.close()


def _wait(admin: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2_000:]
        try:
            if httpx2.get(f"http://127.0.0.1:{admin}/ready", verify=False, timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.02)
    raise AssertionError(log.read_text()[-2_000:])
