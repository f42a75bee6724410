"""Real proxies, each with the configuration that the repository ships, before a real application."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from enforcement.embedded import free_port
from tests.repository import ROOT
from tests.requires import require

CONFIGURATIONS = ROOT / "docker" / "proxies"
LISTENS, SERVICE, APPLICATION, INTERNAL = 8080, 9000, 8000, 9001
"""The ports in the committed configurations."""


def installed(program: str, package: str) -> str:
    """Return the path of a program of the system."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    return require(found, f"{program} is missing: install it with 'apt-get install {package}'.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """
    A proxy with its configuration.

    Attributes:
        name: The folder below ``docker/proxies``.
        command: Returns the command that runs it in the foreground, in a folder with a copy of its configuration.
        opens: Whether requests pass while the service is gone.
        shows_limits: Whether our header fields are on responses that were allowed.
        gone: The status of a request while the service is gone, if requests do not pass.
    """

    name: str
    command: Callable[[Path], list[str]]
    opens: bool = False
    shows_limits: bool = True
    gone: int = 200


@dataclass(slots=True)
class Running:
    """A proxy that runs. It listens on ``port``, asks ``service``, and its folder has its configuration and ``log``."""

    port: int
    service: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What it has written."""
        return (self.folder / "log").read_text(errors="replace")


@contextmanager
def running(
    recipe: Recipe, *, service: int, application: int, change: Callable[[str], str] = lambda text: text
) -> Iterator[Running]:
    """
    Run a proxy while the block runs.

    Args:
        recipe: Which.
        service: Port of the decision service.
        application: Port of the application.
        change: Changes the text of each configuration file as an operator would. Ports are replaced in any case.
    """
    port = free_port()
    ports = {LISTENS: port, SERVICE: service, APPLICATION: application, INTERNAL: free_port()}
    with tempfile.TemporaryDirectory(prefix=f"sluicegate-{recipe.name}-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx gives up root's rights
        for path in sorted((CONFIGURATIONS / recipe.name).iterdir()):
            text = change(path.read_text())
            for committed, used in ports.items():
                text = text.replace(f":{committed}", f":{used}")
            (folder / path.name).write_text(text)
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": name,
            "XDG_DATA_HOME": name,
            "XDG_CONFIG_HOME": name,
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                recipe.command(folder), cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        proxy = Running(port, service, folder, process)
        try:
            _wait_until_ready(proxy)
            yield proxy
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a proxy and its workers at once. Some take seconds to end by themselves, and no test looks at their end."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_ready(proxy: Running) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if ask(proxy.port, "/ready").status != 404:  # Traefik listens before it knows a route
                return
        except OSError:
            assert proxy.process.poll() is None, f"It ended:\n{proxy.log}"
        assert time.monotonic() < deadline, f"It is not ready:\n{proxy.log}"
        time.sleep(0.02)


@dataclass(slots=True)
class Application:
    """
    An application behind a proxy.

    Attributes:
        port: Where it listens.
        seen: The requests that reached it, as method, target, header fields and body.
    """

    port: int
    seen: list[tuple[str, str, Mapping[str, str], bytes]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Application]:
    """
    Serve an application that answers with 200, or with the status that the path names, such as ``/status/404``.

    It agrees to every protocol that a request wants to change to, and then ends the connection.
    """
    application = Application(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fields = {name.lower(): value for name, value in self.headers.items()}
            target = self.requestline.split()[1]  # self.path has no second slash at its beginning
            application.seen.append((self.command, target, fields, body))
            if protocol := fields.get("upgrade"):
                self.send_response(101)
                self.send_header("Upgrade", protocol)
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", _accepted(fields.get("sec-websocket-key", "")))
                self.end_headers()
                self.close_connection = True
                return
            given = self.path.removeprefix("/status/")
            data = json.dumps({"path": self.path}).encode()
            self.send_response(int(given) if given.isdigit() else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = do_CONNECT = answer

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass  # a proxy that ends resets its connections

    with Server(("127.0.0.1", 0), Handler) as server:
        application.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield application
        finally:
            server.shutdown()


def _accepted(key: str) -> str:
    """Return what a server of WebSockets answers to a key (RFC 6455, 4.2.2)."""
    return b64encode(sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came: header fields by lower-case name, in order."""

    status: int
    fields: Sequence[tuple[str, str]]
    body: bytes
    seconds: float

    def __getitem__(self, name: str) -> str | None:
        values = [value for key, value in self.fields if key == name.lower()]
        return ", ".join(values) if values else None


class NoResponse(ConnectionError):
    """The connection ended without a response."""


def ask(
    port: int,
    target: str = "/",
    *fields: str,
    method: str = "GET",
    source: str = "127.0.0.1",
    body: bytes = b"",
    timeout: float = 40.0,
) -> Answer:
    """
    Send one request, exactly as it is given, and return the response.

    Args:
        port: Where the proxy listens.
        target: As it stands in the request line.
        fields: Lines of the header, such as ``X-API-Key: abc``.
        method: Of the request.
        source: Address from which it comes.
        body: Its content.
        timeout: Seconds that nothing may come.
    """
    lines = [f"{method} {target} HTTP/1.1", "Host: shop.test", *fields]
    if not any(line.lower().startswith("connection:") for line in fields):
        lines.append("Connection: close")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout, source_address=(source, 0)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        data = b""
        while piece := connection.recv(65_536):
            data += piece
            head, end, rest = data.partition(b"\r\n\r\n")
            if end and _is_whole(head, rest):
                break
    return _read(data, time.monotonic() - began)


def _is_whole(head: bytes, rest: bytes) -> bool:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(rest) >= int(line.partition(b":")[2])
    return False


def _read(data: bytes, seconds: float) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1."):
        raise NoResponse(f"{data[:200]!r}")
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Answer(int(first.split()[1]), fields, body, seconds)
