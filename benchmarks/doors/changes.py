"""How soon three kinds of proxy obey what is published, and how soon the slot of a client that left is free."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from benchmarks import figures
from benchmarks.doors.proxies import ENVOY, NGINX, envoy, found, nginx
from benchmarks.doors.servers import application, ours
from benchmarks.figures import Row
from benchmarks.measure import Effort
from benchmarks.web import authorization
from benchmarks.world import FAR
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import Limit
from enforcement.testing import Published

AIM_MS, SLOT_MS = 100, 50
PATIENCE_SECONDS = 10.0
_REACHED = f"{{}} is obeyed by our proxy, nginx and Envoy: p99 / {AIM_MS} ms"
_KINDS = ("A changed policy", "A revoked token")
_FREED = f"Slots of clients that leave our proxy, by the store's clock: p95 / {SLOT_MS} ms"
SLOTS = Limit(name="slots", algorithm="concurrency", quota=1_000, window_seconds=60)


class Client:
    """A connection on which one request at a time is sent."""

    def __init__(self, port: int, token: str, path: str = "/") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization(token)}\r\n".encode()

    def send(self) -> None:
        """Send the request."""
        self.socket.sendall(self._request)

    def is_allowed(self) -> bool:
        """Send the request, read the whole answer, and return whether its status is 200."""
        self.send()
        data = self._more(b"")
        while b"\r\n\r\n" not in data:
            data = self._more(data)
        head, _, body = data.partition(b"\r\n\r\n")
        (length,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body = self._more(body)
        return head[9:12] == b"200"

    def _more(self, data: bytes) -> bytes:
        piece = self.socket.recv(65_536)
        if not piece:
            raise ConnectionError(f"the connection ended after {data!r}")
        return data + piece

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def compare(effort: Effort) -> list[Row]:
    """Publish changes and end connections, on a store of their own."""
    with ValkeyServer(persistent=False) as server, closing(Published(server.url)) as published:
        published.project()
        return [*_changes(server.url, published, effort), _slots(server.url, published, effort)]


def _changes(url: str, published: Published, effort: Effort) -> list[Row]:
    paths = {name: found(name) for name in (NGINX, ENVOY)}
    if not all(paths.values()):
        return [figures.absent(_REACHED.format(kind), figures.CHANGE) for kind in _KINDS]
    with ExitStack() as stack:
        upstream = stack.enter_context(application("bare"))
        service = stack.enter_context(ours("serve", url))
        where = {"service": service.port, "application": upstream.port}
        proxies = [
            stack.enter_context(ours("proxy", url, SLUICEGATE_UPSTREAM_URL=f"http://127.0.0.1:{upstream.port}")),
            stack.enter_context(nginx(str(paths[NGINX]), **where)),
            stack.enter_context(envoy(str(paths[ENVOY]), "ext-authz-http", **where)),
        ]
        ports = [proxy.port for proxy in proxies]
        spans = [list(each(ports, published, effort.changes)) for each in (_policies, _tokens)]
    return [
        _row(_REACHED.format(kind), [span for each in it for span in each], figures.CHANGE, 99, AIM_MS)
        for kind, it in zip(_KINDS, spans, strict=True)
    ]


def _policies(ports: Sequence[int], published: Published, changes: int) -> Iterator[list[float]]:
    """Yield the milliseconds until each proxy obeys a policy that closes and opens in turns."""
    published.policy("changing", _limit(FAR))
    with _clients(ports, published.token(policy="changing")) as clients:
        for number in range(changes):
            limit = _limit(FAR if number % 2 else 0)
            yield _spans(clients, partial(published.policy, "changing", limit), bool(number % 2))


def _tokens(ports: Sequence[int], published: Published, changes: int) -> Iterator[list[float]]:
    """Yield the milliseconds until each proxy refuses a token that was revoked."""
    published.policy("steady", _limit(FAR))
    for _ in range(changes):
        token = published.token(policy="steady")
        with _clients(ports, token) as clients:
            yield _spans(clients, partial(published.revoke, token), False)


def _limit(quota: int) -> Limit:
    return Limit(name="minute", algorithm="fixed_window", quota=quota, window_seconds=60)


@contextmanager
def _clients(ports: Sequence[int], token: str) -> Iterator[list[Client]]:
    """Give a client of each proxy, whose token is allowed there."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(Client(port, token))) for port in ports]
        for client in clients:
            _until(client.is_allowed)
        yield clients


def _spans(clients: Sequence[Client], publish: Callable[[], None], expected: bool) -> list[float]:
    """Publish, and return the milliseconds from then until each client is answered as expected."""
    began, spans, waiting = time.perf_counter(), [], list(clients)
    publish()
    while waiting:
        if time.perf_counter() - began > PATIENCE_SECONDS:
            raise AssertionError("A proxy did not obey a change.")
        for client in tuple(waiting):
            if client.is_allowed() == expected:
                spans.append((time.perf_counter() - began) * 1e3)
                waiting.remove(client)
    return spans


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while not holds():
        if time.perf_counter() > deadline:
            raise AssertionError(f"It did not come true within {PATIENCE_SECONDS:.0f} s.")


def _slots(url: str, published: Published, effort: Effort) -> Row:
    """Measure clients that leave before a response and within one, one after the other."""
    published.policy("slots", SLOTS)
    token = published.token(policy="slots")
    spans = []
    with ExitStack() as stack:
        upstream = stack.enter_context(application("silent"))
        proxy = stack.enter_context(ours("proxy", url, SLUICEGATE_UPSTREAM_URL=f"http://127.0.0.1:{upstream.port}"))
        for number in range(effort.clients):
            client = Client(proxy.port, token, "/within" if number % 2 else "/before")
            client.send()
            _until(lambda: _taken(published) == 1)
            if number % 2:
                client.socket.recv(65_536)
            left = _now_ms(published)
            client.close()
            _until(lambda: _taken(published) == 0)
            spans.append(_now_ms(published) - left)
    return _row(_FREED, spans, figures.SLOTS, 95, SLOT_MS)


def _taken(published: Published) -> int:
    """Return how many slots are taken. The store has no counters but theirs and those of the changes."""
    return sum(published.client.zcard(key) for key in published.client.scan_iter("sg:{proj_*", _type="zset"))


def _now_ms(published: Published) -> float:
    seconds, microseconds = published.client.time()
    return float(seconds) * 1e3 + float(microseconds) / 1e3


def _row(figure: str, spans: Sequence[float], bar: figures.Bar, percent: int, bound_ms: int) -> Row:
    ordered = sorted(spans)
    high = ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
    ours_ = f"p{percent} {high:.1f} ms, p50 {ordered[len(ordered) // 2]:.1f} ms"
    return Row(figure, ours_, f"{bound_ms} ms", high / bound_ms, bar)
