"""The reverse proxy between a real client and a real upstream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from enforcement.doors import proxy
from enforcement.doors.proxy import pool
from enforcement.embedded import ValkeyServer, free_port
from enforcement.model.limits import Limit
from tests.enforcement.doors.conftest import Issue, Serve, bearer
from tests.enforcement.world import eventually

PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=1000, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)


class Upstream:
    """Notes what arrives, and answers with what the test sets."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = [(b"content-length", b"2")]
        self.status = 200
        self.scopes: list[Any] = []
        self.chunks: list[bytes] = []
        self.go_on = threading.Event()
        self.left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.scopes.append(scope)
        await getattr(self, scope["path"].rpartition("/")[2] or "plain", self.plain)(receive, send)

    async def plain(self, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            self.chunks += [message["body"]] if message.get("body") else []
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def streaming(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.wait(receive)
        await send({"type": "http.response.body", "body": b"last"})

    async def silent(self, receive: Any, send: Any) -> None:
        await self.wait(receive)

    async def breaking(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("on purpose")

    async def wait(self, receive: Any) -> None:
        """Wait for the test's word, or until the proxy leaves."""
        while (await receive()).get("more_body"):
            pass
        leaving = asyncio.ensure_future(receive())
        while not leaving.done() and not self.go_on.is_set():
            await asyncio.sleep(0.005)
        if leaving.done():
            self.left.set()
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    app = Upstream()
    yield app
    app.go_on.set()


@pytest.fixture
def proxied(
    upstream: Upstream, store: ValkeyServer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., httpx2.Client]:
    """Serve the proxy as its environment says; return a client of it."""

    def start(**environ: str) -> httpx2.Client:
        monkeypatch.setenv("SLUICEGATE_REDIS_URL", store.url)
        monkeypatch.setenv("SLUICEGATE_TIMEOUT_MS", "1000")  # a busy machine is no outage of the store
        monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", str(serve(upstream).base_url))
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return serve(proxy.create_app())

    return start


def arrived(upstream: Upstream) -> dict[str, str]:
    """Return the header fields of the last request, as the upstream got them."""
    return {name.decode(): value.decode("latin-1") for name, value in upstream.scopes[-1]["headers"]}


def test_request_reaches_the_upstream_as_it_was_written(proxied, upstream: Upstream, issue: Issue) -> None:
    """Method, path, query and body arrive unchanged, escapes included; the credential does not."""
    token = issue(PLENTY)
    answer = proxied().request("PATCH", "/a%2Fb/%7Ec?x=1&x=%20", content=b"body", headers=bearer(token))

    scope = upstream.scopes[-1]
    assert (answer.status_code, answer.text) == (200, "ok")
    assert (scope["method"], scope["raw_path"], scope["query_string"]) == ("PATCH", b"/a%2Fb/%7Ec", b"x=1&x=%20")
    assert upstream.chunks == [b"body"]
    assert "authorization" not in arrived(upstream)


def test_credential_of_the_upstream_passes(proxied, upstream: Upstream, issue: Issue) -> None:
    """Only the field that held the proxy's own token is taken out."""
    headers = {"X-API-Key": issue(PLENTY), "Authorization": "Bearer for-the-upstream"}

    proxied().get("/", headers=headers)

    assert arrived(upstream)["authorization"] == "Bearer for-the-upstream"
    assert "x-api-key" not in arrived(upstream)


def test_fields_of_one_connection_stay_with_it(proxied, upstream: Upstream, issue: Issue) -> None:
    """Hop-by-hop fields, and those that Connection names, go no further in either direction."""
    headers = {**bearer(issue(PLENTY)), "Connection": "close, X-Secret", "X-Secret": "1", "TE": "trailers"}
    upstream.headers = [(b"keep-alive", b"timeout=5"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]

    answer = proxied().get("/", headers=headers)

    assert not {"x-secret", "te"} & set(arrived(upstream))
    assert "Keep-Alive" not in answer.headers
    assert answer.headers.get_list("Set-Cookie") == ["a=1", "b=2"]


def test_who_forwards_is_said_by_the_proxy(proxied, upstream: Upstream, issue: Issue) -> None:
    """A stranger's forwarding fields are replaced, for the upstream believes them."""
    headers = {**bearer(issue(PLENTY)), "X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "Forwarded": "x"}
    headers |= {"X-Real-IP": "6.6.6.6", "X-Forwarded-Port": "443"}

    client = proxied()
    client.get("/", headers=headers)

    fields = arrived(upstream)
    assert (fields["x-forwarded-for"], fields["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert fields["x-forwarded-host"] == f"127.0.0.1:{client.base_url.port}"
    assert not {"forwarded", "x-real-ip", "x-forwarded-port"} & fields.keys()


def test_trusted_proxy_is_believed(proxied, upstream: Upstream, issue: Issue) -> None:
    """Behind a proxy of one's own, its word is passed on."""
    headers = {**bearer(issue(PLENTY)), "X-Forwarded-For": "198.51.100.1"}

    proxied(SLUICEGATE_TRUSTED_PROXIES="10.0.0.0/8,127.0.0.1").get("/", headers=headers)

    assert arrived(upstream)["x-forwarded-for"] == "198.51.100.1, 127.0.0.1"


def test_answer_streams_as_it_comes(proxied, upstream: Upstream, issue: Issue) -> None:
    """The first chunk arrives while the upstream has not made the last."""
    token = issue(PLENTY)
    with proxied().stream("GET", "/streaming", headers=bearer(token)) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        upstream.go_on.set()
        rest = b"".join(chunks)

    assert (first, rest) == (b"first", b"last")


def test_request_body_streams_as_it_comes(proxied, upstream: Upstream, issue: Issue) -> None:
    """The upstream has the first chunk before the client has made the last."""
    token = issue(PLENTY)

    def body() -> Iterator[bytes]:
        yield b"first"
        assert eventually(lambda: upstream.chunks == [b"first"])
        yield b"last"

    proxied().post("/", content=body(), headers=bearer(token))

    assert upstream.chunks == [b"first", b"last"]


def test_large_body_passes_whole(proxied, upstream: Upstream, issue: Issue) -> None:
    """Sixteen megabytes arrive to the byte, with the announced length."""
    token = issue(PLENTY)

    proxied().post("/", content=b"x" * 16_000_000, headers=bearer(token))

    assert sum(map(len, upstream.chunks)) == 16_000_000
    assert arrived(upstream)["content-length"] == "16000000"


def test_denied_request_does_not_reach_the_upstream(proxied, upstream: Upstream, issue: Issue) -> None:
    """That is what the proxy is for."""
    token = issue(Limit(quota=0, window_seconds=60))

    assert proxied().post("/", content=b"body", headers=bearer(token)).status_code == 429
    assert upstream.scopes == []


def test_a_second_token_does_not_reach_the_upstream(proxied, upstream: Upstream, issue: Issue) -> None:
    """Only one of two is needed, but both are secrets of this installation."""
    headers = {**bearer(issue(PLENTY)), "X-API-Key": issue(PLENTY)}

    assert proxied().get("/", headers=headers).status_code == 200
    assert not {"authorization", "x-api-key"} & set(arrived(upstream))


@pytest.mark.parametrize("target", ["/v1/models?key={token}", "/bot{token}/x", "/?a=1&key=%20{token}"])
def test_a_token_in_the_address_does_not_reach_the_upstream(
    proxied, upstream: Upstream, issue: Issue, target: str
) -> None:
    """Clients of Gemini may send their key like that, and the upstream would write it into its log."""
    token = issue(PLENTY)

    answer = proxied().get(target.format(token=token), headers={"x-goog-api-key": token})
    assert (answer.status_code, upstream.scopes) == (400, [])
    assert "must stand in a header field" in answer.text
    assert proxied().get("/?key=sg_live_x", headers={"x-goog-api-key": token}).status_code == 200


def test_upstream_that_is_away_is_a_bad_gateway(proxied, issue: Issue) -> None:
    """502 with a problem document, and the fields of the limit that was charged."""
    token = issue(PLENTY)
    client = proxied(SLUICEGATE_UPSTREAM_URL=f"http://127.0.0.1:{free_port()}")

    answer = client.get("/", headers=bearer(token))

    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "application/problem+json")
    assert "RateLimit" in answer.headers


def test_an_error_of_the_proxy_has_the_shape_that_the_preset_names(proxied, issue: Issue) -> None:
    """The SDK of a provider shows its sentence, as that of a denial."""
    token = issue(PLENTY)
    client = proxied(SLUICEGATE_UPSTREAM_URL=f"http://127.0.0.1:{free_port()}", SLUICEGATE_HEADERS="ietf+openai")

    answer = client.get("/", headers=bearer(token))

    sentence = "The upstream could not be reached or broke off."
    error = {"message": sentence, "type": "server_error", "param": None, "code": "upstream_failed"}
    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "application/json")
    assert answer.json() == {"error": error}


def test_upstream_that_is_silent_is_a_gateway_timeout(proxied, issue: Issue) -> None:
    """504 after the time that the setting gives it."""
    token = issue(PLENTY)

    answer = proxied(SLUICEGATE_UPSTREAM_TIMEOUT="0.2").get("/silent", headers=bearer(token))

    assert (answer.status_code, answer.json()["status"]) == (504, 504)


def test_answer_that_breaks_off_is_not_taken_for_whole(proxied, issue: Issue) -> None:
    """The client's connection breaks where the upstream's did."""
    token = issue(PLENTY)

    with pytest.raises(httpx2.RemoteProtocolError):
        proxied().get("/breaking", headers=bearer(token))


@pytest.mark.parametrize("path", ["/silent", "/streaming"])
def test_client_that_leaves_takes_its_request_along(proxied, upstream: Upstream, issue: Issue, path: str) -> None:
    """The upstream stops working for nobody, and the slot is free: before an answer as well as within one."""
    token, client = issue(ONE_SLOT), proxied()

    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n".encode())
        assert eventually(lambda: upstream.scopes)

    assert upstream.left.wait(10)
    assert eventually(lambda: client.get("/", headers=bearer(token)).status_code == 200)


def test_client_that_waits_for_each_answer_never_meets_its_own_slot(proxied, issue: Issue) -> None:
    """Through two hops, too, the slot is free when the answer is complete."""
    token, client = issue(ONE_SLOT), proxied()

    assert [client.get("/", headers=bearer(token)).status_code for _ in range(50)] == [200] * 50


def test_probes_answer_for_the_proxy_itself(proxied, upstream: Upstream, issue: Issue) -> None:
    """No method on their paths gets past the door to the upstream."""
    issue(PLENTY)
    client = proxied()

    assert eventually(lambda: client.get("/readyz").json() == {"ready": True, "revision": 1, "state": "ok"})
    assert [client.request(method, "/healthz").text for method in ("GET", "POST", "DELETE")] == ["ok\n"] * 3
    assert upstream.scopes == []


def test_proxy_without_documents_is_not_ready(proxied) -> None:
    """A load balancer sends it nothing until it knows the policies."""
    answer = proxied().get("/readyz")

    assert (answer.status_code, answer.json()["ready"]) == (503, False)


def status_line(client: httpx2.Client, target: str, token: str) -> bytes:
    """Send a request with this very target; return the status line."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.sendall(f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n".encode())
        return raw.recv(1000).split(b"\r\n")[0]


def test_whole_address_leads_to_the_upstream_all_the_same(proxied, upstream: Upstream, issue: Issue) -> None:
    """Nobody reaches another host through this proxy."""
    token = issue(PLENTY)

    assert b" 200 " in status_line(proxied(), "http://elsewhere.example/x", token)
    assert upstream.scopes[-1]["raw_path"] == b"/x"


def test_target_that_is_no_path_is_refused(proxied, upstream: Upstream, issue: Issue) -> None:
    """Limits by path see what the upstream will see, or the request goes nowhere."""
    token = issue(PLENTY)

    assert b" 400 " in status_line(proxied(), "*", token)
    assert upstream.scopes == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLUICEGATE_UPSTREAM_URL", ""),
        ("SLUICEGATE_UPSTREAM_URL", "127.0.0.1:80"),
        ("SLUICEGATE_UPSTREAM_URL", "ftp://127.0.0.1"),
        ("SLUICEGATE_UPSTREAM_URL", "http://127.0.0.1/?x=1"),
        ("SLUICEGATE_UPSTREAM_TIMEOUT", "soon"),
        ("SLUICEGATE_UPSTREAM_TIMEOUT", "nan"),
        ("SLUICEGATE_UPSTREAM_TIMEOUT", "0"),
        ("SLUICEGATE_HEADERS", "nonsense"),
        ("SLUICEGATE_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("SLUICEGATE_UPSTREAM_URL", "http://127.0.0.1:99999"),
        ("SLUICEGATE_ANONYMOUS_PROJECT", "Chat"),
        ("SLUICEGATE_REDIS_URL", "redis://[::1/0"),
        ("SLUICEGATE_REDIS_URL", "127.0.0.1:6379"),
        ("SLUICEGATE_PREFIX", "{sg}"),
        ("SLUICEGATE_INSTANCE", "proxy 1"),
        ("SLUICEGATE_DECISION_KEY", "short"),
        ("SLUICEGATE_FLEET_SIZE", "3 proxies"),
        ("SLUICEGATE_TIMEOUT_MS", "25ms"),
        ("SLUICEGATE_TIMEOUT_MS", "9" * 5000),
        ("SLUICEGATE_LOOKUP_MS", "-1"),
    ],
)
def test_setting_that_says_nothing_sensible_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A proxy that cannot do what it was told does not start."""
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=f"^{name}: "):
        proxy.create_app()


def test_idle_connections_end_before_the_upstream_ends_them() -> None:
    """A request must not be sent on a connection that is just being closed; servers keep them for 5 s."""
    assert proxy.IDLE_SECONDS < 5.0


def test_requests_beyond_the_limit_of_connections_wait_and_are_refused(
    proxied, upstream: Upstream, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 says that the proxy is busy, and the place is free again when a request ends."""
    monkeypatch.setenv("SLUICEGATE_UPSTREAM_PLACES", "1")
    monkeypatch.setenv("SLUICEGATE_TOKEN_SHARE", "100")
    monkeypatch.setenv("SLUICEGATE_PROJECT_SHARE", "100")
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 0.2)
    headers = bearer(issue(PLENTY))
    client = proxied()

    with client.stream("GET", "/streaming", headers=headers) as answer:
        refused = client.get("/", headers=headers)
        assert (refused.status_code, refused.json()["title"]) == (
            503,
            "The proxy is at its limit of connections to the upstream",
        )
        upstream.go_on.set()
        answer.read()

    answer = client.get("/", headers=headers)
    assert answer.status_code == 200, answer.text
