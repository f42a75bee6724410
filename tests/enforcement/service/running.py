"""The decision service as an operator starts it, in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from enforcement import Limit
from enforcement.embedded import ValkeyServer, free_port
from enforcement.testing import Published, Store
from tests.enforcement.faults import FaultyPath
from tests.enforcement.service.grpc_client import Channel
from tests.enforcement.world import eventually
from tests.forks import Forked, sluicegate

HYPERCORN = "from hypercorn.__main__ import main; import sys; sys.exit(main())"


class Service:
    """A decision service that listens on *port*."""

    def __init__(
        self,
        url: str,
        log: Path,
        *,
        server: str,
        arguments: Sequence[str],
        environ: dict[str, str],
        prefix: Sequence[str] = (),
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.port, self.log = free_port(), log
        self.address = f"{'http' if context is None else 'https'}://127.0.0.1:{self.port}"
        self._context = context
        self._command = [*prefix, *_command(server, self.port, arguments)]
        self._environ = {**os.environ, "SLUICEGATE_REDIS_URL": url, **environ}
        self._process: Forked | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._command[:3] == [sys.executable, "-m", "enforcement"]:
            self._process = sluicegate(self._command[3:], self._environ, self.log)
        else:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self.ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=2, context=self._context) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit status."""
        assert self._process is not None
        return self._process.wait(20)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise
            finally:
                self._process = None

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it, and return its exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(40)
        finally:
            process.kill()

    def processes(self) -> list[int]:
        """Return the process and all that descend from it."""
        assert self._process is not None
        return list(_family(self._process.pid))

    def kill(self) -> None:
        """End it at once, although it may be drained for a long time."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def memory(self) -> int:
        """Return the bytes of memory that the process and its workers have in use."""
        assert self._process is not None
        return sum(_resident(pid) for pid in _family(self._process.pid))

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None


@contextmanager
def service(
    url: str,
    folder: Path,
    *,
    server: str = "h2corn",
    arguments: Sequence[str] = (),
    prefix: Sequence[str] = (),
    context: ssl.SSLContext | None = None,
    **environ: str,
) -> Iterator[Service]:
    """
    Run a service before the store at *url* while the block runs.

    Args:
        prefix: A command that runs the service as another process.
        context: Trusts the certificate of a service with TLS. None: it has none.
        environ: Variables without ``SLUICEGATE_``.
    """
    named = {f"SLUICEGATE_{name.upper()}": value for name, value in environ.items()}
    more: dict[str, Any] = {"prefix": prefix, "context": context}
    started = Service(url, folder / "service.log", server=server, arguments=arguments, environ=named, **more)
    try:
        started.start()
        yield started
    finally:
        started.stop()


def _command(server: str, port: int, arguments: Sequence[str]) -> list[str]:
    if server == "hypercorn":
        app = "enforcement.service.app:create_app()"
        return [sys.executable, "-c", HYPERCORN, "--bind", f"127.0.0.1:{port}", app, *arguments]
    return [sys.executable, "-m", "enforcement", "serve", "--port", str(port), "--server", server, *arguments]


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    with suppress(FileNotFoundError):  # it, or one of its threads, has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _resident(pid: int) -> int:
    (line,) = (it for it in Path(f"/proc/{pid}/status").read_text().splitlines() if it.startswith("VmRSS:"))
    return int(line.split()[1]) * 1_024


class Gateway:
    """A service with the documents that it follows, and a connection of gRPC to it."""

    def __init__(self, service: Service, published: Published, path: FaultyPath | None) -> None:
        self.service, self.published, self.path = service, published, path

    def channel(self) -> Channel:
        return Channel(self.service.port)

    def token(self, *limits: Limit, project: str = "shop", **more: Any) -> str:
        """Publish a token with a policy of its own, and wait until the service has both."""
        slug = f"policy-{next(_numbers)}"
        self.published.policy(slug, *limits)
        secret = self.published.token(policy=slug, project=project, **more)
        self.follow()
        return secret

    def anonymous(self, *limits: Limit) -> str:
        """Publish a project that admits requests without a token, and return its slug."""
        number = next(_numbers)
        self.published.policy(f"policy-{number}", *limits)
        self.published.project(f"project-{number}", anonymous_policy=f"policy-{number}")
        self.follow()
        return f"project-{number}"

    def follow(self) -> None:
        """Wait until the service has what was published."""
        assert eventually(lambda: self.state()["revision"] == self.published.revision)

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.service.port}/readyz", timeout=5) as answer:
            return json.load(answer)


@contextmanager
def gateway(store: ValkeyServer, folder: Path, *, path: FaultyPath | None = None, **options: Any) -> Iterator[Gateway]:
    """Run a service before an emptied store, which it reaches by *path* if given, with the project ``shop``."""
    Store(store).clear()
    published = Published(store.url)
    published.project("shop")
    with service(store.url if path is None else path.url, folder, **options) as running:
        yield Gateway(running, published, path)
    published.close()


_numbers = itertools.count(1)


def hourly(quota: int, **more: Any) -> Limit:
    return Limit(name="hourly", algorithm="fixed_window", quota=quota, window_seconds=3_600, **more)
