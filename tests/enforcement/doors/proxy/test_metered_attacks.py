"""
Ways around a budget of money through the real proxy, byte by byte.

The provider behind it is the most generous one there could be: whatever reaches it, it answers, and charges for. So
each request that reaches it has to be charged, and all others have to be denied.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from enforcement import Limiter
from enforcement.embedded import free_port
from enforcement.model.tokens import mint
from enforcement.proof.metering import recorder
from enforcement.proof.metering.documents import PRICES
from enforcement.testing import Published
from tests.enforcement.doors.proxy.conftest import Peer, Scripted, _is_ready, url_of
from tests.enforcement.world import eventually
from tests.scale import scale

USAGE = {"prompt_tokens": 10, "completion_tokens": 10, "input_tokens": 10, "output_tokens": 10}
SAID = {"model": "small", "usage": USAGE, "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 10}}
LIMITS = [{"name": "money", "algorithm": "fixed_window", "quota": 10**9, "calendar": "lifetime", "unit": "micros"}]
BUDGET, OF_MODEL = "budget", "of_model"


def answering(seen: list[str]) -> Any:
    """Return a script that answers each request, whatever it is, and notes the id that it bears."""

    def script(peer: Peer) -> None:
        while head := peer.head():
            fields = {name.strip().lower(): value.strip() for name, _, value in
                      (line.partition(b":") for line in head.split(b"\r\n"))}  # fmt: skip
            seen.append(fields.get(b"x-request-id", b"none").decode())
            if b"chunked" in fields.get(b"transfer-encoding", b""):
                while size := int(peer.file.readline().strip() or b"0", 16):
                    peer.file.read(size + 2)
                peer.file.readline()
            else:
                peer.body(int(fields.get(b"content-length", b"0")))
            body = json.dumps(SAID).encode()
            kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            peer.send(b"HTTP/1.1 200 OK\r\n" + kind + (b"" if head.startswith(b"HEAD") else body))

    return script


@contextmanager
def metering(published: Published, upstream: Scripted, folder: Path, kind: str, base: str = "") -> Iterator[int]:
    """Run the proxy with prices, and yield its port."""
    port = free_port()
    variables = {
        "SLUICEGATE_REDIS_URL": url_of(published),
        "SLUICEGATE_TIMEOUT_MS": "2000",
        "SLUICEGATE_LOOKUP_MS": "5000",
        "SLUICEGATE_UPSTREAM_URL": upstream.url + base,
        recorder.LEDGER: str(folder / "ledger.jsonl"),
        recorder.LIFE: "60",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "enforcement.proof.metering.recorder", "--port", str(port), "--server", kind],
        env={name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_")} | variables,
        stderr=subprocess.DEVNULL if not os.environ.get("SHOW") else None,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert eventually(lambda: process.poll() is not None or _is_ready(port), 20)
        assert process.poll() is None
        yield port
    finally:
        process.terminate()
        process.wait(20)


class Attacked:
    """A metering proxy, what has reached the provider behind it, and tokens with budgets of money."""

    def __init__(self, port: int, seen: list[str], published: Published) -> None:
        self.port, self.seen = port, seen
        self._published = published
        self._spare: dict[str, list[str]] = {BUDGET: [], OF_MODEL: []}
        self._numbers = itertools.count(1)

    def token(self, policy: str) -> str:
        """Return a token that nobody has used."""
        spare = self._spare[policy]
        if not spare:
            spare += [mint("live") for _ in range(200)]
            rows = {secret: {"schema": 1, "id": f"tok_{next(self._numbers)}", "project": "proj_1", "name": "t",
                    "policy": f"pol_{policy}", "revoked": False, "expires_at_us": None, "overrides": []}
                    for secret in spare}  # fmt: skip
            self._published.publish(tokens=rows)
        return spare.pop()

    def send(self, raw: bytes) -> bytes:
        """Send bytes on a connection of their own, and return what comes until nothing more does."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            got = b""
            try:
                connection.sendall(raw)
                connection.settimeout(5)
                while not _is_whole(got, raw) and (part := connection.recv(65_536)):
                    got += part
            except (ConnectionError, TimeoutError):
                pass
            return got


def _is_whole(got: bytes, raw: bytes) -> bool:
    """Return whether an answer has come with its announced body."""
    head, found, body = got.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return _is_whole(body, raw)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(found) and (raw.startswith(b"HEAD") or len(body) >= int(line[15:]))
    return bool(found) and (body.endswith(b"0\r\n\r\n") or head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")))


@pytest.fixture(scope="module")
def attacked(published: Published, tmp_path_factory: Any, kind: str) -> Iterator[Attacked]:
    seen: list[str] = []
    upstream = Scripted(answering(seen))
    of_model = [{**LIMITS[0], "partition_by": ["model"]}]
    policies = {
        f"policy:pol_{name}": {
            "schema": 1,
            "id": f"pol_{name}",
            "slug": name,
            "name": name,
            "version": 1,
            "limits": rows,
        }
        for name, rows in ((BUDGET, LIMITS), (OF_MODEL, of_model))
    }
    published.publish(policies, prices=(PRICES,))
    with metering(published, upstream, tmp_path_factory.mktemp("metered"), kind) as port:
        yield Attacked(port, seen, published)
    upstream.close()


PATHS = [
    "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/messages",
    "/v1beta/models/small:generateContent", "/v1beta/models/small:streamGenerateContent?alt=sse",
    "/openai/deployments/small/chat/completions?api-version=1",
]  # fmt: skip
TWISTS = [
    lambda path: path + "/", lambda path: path.replace("/", "//"),
    lambda path: path.replace("v1", "%761"), lambda path: path.replace("completions", "complet%69ons"),
    lambda path: path[:1] + path[1:].replace("/", "%2F"), lambda path: path.upper(), lambda path: path + ";a=b",
    lambda path: path + "%00", lambda path: path + "#/x", lambda path: path.replace("/", "\\"),
    lambda path: "/x/.." + path, lambda path: path + "/../embeddings", lambda path: path + "/%2e%2e/embeddings",
    lambda path: path.replace("%", "%25").replace("/", "%252F"), lambda path: "http://x" + path,
    lambda path: path + "/.", lambda path: path + "?x",
    lambda path: "/v1/images/generations", lambda path: "/v1/audio/transcriptions", lambda path: "/v1/batches",
    lambda path: "/v1/realtime", lambda path: "/healthz/.." + path, lambda path: "/readyz" + path,
    lambda path: "/v1/files", lambda path: "/v1/threads/runs", lambda path: path + "/x/cancel",
    lambda path: "/v1/audio/speech", lambda path: "/v1/images/edits", lambda path: "/engines/big-1" + path,
    lambda path: "/v4/async" + path, lambda path: path + "?$httpHeaders=X-Goog-FieldMask:x",
    lambda path: path.replace("small/", "small/big-1/"), lambda path: "/v1/responses/compact",
    lambda path: "http://x:80" + path + "?a=/v1/files", lambda path: path.replace("generate", "batchGenerate"),
]  # fmt: skip
METHODS = ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "post", "POST2"]
HEADS = [
    "Expect: 100-continue\r\n",
    "X-HTTP-Method-Override: GET\r\n",
    "Upgrade: h2c\r\nConnection: Upgrade\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "Content-Encoding: gzip\r\n",
    "Content-Encoding: identity\r\n",
    "Content-Encoding: br, gzip\r\n",
    "Transfer-Encoding: identity\r\n",
    "Accept-Encoding: gzip\r\n",
    "Connection: close, content-length\r\n",
    "Connection: content-type, authorization\r\n",
    "Range: bytes=0-9\r\nIf-Range: x\r\n",
    "If-None-Match: *\r\nIf-Modified-Since: Thu, 26 Nov 2026 00:00:00 GMT\r\n",
    "X-HTTP-Method-Override: POST\r\nX-HTTP-Method: POST\r\n",
    "Prefer: respond-async\r\n",
    "TE: trailers\r\nTrailer: Content-Encoding\r\n",
    "Content-Type: application/json; charset=utf-16\r\n",
    "Content_Encoding: gzip\r\nContent_Length: 0\r\n",
    "Expect: 100-continue\r\nExpect: 200-ok\r\n",
]
TYPES = ["application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data; boundary=x",
         "application/x-www-form-urlencoded", ""]  # fmt: skip
VERSIONS = ["1.1", "1.0", "1.0", "2.0"]
CHUNKED = "Transfer-Encoding: chunked\r\n"
FRAMINGS = [
    lambda body: (CHUNKED, b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"),
    lambda body: (CHUNKED, b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-Trailer: 1\r\n\r\n"),
    lambda body: (f"Content-Length: {max(0, len(body) - 5)}\r\n", body),
    lambda body: (f"Content-Length: {len(body)}\r\n{CHUNKED}", body),
    lambda body: (f"Content-Length: {len(body)}\r\nContent-Length: {len(body)}\r\n", body),
    lambda body: ("", body),
]


def _plain(dice: random.Random) -> bytes:
    body: dict[str, Any] = {"model": "small", "max_tokens": 20, "messages": [{"role": "user", "content": "x"}]}
    body |= {"input": "x", "prompt": "x", "contents": [{"parts": [{"text": "x"}]}], "stream": dice.random() < 0.3}
    body |= {"background": True} if dice.random() < 0.2 else {}
    body |= dice.choice(
        ({}, {}, {}, {"deferred": True}, {"models": ["big-1"]}, {"service_tier": "priority"}, {"store": True})
    )
    return json.dumps(body).encode()


BODIES = [
    lambda dice: b'{"model":"free",' + _plain(dice)[1:],
    lambda dice: _plain(dice)[:-1] + b',"Model":"big-1"}',
    lambda dice: _plain(dice) + b" {}",
    lambda dice: b"\xef\xbb\xbf" + _plain(dice),
    lambda dice: _plain(dice).decode().encode("utf-16"),
    lambda dice: gzip.compress(_plain(dice)),
    lambda dice: _plain(dice).replace(b"20", b"NaN"),
    lambda dice: _plain(dice).replace(b'"small"', b'["small"]'),
    lambda dice: b"[" + _plain(dice) + b"]",
    lambda dice: b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\nsmall\r\n--x--\r\n",
    lambda dice: b"model=small&prompt=x",
    lambda dice: b"",
    lambda dice: b'{"jsonrpc":"2.0",' + _plain(dice)[1:],
    lambda dice: b"[" * 200 + b"]" * 200,
]  # fmt: skip


PARTS = ("path", "method", "head", "body", "type", "version", "framing", "twice")


def attack(dice: random.Random, token: str, ident: str) -> bytes:
    """Return the bytes of a request that tries to pass uncharged, by one to three of its parts."""
    strange = dice.sample(PARTS, dice.choice((0, 1, 1, 1, 2, 3)))
    path, body = dice.choice(PATHS), _plain(dice)
    path = dice.choice(TWISTS)(path) if "path" in strange else path
    body = dice.choice(BODIES)(dice) if "body" in strange else body
    more = dice.choice(HEADS) if "head" in strange else ""
    kind = dice.choice(TYPES) if "type" in strange else "application/json"
    method = dice.choice(METHODS) if "method" in strange else "POST"
    version = dice.choice(VERSIONS) if "version" in strange else "1.1"
    shown = dice.choice((f"Authorization: Bearer {token}", f"X-API-Key: {token}"))
    framing, sent = f"Content-Length: {len(body)}\r\n", body
    if "framing" in strange:
        framing, sent = dice.choice(FRAMINGS)(body)
    head = f"{method} {path} HTTP/{version}\r\nHost: x\r\n{shown}\r\n{more}"
    head += f"X-Request-Id: {ident}\r\n" + (f"Content-Type: {kind}\r\n" if kind else "") + framing + "\r\n"
    raw = head.encode() + sent
    return raw + raw if "twice" in strange else raw


@pytest.mark.proof
@pytest.mark.parametrize("policy", [BUDGET, OF_MODEL])
def test_nothing_that_reaches_the_provider_passes_a_budget_uncharged(server, attacked, policy):
    """The seed stands in the message of a failure."""
    seed = random.SystemRandom().randrange(10**9)
    dice = random.Random(seed)
    sent = {}
    for number in range(scale(400, 5_000)):
        token, ident = attacked.token(policy), f"{policy}-{seed}-{number}"
        sent[ident] = token, attack(dice, token, ident)
        attacked.send(sent[ident][1])
    passed = [sent[ident] for ident in attacked.seen if ident in sent]
    assert len(passed) > 20
    with Limiter(server.url, timeout=2.0, lookup=5.0) as limiter:
        for token, raw in passed:
            assert _spent(limiter, token) > 0, (seed, raw[:600])


def _spent(limiter: Limiter, token: str) -> int:
    decision = limiter.check(token, {"requests": 0, "micros": 0}, {"model": "small"})
    return sum(state.quota - state.remaining for state in decision.limits)
