"""The control plane behind its HTTP server, by sockets and by a client that keeps connections."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from django.db import connection

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Token
from controlplane.stack.embedded import GUNICORN
from enforcement.embedded import free_port
from tests.enforcement.world import eventually
from tests.factories import ManagementKeyFactory, TokenFactory
from tests.repository import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

MEBIBYTE = 1024 * 1024


@dataclass
class Web:
    port: int
    secret: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    def is_alive(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close() is None
        except (OSError, urllib.error.URLError):
            return False

    def exchange(self, head: bytes, body: bytes = b"") -> tuple[bytes, dict[str, str]]:
        """Send bytes, read until the server closes, and return the status line and the header fields."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as wire:
            wire.sendall(head)
            wire.sendall(body)
            reply = b"".join(iter(lambda: wire.recv(65536), b""))
        status, *lines = reply.partition(b"\r\n\r\n")[0].split(b"\r\n")
        return status, dict(line.decode().lower().split(": ", 1) for line in lines)

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def web_server(django_db_setup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The server as `make up` starts it, on the database of the tests, with one worker."""
    running = Web(free_port(), "", tmp_path_factory.mktemp("web") / "log")
    command = [sys.executable, "-m", *GUNICORN.split(), "--workers", "1", "--bind", f"127.0.0.1:{running.port}"]
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}",
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
    }
    with running.log.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            assert eventually(running.is_alive, 30.0), running.log.read_text()
            yield running
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def web(web_server: Web, transactional_db) -> Web:
    """The server, with a key that may do everything."""
    web_server.secret = ManagementKeyFactory(name="ann").secret
    return web_server


def head(web: Web, method: str, target: str, *lines: str) -> bytes:
    fields = [f"{name}: {value}" for name, value in web.authorization.items()]
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{web.port}", *fields, *lines, "", ""]).encode()


def test_a_connection_ends_with_a_body_that_is_too_large(web):
    """The rest of the body would be read as the next request; a client that pools connections must not reuse this."""
    body = b'"' + b"a" * 2 * MEBIBYTE + b'"'
    length = f"Content-Length: {len(body)}"

    status, fields = web.exchange(head(web, "POST", "/api/v1/projects", "Content-Type: application/json", length), body)

    assert status.split()[1] == b"413"
    assert fields["connection"] == "close"
    assert fields["content-type"] == "application/problem+json"


def test_a_pooled_client_goes_on_after_a_body_that_is_too_large(web):
    """Twenty times a refusal and a good request, through one pool: none fails at the connection."""
    with httpx2.Client(base_url=web.url, headers=web.authorization, timeout=20) as client:
        statuses = [
            status
            for _ in range(20)
            for status in (
                client.post("/api/v1/projects", json="a" * 2 * MEBIBYTE).status_code,
                client.get("/api/v1/projects").status_code,
            )
        ]

    assert statuses == [413, 200] * 20


CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PATCH", "projects/chat", b'{"name": "New"}'), ("POST", "tokens/{token}/rotate", b'{"overlap_seconds": 0}')],
)
def test_a_body_without_a_length_is_refused_and_not_ignored(web, method, path, body):
    """It counted as an empty one: the change was not made, and the old token stayed valid for a day."""
    token = TokenFactory(project__slug="chat", project__name="Chat")
    target = "/api/v1/" + path.format(token=token.pk)

    status, fields = web.exchange(head(web, method, target, *CHUNKED), b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    assert status.split()[1] == b"411"
    assert (fields["content-type"], fields["connection"]) == ("application/problem+json", "close")
    assert (Token.objects.get().project.name, Token.objects.get().is_live) == ("Chat", True)


def test_a_long_cursor_reaches_the_view(web):
    """Each of a thousand characters may be sent as three."""
    status, fields = web.exchange(head(web, "GET", "/api/v1/projects?cursor=" + "%C3%A9" * 1000, "Connection: close"))

    assert status == b"HTTP/1.1 400 Bad Request"
    assert fields["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("target", "field", "status"),
    [("/api/v1/projects?cursor=" + "a" * 8200, "X: y", b"414"), ("/api/v1/projects", "X: " + "y" * 9000, b"431")],
)
def test_the_server_refuses_by_itself_what_the_document_says(web, target, field, status):
    """Both are described in the OpenAPI document, as plain pages."""
    line, fields = web.exchange(head(web, "GET", target, field))
    with urllib.request.urlopen(f"{web.url}/api/v1/openapi.json") as document:
        described = json.load(document)["paths"]["/api/v1/projects"]["get"]["responses"][status.decode()]

    assert line.split()[1] == status
    assert list(described["content"]) == [fields["content-type"]]


def test_a_reason_is_kept_as_curl_sends_it(web):
    """Bytes of UTF-8, as a terminal gives them to curl."""
    reason = "für Jörg, 5 € 日本"
    sent = head(
        web, "PATCH", f"/api/v1/tokens/{TokenFactory().pk}", "Connection: close", f"Sluicegate-Reason: {reason}"
    )
    body = b'{"name": "b"}'
    fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    status, _ = web.exchange(sent.removesuffix(b"\r\n") + fields, body)

    assert status == b"HTTP/1.1 200 OK"
    assert (AuditEntry.objects.get().reason, Token.objects.get().name) == (reason, "b")


def test_the_log_of_the_server_names_the_request_and_no_secret(web):
    """Whoever reports the id of a reply is answered from the log."""
    secret = TokenFactory().secret

    status, fields = web.exchange(head(web, "GET", f"/api/v1/projects?token={secret}", "Connection: close"))

    assert status == b"HTTP/1.1 400 Bad Request"
    (line,) = (line for line in web.lines() if line.get("request_id") == fields["x-request-id"])
    assert (line["actor"], line["status_code"]) == ("ann", 400)
    assert secret[12:] not in web.log.read_text()


def test_a_locked_database_is_told_while_the_client_still_waits(web):
    """Another process holds SQLite's write lock and does not give it back."""
    assert httpx2.get(f"{web.url}/api/v1/projects", headers=web.authorization).status_code == 200  # notes the key's use
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with httpx2.Client(base_url=web.url, headers=web.authorization, timeout=6) as client:
            response = client.post("/api/v1/projects", json={"slug": "chat", "name": "Chat"})
        other.execute("ROLLBACK")

    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert response.headers["Retry-After"] == "1"
