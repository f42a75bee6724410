"""The command line, and a server in front of the control plane that loses what it is told to lose."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from pytest_django.live_server_helper import LiveServer

from enforcement.cli import main
from enforcement.cli.remote import rest
from tests.controlplane.conftest import api, call, key  # noqa: F401  (fixtures)

FILE = """\
apiVersion: sluicegate/v1
project:
  slug: chat
  name: Chat
  policy: chat--free
policies:
  - slug: chat--burst
    name: Burst
    limits:
      - name: per-second
        algorithm: token_bucket
        quota: 10
        window_seconds: 1
        burst: 50
        partition_by:
          - ip
        match:
          methods:
            - POST
          attributes:
            model:
              - gpt-4
              - 'no'
  - slug: chat--free
    name: Free
    description: |
      The plan: free
      For everybody
    limits:
      - name: per-minute
        algorithm: sliding_window
        quota: 60
        window_seconds: 60
      - name: per-month
        algorithm: fixed_window
        quota: 1000
        calendar: month
        time_zone: Europe/Berlin
        anchor: 15
        mode: shadow
overrides:
  - limit: chat--free/per-minute
    quota: 600
    reason: launch week
    ends_at: '2099-01-01T00:00:00Z'
token_overrides: []
"""


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(transactional_db, live_server: LiveServer, key, monkeypatch, tmp_path, capsys) -> Cli:  # noqa: F811
    """``cli("apply", file)``: one command in this process, in an empty folder, with the key that may do everything."""
    monkeypatch.setenv("SLUICEGATE_URL", live_server.url)
    monkeypatch.setenv("SLUICEGATE_KEY", key.secret)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def run(*words: object, stdin: str = "") -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as exc:
            status = exc.code
        printed = capsys.readouterr()
        return Ended(status, printed.out, printed.err)

    return run


@pytest.fixture
def chat_file(tmp_path) -> Any:
    """A policy file."""
    path = tmp_path / "chat.yaml"
    path.write_text(FILE)
    return path


LIMITED = b'{"status": 429, "code": "rate_limited", "detail": "Too many requests."}'


@dataclass
class Lossy:
    """
    A server in front of another one. It counts changes, from 0.

    ``responses`` are those whose response is lost after they were made. ``away_from`` is the first that is not made, as
    is none after it. ``limited`` are those that are refused because there were too many before. ``held`` is one that
    gets no response until ``released`` is set.
    """

    url: str = ""
    responses: set[int] = field(default_factory=set)
    limited: set[int] = field(default_factory=set)
    away_from: int | None = None
    held: int | None = None
    is_held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    seen: int = -1


@pytest.fixture
def lossy(live_server: LiveServer, monkeypatch) -> Iterator[Lossy]:
    """A lossy server in front of the control plane. No command waits between two attempts."""
    monkeypatch.setattr(rest, "PAUSES", (0.0,) * len(rest.PAUSES))
    found = Lossy()
    with _served(found, urlsplit(live_server.url).netloc) as found.url:
        yield found


@contextmanager
def _served(lossy: Lossy, upstream: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            lossy.seen += self.command != "GET"
            if self.command != "GET" and lossy.away_from is not None and lossy.seen >= lossy.away_from:
                self.close_connection = True
                return
            if self.command != "GET" and lossy.seen == lossy.held:
                lossy.is_held.set()
                lossy.released.wait(60)
                self.close_connection = True
                return
            if self.command != "GET" and lossy.seen in lossy.limited:
                self.send_response(429)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(LIMITED)))
                self.end_headers()
                self.wfile.write(LIMITED)
                return
            with closing(HTTPConnection(upstream, timeout=60)) as connection:
                connection.request(self.command, self.path, body or None, dict(self.headers))
                response = connection.getresponse()
                content = response.read()
            if self.command != "GET" and lossy.seen in lossy.responses:
                self.close_connection = True
                return
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            if response.status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = forward

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
