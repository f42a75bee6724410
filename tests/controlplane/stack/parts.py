"""Runs single parts of the platform, of this version or of an earlier one, on one database and one store."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg

from enforcement.embedded import free_port
from tests.controlplane import forks
from tests.controlplane.stack.running import eventually, own_environment
from tests.repository import ROOT

CELERY = "celery --quiet -A controlplane.celery"
OLD_PROXY = "enforcement.doors.proxy:create_app"
SECRET_KEY = "only-for-tests-" + "0123456789abcdef" * 4


class Parts:
    """
    The processes of a test. Each has a name, by which it is stopped.

    Attributes:
        log: The folder in which each process has a file with what it wrote.
    """

    def __init__(self, folder: Path, database: str, store: str) -> None:
        self.log = folder / "log"
        self.log.mkdir()
        self._processes: dict[str, forks.Process] = {}
        self.environment = {
            **own_environment(),
            "DATABASE_URL": database,
            "SLUICEGATE_REDIS_URL": store,
            "SLUICEGATE_VAR": str(folder / "var"),
            "SECRET_KEY": SECRET_KEY,
            "ALLOWED_HOSTS": "127.0.0.1",
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
            "PYTHONUNBUFFERED": "1",
            **{f"SLUICEGATE_REST_{name}RATE": "off" for name in ("", "CONSUMER_", "FAILURE_")},
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(30)

    def start(self, name: str, tree: Path, command: str, **environment: str) -> None:
        """Start ``python -m COMMAND`` in the code of *tree*."""
        with (self.log / name).open("ab") as output:
            if tree == ROOT:
                self._processes[name] = forks.start(["-m", *command.split()], self.environment | environment, output)
                return
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=tree,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def stop(self, *names: str) -> None:
        """End processes in order, as a service manager does."""
        stopped = [self._processes.pop(name) for name in names]
        for process in stopped:
            process.terminate()
        for process in stopped:
            process.wait(60)

    def kill(self, name: str) -> None:
        """End a process as a crash does."""
        process = self._processes.pop(name)
        process.kill()
        process.wait(30)

    def said(self, name: str) -> str:
        return (self.log / name).read_text(errors="replace")

    def manage(self, tree: Path, *arguments: str, **environment: str) -> str:
        """Run a command of ``manage.py`` in the code of *tree*, and return what it printed."""
        given = {**self.environment, **environment}
        if tree == ROOT:
            done = forks.run_manage(tree, arguments, given)
        else:
            command = [sys.executable, "manage.py", *arguments]
            done = subprocess.run(command, cwd=tree, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def web(self, name: str, tree: Path) -> str:
        """Start a web process and return its address once it answers."""
        port = free_port()
        command = f"gunicorn controlplane.wsgi --workers 1 --threads 4 --no-control-socket --bind 127.0.0.1:{port}"
        return self._serving(name, tree, command, port)

    def worker(self, name: str, tree: Path) -> None:
        """Start a worker and a beat, ``NAME-beat``."""
        self.start(name, tree, f"{CELERY} worker --concurrency 2 --without-mingle --without-gossip")
        self.beat(f"{name}-beat", tree)

    def beat(self, name: str, tree: Path) -> None:
        self.start(name, tree, f"{CELERY} beat --pidfile= --schedule {self.log / name}.schedule")

    def proxy(self, name: str, tree: Path, upstream: str, **environment: str) -> str:
        """Start a ready-made proxy and return its address once it has policies to enforce."""
        port = free_port()
        # 0.2.0 has no command for it.
        command = f"enforcement proxy --port {port}" if tree == ROOT else f"{uvicorn(port)} {OLD_PROXY}"
        extra = {"SLUICEGATE_INSTANCE": name, "SLUICEGATE_UPSTREAM_URL": upstream, **environment}
        return self._serving(name, tree, command, port, path="/readyz", **extra)

    def upstream(self) -> str:
        port = free_port()
        return self._serving("upstream", ROOT, f"{uvicorn(port)} controlplane.stack.upstream:create_app", port)

    def _serving(
        self, name: str, tree: Path, command: str, port: int, path: str = "/healthz", **environment: str
    ) -> str:
        self.start(name, tree, command, **environment)
        url = f"http://127.0.0.1:{port}"
        process = self._processes[name]
        assert eventually(lambda: _status(url, path) == 200 or process.poll() is not None), self.said(name)
        assert process.poll() is None, f"{name}: {self.said(name)}"
        return url


def uvicorn(port: int) -> str:
    return f"uvicorn --factory --host 127.0.0.1 --port {port} --no-access-log --log-level warning"


def _status(url: str, path: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


ANSWERED = range(200, 500)


class Api:
    """A program that calls REST over one connection at a time, and is told nothing when a process is killed."""

    def __init__(self, url: str, key: str) -> None:
        self.address, self.key = urlsplit(url).netloc, key

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return status, header fields and body. Raises OSError or HTTPException if there is no whole response."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}
            connection.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
            return response.status, dict(response.getheaders()), json.loads(text) if text else None
        finally:
            connection.close()

    def until_answered(self, method: str, path: str, body: Any, stop: float, **headers: str) -> tuple[int, Any]:
        """Repeat a call until it is answered by something else than a server error."""
        while True:
            with suppress(OSError, http.client.HTTPException, ValueError):
                status, _, found = self.call(method, path, body, **headers)
                # 409: an earlier repetition is still running. 429: the program calls too often.
                if status in ANSWERED and status not in (409, 429):
                    return status, found
            assert time.monotonic() < stop, f"{method} {path} was never answered"
            time.sleep(0.05)


class Load:
    """Sends requests with one token through some proxies until it is stopped, and counts what they answer."""

    def __init__(self, secret: str, *proxies: str) -> None:
        self.statuses = Counter[int]()
        self._secret, self._proxies = secret, proxies
        self._done = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._working: Future[None] = self._threads.submit(self._work)

    def stop(self) -> Counter[int]:
        """Stop after the request that is under way, and return how often each status was answered."""
        self._done.set()
        self._working.result(60)
        self._threads.shutdown()
        return self.statuses

    def _work(self) -> None:
        connections = [http.client.HTTPConnection(urlsplit(url).netloc, timeout=20) for url in self._proxies]
        while not self._done.wait(0.02):
            for connection in connections:
                self.statuses[_sent(connection, self._secret)] += 1
        for connection in connections:
            connection.close()


def send(proxy: str, secret: str, times: int = 1) -> Counter[int]:
    """Send requests one after the other, and return how often each status was answered."""
    connection = http.client.HTTPConnection(urlsplit(proxy).netloc, timeout=20)
    try:
        return Counter(_sent(connection, secret) for _ in range(times))
    finally:
        connection.close()


def _sent(connection: http.client.HTTPConnection, secret: str) -> int:
    connection.request("GET", "/v1/x", headers={"Authorization": f"Bearer {secret}"})
    response = connection.getresponse()
    response.read()
    return response.status


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(database) as connection:
        return connection.execute(query).fetchall()


def counted(database: str) -> int:
    """Return the number of admitted requests that SQL has."""
    query = "SELECT coalesce(sum(allowed), 0) FROM usage_usagerow WHERE period = 'minute' AND limit_name = ''"
    return int(rows(database, query)[0][0])
