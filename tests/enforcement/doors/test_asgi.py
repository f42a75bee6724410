"""The ASGI door before real applications in a real server, deciding with a real store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import http_sf
import httpx2
import pytest
import redis

from enforcement.aio import Limiter
from enforcement.doors.asgi import LimitMiddleware
from enforcement.embedded import ValkeyServer
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.tokens import digest, mint
from enforcement.store_calls.publication import Publication, publish_call
from tests.enforcement.doors.conftest import Issue, Serve, bearer, serving
from tests.enforcement.world import eventually

PER_HOUR = Limit(name="per-hour", algorithm="fixed_window", quota=2, window_seconds=3600)
AN_HOUR_AGO_US = (time.time_ns() // 1_000) - 3_600_000_000
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request, with a RateLimit field of its own where ?own asks for it; it knows no lifespan."""
    assert scope["type"] == "http"
    own = [(b"ratelimit", b'"upstream";r=5')] if scope["query_string"] == b"own" else []
    headers = [(b"content-length", b"5"), *own]
    await send({"type": "http.response.start", "status": int(scope["path"][1:4] or 200), "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def revoke(store: redis.Redis, token: str) -> None:
    """Publish that a token was revoked."""
    keys = Keys()
    document = json.loads(store.get(keys.token(digest(token))))
    revision = int(store.hget(keys.documents, "revision")) + 1
    publication = Publication(revision, 0, "test", {}, {digest(token): document | {"revoked": True}})
    function, names, arguments = publish_call(publication, keys)
    store.fcall(function, len(names), *names, *arguments)


@pytest.fixture
def guarded(store: ValkeyServer, serve: Serve) -> Callable[..., Any]:
    """Serve an application behind the door; return a client of it."""

    def start(app: Any = hello, **options: Any) -> Any:
        return serve(LimitMiddleware(app, Limiter(store.url, timeout=1.0), **options))

    return start


def test_request_within_the_limit_passes_and_learns_what_is_left(guarded, issue: Issue) -> None:
    """The two fields of the IETF draft are structured fields that another reader understands."""
    headers = bearer(issue(PER_HOUR))
    answer = guarded().get("/200", headers=headers)

    policy = http_sf.parse(answer.headers["RateLimit-Policy"].encode(), tltype="list")
    limit = http_sf.parse(answer.headers["RateLimit"].encode(), tltype="list")
    assert (answer.status_code, answer.text) == (200, "hello")
    assert policy == [("per-hour", {"q": 2, "w": 3600})]
    assert [(name, parameters["r"]) for name, parameters in limit] == [("per-hour", 1)]
    assert 1 <= limit[0][1]["t"] <= 3600
    assert "Retry-After" not in answer.headers


def test_request_beyond_the_limit_is_told_why_and_for_how_long(guarded, issue: Issue) -> None:
    """A 429 is a problem document with the violated policies and a whole number of seconds to wait."""
    headers, client = bearer(issue(PER_HOUR)), guarded()

    statuses = [client.get("/200", headers=headers).status_code for _ in range(2)]
    answer = client.get("/200", headers=headers)

    assert [*statuses, answer.status_code] == [200, 200, 429]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    assert answer.headers["RateLimit"].startswith('"per-hour";r=0;t=')
    body = answer.json()
    assert (body["status"], body["code"], body["violated-policies"]) == (429, "limited", ["per-hour"])


CALL = {"jsonrpc": "2.0", "id": "a-7", "method": "tools/call", "params": {"name": "search"}}


@pytest.mark.parametrize("id", ["a-7", 7, 0])
def test_denial_of_a_call_of_mcp_is_an_error_of_json_rpc(guarded, issue: Issue, id: Any) -> None:
    """A client of MCP takes any other body for a broken server. Status and header fields stay."""
    headers, client = bearer(issue(PER_HOUR)), guarded(json_rpc=["/mcp"])
    answers = [client.post("/mcp", json={**CALL, "id": id}, headers=headers) for _ in range(3)]

    assert [answer.status_code for answer in answers][-1] == 429
    assert answers[-1].headers["Content-Type"] == "application/json"
    assert int(answers[-1].headers["Retry-After"]) >= 1
    body = answers[-1].json()
    assert (body["jsonrpc"], body["id"], type(body["id"]), body["error"]["code"]) == ("2.0", id, type(id), -32_000)
    assert "per-hour" in body["error"]["message"]
    assert body["error"]["data"]["decision"] == answers[-1].headers["Sluicegate-Decision"]
    assert body["error"]["data"]["violated-policies"] == ["per-hour"]
    unknown = client.post("/mcp", json={**CALL, "id": id}).json()
    assert (unknown["id"], unknown["error"]["data"]["status"]) == (id, 401)


@pytest.mark.parametrize(
    "content",
    [
        {**CALL, "id": None}, {**CALL, "id": True}, {**CALL, "id": 1.5}, {**CALL, "jsonrpc": "1.0"},
        {**CALL, "method": 1}, {"method": "notifications/x", "jsonrpc": "2.0"}, [CALL], "x" * 70_000,
        {**CALL, "params": "x" * 70_000},
    ],
)  # fmt: skip
def test_denial_of_anything_else_is_a_problem(guarded, content: Any) -> None:
    """At the path of an MCP server, too: a notification, a batch, what is no JSON-RPC or too long."""
    answer = guarded(json_rpc=["/mcp"]).post("/mcp", json=content)

    assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")


def test_denial_of_a_call_elsewhere_is_a_problem(guarded) -> None:
    """Nobody has said that this path is that of an MCP server."""
    answer = guarded(json_rpc=["/mcp"]).post("/other", json=CALL)

    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("paths", ["/mcp", ["mcp"], [1]])
def test_paths_of_mcp_servers_begin_with_a_slash(paths: Any) -> None:
    with pytest.raises(ValueError, match=r"^json_rpc: must be paths that begin with /"):
        LimitMiddleware(hello, json_rpc=paths)


def test_denial_of_a_head_request_has_no_body(guarded, issue: Issue) -> None:
    """An answer to HEAD ends with its fields."""
    headers = bearer(issue(Limit(quota=0, window_seconds=60)))
    answer = guarded().head("/200", headers=headers)

    assert (answer.status_code, answer.content) == (429, b"")


@pytest.mark.parametrize("shared", ["Bearer sk-for-the-upstream", "Basic dXNlcjpwYXNz"])
def test_a_credential_for_the_upstream_never_stands_for_a_token(guarded, issue: Issue, shared: str) -> None:
    """Many clients may share it. Alone it admits nobody, and beside another token it charges that one."""
    owner, other = ({"Authorization": shared, "X-API-Key": issue(PER_HOUR)} for _ in range(2))
    client = guarded()
    first = [client.get("/200", headers=owner).headers["RateLimit"].split(";")[1] for _ in range(2)]

    assert client.get("/200", headers={"Authorization": shared}).status_code == 401
    assert client.get("/200", headers=other).headers["RateLimit"].split(";")[1] == "r=1"
    assert first == ["r=1", "r=0"]


def test_token_is_found_in_the_api_key_header(guarded, issue: Issue) -> None:
    """Clients that know no bearer tokens send X-API-Key."""
    token = issue(PER_HOUR)

    assert guarded().get("/200", headers={"X-API-Key": token}).status_code == 200


def test_request_without_a_token_is_challenged(guarded) -> None:
    """401 names the scheme to use (RFC 9110, 11.6.1), and reveals no limit."""
    answer = guarded().get("/200")

    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sluicegate"'
    assert "RateLimit" not in answer.headers


# Named, since every run mints another token and pytest's workers have to agree on the names of the tests.
@pytest.mark.parametrize(
    "token",
    ["garbage", "sg_live_\xe4\xf6\xfc", "\xff" * 100, "x" * 20_000, mint("live")],
    ids=["garbage", "accents", "bytes", "long", "unknown"],
)
def test_token_that_nobody_issued_is_refused(guarded, issue: Issue, token: str) -> None:
    """Whatever stands in the header, the answer is 401 and never an error of the server."""
    issue(PER_HOUR)

    answer = guarded().get("/200", headers={b"Authorization": b"Bearer " + token.encode("latin-1")})

    assert (answer.status_code, answer.json()["code"]) == (401, "unknown_token")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sluicegate", error="invalid_token"'


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ({"revoked": True}, 401, "revoked"),
        ({"expires_at_us": AN_HOUR_AGO_US}, 401, "expired"),
        ({"active": False}, 403, "inactive_project"),
    ],
)
def test_token_that_is_not_valid_any_more_is_refused(guarded, issue: Issue, state: Any, status: int, code: str) -> None:
    """A refused token is no rate limit: its answer says what it is, and shows no limit."""
    headers = bearer(issue(PER_HOUR, **state))
    answer = guarded().get("/200", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "RateLimit" not in answer.headers


def test_two_credentials_are_none_also_where_the_first_is_known(guarded, issue: Issue) -> None:
    """A field that stands twice is a list, and a list is no token."""
    token = issue(PER_HOUR)
    client = guarded()
    fields = [("Authorization", f"Bearer {token}")]

    statuses = [client.get("/200", headers=fields * times).status_code for times in (1, 1, 2)]

    assert statuses == [200, 200, 401]


def test_token_is_forgotten_with_the_documents_that_named_it(guarded, issue: Issue, client_of_store: Any) -> None:
    """What is kept at hand for the hot path goes when something is published."""
    token = issue(Limit(name="generous", quota=1_000, window_seconds=3600))
    client = guarded()
    assert [client.get("/200", headers=bearer(token)).status_code for _ in range(3)] == [200] * 3

    revoke(client_of_store, token)

    assert eventually(lambda: client.get("/200", headers=bearer(token)).status_code == 401)


def test_exempt_path_needs_no_token(guarded) -> None:
    """Probes of a load balancer are not limited."""
    assert guarded(exempt=["/200"]).get("/200").status_code == 200


def test_fields_of_the_application_stay_and_ours_follow(guarded, issue: Issue) -> None:
    """An intermediary must not make what the application says more permissive: it appends."""
    headers = bearer(issue(PER_HOUR))
    answer = guarded().get("/200?own", headers=headers)

    assert answer.headers.get_list("RateLimit")[0] == '"upstream";r=5'
    assert answer.headers.get_list("RateLimit")[1].startswith('"per-hour";r=1;t=')


def test_token_costs_and_attributes_may_come_from_the_application(guarded, issue: Issue) -> None:
    """What the headers do not say, callables do."""
    token = issue(Limit(name="by-plan", quota=10, window_seconds=3600, partition_by=("plan",)))
    client = guarded(
        token=lambda scope: token,
        costs=lambda scope: 7,
        attributes=lambda scope: {"plan": scope["query_string"].decode()},
    )

    statuses = [client.get(path).status_code for path in ("/200?a", "/200?b", "/200?a")]

    assert statuses == [200, 200, 429]


def test_limit_by_a_header_counts_each_value(guarded, issue: Issue) -> None:
    """header.<name> is there for the limit that asks for it."""
    token = issue(Limit(quota=1, window_seconds=3600, partition_by=("header.x-team",)))
    client = guarded()

    teams = ["red", "blue", "red"]
    statuses = [client.get("/200", headers={**bearer(token), "X-Team": team}).status_code for team in teams]

    assert statuses == [200, 200, 429]


def test_header_too_long_to_be_counted_is_refused(guarded, issue: Issue) -> None:
    """A value beyond the stated length is an error of its own, and no way around the limit."""
    token = issue(Limit(quota=1, window_seconds=3600, partition_by=("header.x-team",)))

    answer = guarded().get("/200", headers={**bearer(token), "X-Team": "x" * 1025})

    assert (answer.status_code, answer.json()["code"]) == (431, "attribute_too_long")


def test_address_behind_a_trusted_proxy_is_counted(guarded, issue: Issue) -> None:
    """With trust the forwarded address is the client's."""
    token = issue(Limit(quota=1, window_seconds=3600, partition_by=("ip",)))
    client = guarded(trusted_proxies=["127.0.0.1"])

    addresses = ["198.51.100.1", "198.51.100.2", "198.51.100.1"]
    statuses = [client.get("/200", headers={**bearer(token), "X-Forwarded-For": ip}).status_code for ip in addresses]

    assert statuses == [200, 200, 429]


def test_forwarded_address_without_trust_changes_nothing(guarded, issue: Issue) -> None:
    """Whoever invents addresses stays one client."""
    token = issue(Limit(quota=1, window_seconds=3600, partition_by=("ip",)))
    client = guarded()

    addresses = ["198.51.100.1", "198.51.100.2"]
    statuses = [client.get("/200", headers={**bearer(token), "X-Forwarded-For": ip}).status_code for ip in addresses]

    assert statuses == [200, 429]


def test_charge_may_depend_on_the_response(guarded, issue: Issue) -> None:
    """What charge_on does not name is given back once the status is known."""
    token = issue(Limit(quota=1, window_seconds=3600, charge_on=("2xx",)))
    client = guarded()

    statuses = [client.get(path, headers=bearer(token)).status_code for path in ("/404", "/503", "/200", "/200")]

    assert statuses == [404, 503, 200, 429]


def test_failure_of_the_application_is_charged_like_its_500(guarded, issue: Issue) -> None:
    """An exception is no way to get the charge back: limits on guessing count what fails."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("on purpose")

    token = issue(Limit(quota=1, window_seconds=3600, charge_on=("5xx",)))
    client = guarded(failing)

    statuses = [client.get("/", headers=bearer(token)).status_code for _ in range(2)]

    assert statuses == [500, 429]


def test_degraded_decision_says_so(guarded, issue: Issue, store: ValkeyServer) -> None:
    """Without the store the limit's own rule decides, and the answer names who did."""
    headers, client = bearer(issue(PER_HOUR)), guarded()
    client.get("/200", headers=headers)

    store.kill()
    answer = client.get("/200", headers=headers)

    assert (answer.status_code, answer.headers["Sluicegate-Degraded"]) == (200, "fallback")


class Streaming:
    """An application that sends one chunk, and the last one when the test says so."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.ended = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await self._until_told_or_left(receive)
            await send({"type": "http.response.body", "body": b"last"})
        finally:
            self.ended.set()

    async def _until_told_or_left(self, receive: Any) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())
        while not leaving.done() and not self.go_on.is_set():
            await asyncio.sleep(0.005)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving


def test_chunks_pass_as_they_come(guarded, issue: Issue) -> None:
    """The door holds back nothing: the first chunk arrives while the last does not exist yet."""
    app = Streaming()
    headers, client = bearer(issue(PER_HOUR)), guarded(app)

    with client.stream("GET", "/", headers=headers) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        app.go_on.set()
        rest = b"".join(chunks)

    assert (first, rest) == (b"first", b"last")


def test_slot_is_held_until_the_body_is_finished(guarded, issue: Issue) -> None:
    """A second request waits for the end of the first one's answer, not for its beginning."""
    app = Streaming()
    headers, client = bearer(issue(ONE_SLOT)), guarded(app)

    with client.stream("GET", "/", headers=headers) as answer:
        during = client.get("/", headers=headers)
        app.go_on.set()
        answer.read()
    after = client.get("/", headers=headers)

    assert (answer.status_code, during.status_code, after.status_code) == (200, 429, 200)
    assert 'qu="concurrent-requests"' in during.headers["RateLimit-Policy"]


def test_slot_is_freed_when_the_client_leaves(guarded, issue: Issue) -> None:
    """A connection that breaks off ends the application's work, and with it the slot."""
    app = Streaming()
    headers, client = bearer(issue(ONE_SLOT)), guarded(app)

    with client.stream("GET", "/", headers=headers) as answer:
        assert next(answer.iter_raw()) == b"first"
    assert app.ended.wait(10)
    app.go_on.set()

    assert eventually(lambda: client.get("/", headers=headers).status_code == 200)


def test_slot_is_freed_when_the_application_fails(guarded, issue: Issue) -> None:
    """An exception ends the request, whatever it had begun."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/fail":
            await hello(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("on purpose")

    token, client = issue(ONE_SLOT), guarded(failing)

    with pytest.raises(httpx2.RemoteProtocolError):
        client.get("/fail", headers=bearer(token))

    assert client.get("/200", headers=bearer(token)).status_code == 200


async def test_slot_is_freed_when_the_request_is_cancelled(store: ValkeyServer, issue: Issue) -> None:
    """A server that gives up a request cancels its task; the slot must not wait for its lifetime."""
    headers = [(b"authorization", f"Bearer {issue(ONE_SLOT)}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers, "client": None}
    inside, door = asyncio.Event(), LimitMiddleware(hello, limiter := Limiter(store.url))

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        inside.set()
        await asyncio.Event().wait()

    door.app = waiting
    request = asyncio.create_task(door(dict(scope), _nothing, _ignore))
    await asyncio.wait_for(inside.wait(), 10)
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request
    sent: list[Any] = []
    door.app = hello
    await door(dict(scope), _nothing, _into(sent))
    await limiter.close()

    assert sent[0]["status"] == 200


@pytest.mark.parametrize("length", [b"5", None])
def test_client_that_waits_for_each_answer_never_meets_its_own_slot(guarded, issue: Issue, length: Any) -> None:
    """The slot is free by the time the client can know that the answer is complete."""

    async def in_pieces(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = [(b"content-length", length)] if length else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await send({"type": "http.response.body"})

    headers, client = bearer(issue(ONE_SLOT)), guarded(in_pieces)

    assert [client.get("/", headers=headers).status_code for _ in range(100)] == [200] * 100


def test_limiter_lives_as_long_as_the_server(store: ValkeyServer, client_of_store: redis.Redis, issue: Issue) -> None:
    """The door joins the fleet before the application starts, and leaves it after that has shut down."""
    issue(PER_HOUR)
    limiter, events = Limiter(store.url, instance="door"), []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            event = (await receive())["type"]
            events.append((event, limiter.state))
            await send({"type": f"{event}.complete"})

    with serving(LimitMiddleware(noting, limiter)):
        assert eventually(lambda: client_of_store.exists("sg:{fleet}:instance:door"))

    assert events == [("lifespan.startup", "ok"), ("lifespan.shutdown", "ok")]
    assert not client_of_store.exists("sg:{fleet}:instance:door")


async def test_application_that_raises_in_its_start_is_logged(caplog: Any, store: Any) -> None:
    """It may have no lifespan, and then the door serves. If it failed to start, the server would not say why."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no database")

    sent: list[Any] = []
    events = _of("lifespan.startup", "lifespan.shutdown")
    await LimitMiddleware(failing, Limiter(store.url))({"type": "lifespan"}, events, _into(sent))

    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "The application does not start, or has no lifespan: RuntimeError: no database" in caplog.messages


async def test_start_that_fails_stops_the_server() -> None:
    """A door that cannot be set up must not let a server come up that answers every request with an error."""
    sent: list[Any] = []

    class Broken(Limiter):
        async def start(self, timeout: float = 1.0) -> bool:
            raise ValueError("broken on purpose")

    with pytest.raises(ValueError, match="broken on purpose"):
        await LimitMiddleware(hello, Broken())({"type": "lifespan"}, _of("lifespan.startup"), _into(sent))

    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


def websocket(token: str, **more: Any) -> dict[str, Any]:
    headers = [(b"authorization", f"Bearer {token}".encode())]
    return {"type": "websocket", "path": "/", "query_string": b"", "headers": headers, "client": None, **more}


async def accepting(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})


async def converse(url: str, scope: dict[str, Any]) -> list[Any]:
    """Return what the door sends to the server for one websocket connection."""
    sent: list[Any] = []
    async with Limiter(url) as limiter:
        await LimitMiddleware(accepting, limiter)(scope, _of("websocket.connect"), _into(sent))
    return sent


async def test_websocket_within_the_limit_is_accepted_with_the_fields(store: ValkeyServer, issue: Issue) -> None:
    """The handshake is an answer like any other."""
    sent = await converse(store.url, websocket(issue(PER_HOUR)))

    assert sent[0]["type"] == "websocket.accept"
    assert (b"ratelimit-policy", b'"per-hour";q=2;w=3600') in sent[0]["headers"]


async def test_websocket_beyond_the_limit_is_closed_as_a_violation(store: ValkeyServer, issue: Issue) -> None:
    """Where the server can only close, it closes with 1008."""
    sent = await converse(store.url, websocket(issue(Limit(quota=0, window_seconds=60))))

    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


async def test_websocket_beyond_the_limit_gets_the_answer_where_the_server_can_send_it(
    store: ValkeyServer, issue: Issue
) -> None:
    """With the extension the refused handshake carries status, fields and problem."""
    scope = websocket(issue(Limit(quota=0, window_seconds=60)), extensions={"websocket.http.response": {}})

    sent = await converse(store.url, scope)

    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert (sent[0]["status"], b'"status": 429' in sent[1]["body"]) == (429, True)


def test_unknown_preset_is_refused_when_the_door_is_built() -> None:
    """Not at the first request."""
    with pytest.raises(ValueError, match="preset"):
        LimitMiddleware(hello, headers="ietf+nonsense")


def test_header_beyond_the_servers_own_limit_breaks_nothing(guarded, issue: Issue) -> None:
    """A megabyte of header is refused or cut off, and the next request is served."""
    headers, client = bearer(issue(PER_HOUR)), guarded()

    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as raw:
        raw.sendall(b"GET /200 HTTP/1.1\r\nHost: x\r\nX-API-Key: ")
        with contextlib.suppress(OSError):
            raw.sendall(b"x" * 1_000_000 + b"\r\n\r\n")
            raw.recv(1024)

    assert client.get("/200", headers=headers).status_code == 200


async def _nothing() -> dict[str, Any]:
    return await asyncio.Future()


async def _ignore(message: Any) -> None:
    """Take what the application sends."""


def _into(sent: list[Any]) -> Any:
    async def send(message: Any) -> None:
        sent.append(message)

    return send


def _of(*kinds: str) -> Any:
    events = iter(kinds)

    async def receive() -> dict[str, Any]:
        kind = next(events, None)
        return {"type": kind} if kind else await asyncio.Future()

    return receive
