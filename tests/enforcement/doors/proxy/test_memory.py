"""The memory of the proxy while large bodies pass, and how soon the slot of a client that left is free."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import pytest
import redis

from enforcement.model.limits import Limit
from tests.enforcement.doors.proxy.conftest import Peer, Running, request
from tests.enforcement.world import eventually
from tests.scale import scale

BYTES = scale(64, 1024) * 1024 * 1024
PART = b"x" * 65_536
MOST_ADDED = 16 * 1024 * 1024
CLIENTS = scale(40, 200)
PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=100_000, window_seconds=3600)
SLOTS = Limit(name="slots", algorithm="concurrency", quota=1_000, window_seconds=60)

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def kind() -> str:
    return "uvicorn"


class Memory:
    """The most memory that a process has above what it had at first, looked at while a block runs."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._ends = threading.Event()
        self.added = 0

    def now(self) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def __enter__(self) -> Memory:
        self._first = self.now()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        print(f"memory added: {self.added / 2**20:.1f} MiB")

    def _look(self) -> None:
        while not self._ends.wait(0.02):
            self.added = max(self.added, self.now() - self._first)


def counting(peer: Peer) -> None:
    """Count an upload, or send a download, as the request says."""
    while head := peer.head():
        if b"GET" in head:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BYTES)
            for _ in range(BYTES // len(PART)):
                peer.send(PART)
        else:
            left = BYTES
            while left:
                left -= len(peer.body(min(left, 1_000_000)))
                if b"/slow" in head:
                    time.sleep(0.02)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def nothing(peer: Peer) -> None:
    """Answer every request with an empty response."""
    while peer.head():
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def download(proxy: Running, token: str, pause: float = 0.0) -> int:
    """Read a large response, and return how many bytes its body had."""
    raw = proxy.connect()
    raw.sendall(request("GET /", token))
    data = raw.recv(65_536)
    total = len(data.partition(b"\r\n\r\n")[2])
    while total < BYTES:
        data = raw.recv(1_000_000)
        assert data
        total += len(data)
        if pause:
            time.sleep(pause)
    return total


def upload(proxy: Running, token: str, path: str) -> int:
    """Send a large request, and return the status of its response."""
    exchange = proxy.request(f"POST {path}\nContent-Length: {BYTES}", token)
    for _ in range(BYTES // len(PART)):
        exchange.raw.sendall(PART)
    return exchange.status


@pytest.fixture
def warm(proxy: Running, token_of) -> str:
    """Return a token, after the proxy has served a few requests."""
    token = token_of(PLENTY)
    proxy.upstream.script = nothing
    assert [proxy.request("GET /", token).status for _ in range(20)] == [200] * 20
    proxy.upstream.reset()
    proxy.upstream.script = counting
    return token


def test_a_large_response_passes_in_little_memory(proxy: Running, warm: str) -> None:
    """The bound holds whatever the size is."""
    with Memory(proxy.pid) as memory:
        assert download(proxy, warm) == BYTES

    assert memory.added <= MOST_ADDED


def test_a_slow_client_slows_the_upstream_down(proxy: Running, warm: str) -> None:
    """What it does not read stays with the upstream."""
    with Memory(proxy.pid) as memory:
        assert download(proxy, warm, pause=0.01) == BYTES

    assert memory.added <= MOST_ADDED


@pytest.mark.parametrize("path", ["/", "/slow"])
def test_a_large_request_passes_in_little_memory(proxy: Running, warm: str, path: str) -> None:
    """What the upstream does not read stays with the client."""
    with Memory(proxy.pid) as memory:
        assert upload(proxy, warm, path) == 200

    assert memory.added <= MOST_ADDED


def test_the_slot_of_a_client_that_leaves_is_soon_free(proxy: Running, token_of, published) -> None:
    """By the store's own clock, for clients that leave before a response and within one."""
    token = token_of(SLOTS)

    def script(peer: Peer) -> None:
        if b"/within" in peer.head():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst")
        peer.closed()

    proxy.upstream.script = script
    store: redis.Redis = published.client
    spans = []
    for number in range(CLIENTS):
        client = proxy.connect()
        client.sendall(request("GET /within" if number % 2 else "GET /before", token))
        assert eventually(lambda: taken(store) == 1)
        time.sleep(0.03)
        left = now(store)
        client.close()
        while taken(store):
            assert now(store) - left < 10_000
        spans.append(now(store) - left)

    print(f"slots free after {statistics.median(spans):.1f} ms, p95 {statistics.quantiles(spans, n=20)[-1]:.1f} ms")
    assert statistics.quantiles(spans, n=20)[-1] < 50


def now(store: redis.Redis) -> float:
    """Return the store's time in milliseconds."""
    seconds, microseconds = store.time()
    return seconds * 1_000 + microseconds / 1_000


def taken(store: redis.Redis) -> int:
    """Return how many slots are taken."""
    return sum(store.zcard(key) for key in store.scan_iter("*{proj_*", _type="zset"))
