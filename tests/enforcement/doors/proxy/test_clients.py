"""Bodies that real clients post, some of which ask for HTTP/2 on the way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from enforcement.model.limits import Limit
from tests.enforcement.doors.proxy.conftest import Peer, Running
from tests.requires import require
from tests.scale import scale

pytestmark = pytest.mark.proof
POSTS = scale(20, 1_000)
PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=1_000_000, window_seconds=3600)
NODE = """
const [url, token, count] = process.argv.slice(1);
(async () => {
  for (let i = 0; i < Number(count); i++) {
    const headers = {'x-api-key': token};
    const answer = await fetch(url, {method: 'POST', headers, body: 'body-' + i});
    console.log(answer.status, await answer.text());
  }
})();
"""


def echoing(peer: Peer) -> None:
    """Answer each request with its body."""
    while head := peer.head():
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = peer.body(int(fields[b"content-length"]))
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
def posting(proxy: Running, token_of) -> tuple[str, str]:
    """Return the address of a proxy before an upstream that echoes, and a token."""
    proxy.upstream.script = echoing
    return proxy.catch_up(), token_of(PLENTY)


EXPECTED = [f"200 body-{number}" for number in range(POSTS)]


def run(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()


def test_curl_posts_bodies_and_asks_for_http2(posting: tuple[str, str], tmp_path: Path) -> None:
    """It sends the body behind its request for another protocol, and goes on in HTTP/1.1."""
    curl = require(shutil.which("curl"), "curl is missing: install it with 'apt-get install curl'.")
    address, token = posting
    each = (
        'http2\nheader = "X-API-Key: {}"\nurl = "{}/{}"\ndata = "body-{}"\noutput = "{}/{}"\n'
        'write-out = "%{{http_code}}\\n"'
    )
    parts = [each.format(token, address, it, it, tmp_path, it) for it in range(POSTS)]
    (tmp_path / "curl").write_text("\nnext\n".join(parts))

    statuses = run(curl, "--silent", "--config", str(tmp_path / "curl"))

    assert [f"{it} {(tmp_path / str(at)).read_text()}" for at, it in enumerate(statuses)] == EXPECTED


def test_node_posts_bodies(posting: tuple[str, str]) -> None:
    node = require(shutil.which("node"), "Node is missing: install it with 'apt-get install nodejs'.")
    assert run(node, "-e", NODE, posting[0], posting[1], str(POSTS)) == EXPECTED


def test_python_posts_bodies(posting: tuple[str, str]) -> None:
    with httpx2.Client(base_url=posting[0], headers={"X-API-Key": posting[1]}, verify=False) as client:
        answers = [client.post("/", content=f"body-{number}") for number in range(POSTS)]
    assert [f"{answer.status_code} {answer.text}" for answer in answers] == EXPECTED


def test_a_body_behind_an_upgrade_to_http2_passes_whole(posting: tuple[str, str], proxy: Running) -> None:
    """As Java sends it. The upstream learns nothing of the Upgrade, which is of this connection alone."""
    upgrade = "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__"
    exchange = proxy.request(f"POST /\n{upgrade}\nContent-Length: 7", posting[1], b"a=1&b=2")

    assert exchange.until(b"\r\n\r\na=1&b=2").startswith(b"HTTP/1.1 200")
