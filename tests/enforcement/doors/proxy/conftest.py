"""The proxy as ``sluicegate proxy`` runs it, and upstreams that speak HTTP byte by byte."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException

import httpx2
import pytest

from enforcement.embedded import ValkeyServer, free_port
from enforcement.model.limits import Limit
from enforcement.testing import Published
from tests.enforcement.world import eventually
from tests.forks import sluicegate


class Running:
    """
    A proxy in a process of its own.

    Attributes:
        port: Where it listens.
        pid: Its process.
        upstream: What stands behind it. Each test sets its script.
    """

    def __init__(self, port: int, pid: int, published: Published) -> None:
        self.port, self.pid = port, pid
        self._published = published
        self._revision = 0
        self.upstream: Scripted
        self.connections: list[socket.socket] = []

    def catch_up(self) -> str:
        """Wait until it knows all that was published, and return its address."""
        address = f"http://127.0.0.1:{self.port}"
        while self._revision < self._published.revision:
            self._revision = httpx2.get(f"{address}/readyz", verify=False, timeout=20).json()["revision"]
        return address

    def connect(self) -> socket.socket:
        """Return a new connection to it."""
        self.catch_up()
        self.connections.append(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        return self.connections[-1]

    def request(self, text: str, token: str, body: bytes = b"") -> Exchange:
        """Send one request, and return what can be read of its response."""
        raw = self.connect()
        raw.sendall(request(text, token) + body)
        return Exchange(raw)

    def forget(self) -> None:
        """Close all connections to it."""
        while self.connections:
            self.connections.pop().close()


def request(text: str, token: str) -> bytes:
    """Return a request: the line without its version, and further header fields after it."""
    line, *fields = text.split("\n")
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", f"X-API-Key: {token}", *fields, "", ""]).encode("latin-1")


class Exchange:
    """A response, as far as it was read from a connection."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self.data = b""

    def until(self, ending: bytes) -> bytes:
        """Read until the response so far ends with these bytes, and return it."""
        while not self.data.endswith(ending):
            part = self.raw.recv(65_536)
            assert part, f"the connection ended after {self.data!r}"
            self.data += part
        return self.data

    def rest(self) -> bytes:
        """Read to the end of the connection, and return all."""
        try:
            while part := self.raw.recv(65_536):
                self.data += part
        except ConnectionResetError:
            pass
        return self.data

    @property
    def status(self) -> int:
        """The status, which may have to be read first."""
        while b"\r\n" not in self.data:
            part = self.raw.recv(65_536)
            assert part, "no response"
            self.data += part
        return int(self.data.split()[1])

    def close(self) -> None:
        self.raw.close()


_NUMBERS = itertools.count()
Script = Callable[["Peer"], None]


class Peer:
    """One connection that the proxy has opened to a scripted upstream."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self.file = raw.makefile("rb")

    def head(self) -> bytes:
        """Read the request line and the header fields, and return them. Empty: the proxy has closed the connection."""
        lines = []
        while (line := self.file.readline()) not in (b"\r\n", b""):
            lines.append(line)
        return b"".join(lines)

    def body(self, size: int) -> bytes:
        return self.file.read(size)

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    def closed(self) -> bool:
        """Wait until the proxy closes the connection, and return whether it did."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """End the connection by a reset."""
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        self.file.close()
        self.raw.close()


class Scripted:
    """A server that runs a script on each connection, in a thread."""

    def __init__(self, script: Script, host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self.connections = 0
        self.failures: list[BaseException] = []
        self._listening = socket.create_server((host, port))
        self.host, self.port = self._listening.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        self._open: list[Peer] = []
        self._held = threading.Event()
        self._held.set()
        self._waiting: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Take no connection: fill the queue of those that wait."""
        self._held.clear()
        self._listening.listen(0)
        unanswered = 0
        while unanswered < 2:
            waiting = socket.socket()
            waiting.settimeout(0.3)
            try:
                waiting.connect((self.host, self.port))
            except TimeoutError:
                unanswered += 1
            self._waiting.append(waiting)

    def release(self) -> None:
        """Take connections again."""
        for waiting in self._waiting:
            waiting.close()
        self._waiting.clear()
        self._held.set()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            self._held.wait()
            self.connections += 1
            peer = Peer(raw)
            self._open.append(peer)
            threading.Thread(target=self._run, args=(peer,), daemon=True).start()

    def _run(self, peer: Peer) -> None:
        try:
            self.script(peer)
        except (OSError, ValueError):
            pass  # the proxy, or the end of the test, has closed the connection
        except Exception as exc:  # noqa: BLE001 - the test has to see it
            self.failures.append(exc)
        finally:
            peer.close()

    def reset(self) -> None:
        """End all connections, and begin to count anew."""
        for peer in self._open:
            with suppress(OSError):
                peer.raw.shutdown(socket.SHUT_RDWR)
        self._open.clear()
        self.connections = 0

    def close(self) -> None:
        self._listening.close()
        self.reset()
        assert self.failures == []


def url_of(published: Published) -> str:
    """Return the address of the store that it publishes to."""
    options = published.client.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}"


@contextmanager
def running(published: Published, *options: str, **environment: str) -> Iterator[Running]:
    """Run ``sluicegate proxy`` while the block runs."""
    port = free_port()
    variables = {"SLUICEGATE_REDIS_URL": url_of(published), "SLUICEGATE_TIMEOUT_MS": "1000", **environment}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")}
    ports = ["--port", str(port), *([] if "--metrics-port" in options else ["--metrics-port", str(port)])]
    process = sluicegate(["proxy", *ports, *options], environment | variables)
    try:
        assert eventually(lambda: process.poll() is not None or _is_ready(port), 20)
        assert process.poll() is None
        yield Running(port, process.pid, published)
    finally:
        process.terminate()
        # uvicorn shuts down and then ends by the signal, as other programs expect of it.
        assert process.wait(20) in (0, -signal.SIGTERM)


def _is_ready(port: int) -> bool:
    # Asked many times, and a client of httpx2 would load all certificates each time.
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False


@pytest.fixture(scope="module")
def published(server: ValkeyServer) -> Iterator[Published]:
    """Publish to the module's store."""
    published = Published(server.url)
    published.project()
    yield published
    published.close()


@pytest.fixture
def token_of(published: Published) -> Callable[..., str]:
    """Return a function that publishes a token under the given limits."""

    def make(*limits: Limit, project: str | None = None) -> str:
        slug = f"policy-{next(_NUMBERS)}"
        published.policy(slug, *limits)
        return published.token(policy=slug, **({} if project is None else {"project": project}))

    return make


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], Scripted]]:
    """Start upstreams that run a script on each connection."""
    with ExitStack() as servers:

        def start(script: Script) -> Scripted:
            server = Scripted(script)
            servers.callback(server.close)
            return server

        yield start


@pytest.fixture(scope="module", params=["uvicorn", "h2corn"])
def kind(request: pytest.FixtureRequest) -> str:
    """The servers that run the proxy."""
    return str(request.param)


@pytest.fixture(scope="module")
def lane(server: ValkeyServer, published: Published, kind: str) -> Iterator[Running]:
    """Run one proxy for the module, with an upstream behind it."""
    upstream = Scripted(lambda peer: None)
    with running(published, "--server", kind, SLUICEGATE_UPSTREAM_URL=upstream.url) as proxy:
        proxy.upstream = upstream
        yield proxy
    upstream.close()


@pytest.fixture
def proxy(lane: Running) -> Iterator[Running]:
    """Give the module's proxy, with no connection to its upstream."""
    lane.upstream.reset()
    yield lane
    lane.forget()
    lane.upstream.reset()
    assert lane.upstream.failures == []


@pytest.fixture
def start(server: ValkeyServer, published: Published, kind: str) -> Iterator[Callable[..., Running]]:
    """Start proxies with settings of their own."""
    with ExitStack() as proxies:

        def begin(upstream: Scripted | None = None, **environment: str) -> Running:
            if upstream is not None:
                environment["SLUICEGATE_UPSTREAM_URL"] = upstream.url
            proxy = proxies.enter_context(running(published, "--server", kind, **environment))
            proxies.callback(proxy.forget)
            return proxy

        yield begin
