"""The WSGI door before real applications in a real server, deciding with a real store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import http_sf
import httpx2
import pytest
import redis

from enforcement import Limiter
from enforcement.doors.wsgi import LimitMiddleware
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import Limit
from enforcement.model.tokens import mint
from tests.enforcement.doors.conftest import Issue, Serve, bearer
from tests.enforcement.world import eventually

PER_HOUR = Limit(name="per-hour", algorithm="fixed_window", quota=2, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)


def hello(environ: Any, start_response: Any) -> list[bytes]:
    """Answer with the status in the path, and with a RateLimit field of its own where ?own asks for it."""
    own = [("RateLimit", '"upstream";r=5')] if environ["QUERY_STRING"] == "own" else []
    start_response(f"{environ['PATH_INFO'][1:]} Whatever", [("Content-Length", "5"), *own])
    return [b"hello"]


@pytest.fixture
def guarded(store: ValkeyServer, serve_wsgi: Serve) -> Iterator[Callable[..., Any]]:
    """Serve an application behind the door; return a client of it."""
    doors: list[LimitMiddleware] = []

    def start(app: Any = hello, **options: Any) -> Any:
        doors.append(LimitMiddleware(app, Limiter(store.url, timeout=1.0), **options))
        return serve_wsgi(doors[-1])

    yield start
    for door in doors:
        door.close()


def test_request_within_the_limit_passes_and_learns_what_is_left(guarded, issue: Issue) -> None:
    """The two fields of the IETF draft are structured fields that another reader understands."""
    answer = guarded().get("/200", headers=bearer(issue(PER_HOUR)))

    limit = http_sf.parse(answer.headers["RateLimit"].encode(), tltype="list")
    assert (answer.status_code, answer.text) == (200, "hello")
    assert http_sf.parse(answer.headers["RateLimit-Policy"].encode(), tltype="list") == [
        ("per-hour", {"q": 2, "w": 3600})
    ]
    assert [(name, parameters["r"]) for name, parameters in limit] == [("per-hour", 1)]


def test_request_beyond_the_limit_is_told_why_and_for_how_long(guarded, issue: Issue) -> None:
    """A 429 is a problem document with the violated policies and a whole number of seconds to wait."""
    client, headers = guarded(), bearer(issue(PER_HOUR))

    statuses = [client.get("/200", headers=headers).status_code for _ in range(2)]
    answer = client.get("/200", headers=headers)

    assert [*statuses, answer.status_code] == [200, 200, 429]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    assert answer.json()["violated-policies"] == ["per-hour"]


def test_denial_of_a_head_request_has_no_body(guarded, issue: Issue) -> None:
    """An answer to HEAD ends with its fields."""
    answer = guarded().head("/200", headers=bearer(issue(Limit(quota=0, window_seconds=60))))

    assert (answer.status_code, answer.content) == (429, b"")


def test_request_without_a_token_is_challenged(guarded) -> None:
    """401 names the scheme to use (RFC 9110, 11.6.1)."""
    answer = guarded().get("/200")

    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sluicegate"'


# Named, since every run mints another token and pytest's workers have to agree on the names of the tests.
@pytest.mark.parametrize(
    "token",
    ["garbage", "sg_live_\xe4\xf6\xfc", "x" * 20_000, mint("live")],
    ids=["garbage", "accents", "long", "unknown"],
)
def test_token_that_nobody_issued_is_refused(guarded, issue: Issue, token: str) -> None:
    """Whatever stands in the header, the answer is 401 and never an error of the server."""
    issue(PER_HOUR)

    answer = guarded().get("/200", headers={b"Authorization": b"Bearer " + token.encode("latin-1")})

    assert (answer.status_code, answer.json()["code"]) == (401, "unknown_token")


def test_exempt_path_needs_no_token(guarded) -> None:
    """Probes of a load balancer are not limited."""
    assert guarded(exempt=["/200"]).get("/200").status_code == 200


def test_fields_of_the_application_stay_and_ours_follow(guarded, issue: Issue) -> None:
    """An intermediary must not make what the application says more permissive: it appends."""
    answer = guarded().get("/200?own", headers=bearer(issue(PER_HOUR)))

    assert answer.headers.get_list("RateLimit")[0] == '"upstream";r=5'
    assert answer.headers.get_list("RateLimit")[1].startswith('"per-hour";r=1;t=')


def test_limits_by_path_and_header_see_the_request(guarded, issue: Issue) -> None:
    """The decoded path and header.<name> are there for the limits that ask for them."""
    token = issue(Limit(quota=1, window_seconds=3600, partition_by=("path", "header.x-team")))
    client = guarded(exempt=(), costs=lambda environ: 1)

    asked = [("/200", "red"), ("/20%30", "red"), ("/200", "blue"), ("/201", "red")]
    statuses = [client.get(path, headers={**bearer(token), "X-Team": team}).status_code for path, team in asked]

    assert statuses == [200, 429, 200, 201]


def test_charge_may_depend_on_the_response(guarded, issue: Issue) -> None:
    """What charge_on does not name is given back once the status is known."""
    token = issue(Limit(quota=1, window_seconds=3600, charge_on=("2xx",)))
    client = guarded()

    statuses = [client.get(path, headers=bearer(token)).status_code for path in ("/404", "/503", "/200", "/200")]

    assert statuses == [404, 503, 200, 429]


def test_failure_of_the_application_is_charged_like_its_500(guarded, issue: Issue) -> None:
    """An exception is no way to get the charge back: limits on guessing count what fails."""

    def failing(environ: Any, start_response: Any) -> list[bytes]:
        raise RuntimeError("on purpose")

    token = issue(Limit(quota=1, window_seconds=3600, charge_on=("5xx",)))
    client = guarded(failing)

    statuses = [client.get("/", headers=bearer(token)).status_code for _ in range(2)]

    assert statuses == [500, 429]


def test_degraded_decision_says_so(guarded, issue: Issue, store: ValkeyServer) -> None:
    """Without the store the limit's own rule decides, and the answer names who did."""
    client, headers = guarded(), bearer(issue(PER_HOUR))
    client.get("/200", headers=headers)

    store.kill()
    answer = client.get("/200", headers=headers)

    assert (answer.status_code, answer.headers["Sluicegate-Degraded"]) == (200, "fallback")


class Streaming:
    """An application that sends chunks until the test, or the server, ends it."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.closed = threading.Event()

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while not self.go_on.wait(0.01):
                yield b"more"
            yield b"last"
        finally:
            self.closed.set()


def test_slot_is_held_until_the_body_is_finished(guarded, issue: Issue) -> None:
    """Chunks pass as they come, and a second request waits for the last of them."""
    app = Streaming()
    client, headers = guarded(app), bearer(issue(ONE_SLOT))

    with client.stream("GET", "/", headers=headers) as answer:
        chunks = answer.iter_raw()
        first = next(chunks)
        during = client.get("/", headers=headers)
        app.go_on.set()
        rest = b"".join(chunks)

    assert first.startswith(b"more")
    assert rest.endswith(b"last")
    assert during.status_code == 429
    assert eventually(lambda: client.get("/", headers=headers).status_code == 200)


def test_slot_is_freed_when_the_client_leaves(guarded, issue: Issue) -> None:
    """The server closes what nobody reads any more, and that frees the slot."""
    app = Streaming()
    client, headers = guarded(app), bearer(issue(ONE_SLOT))

    with client.stream("GET", "/", headers=headers):
        pass
    assert app.closed.wait(10)
    app.go_on.set()

    assert eventually(lambda: client.get("/", headers=headers).status_code == 200)


def test_slot_is_freed_when_the_body_fails(guarded, issue: Issue) -> None:
    """A generator that breaks off ends the request."""

    def failing(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        if environ["PATH_INFO"] == "/fail":
            yield b"he"
            raise RuntimeError("on purpose")
        yield b"hello"

    token, client = issue(ONE_SLOT), guarded(failing)

    with pytest.raises(httpx2.RemoteProtocolError):
        client.get("/fail", headers=bearer(token))

    assert eventually(lambda: client.get("/", headers=bearer(token)).status_code == 200)


def complete(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def announced(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    yield b"he"
    yield b"llo"


@pytest.mark.parametrize("app", [complete, announced])
def test_client_that_waits_for_each_answer_never_meets_its_own_slot(guarded, issue: Issue, app: Any) -> None:
    """The slot is free by the time the client can know that the answer is complete."""
    client, headers = guarded(app), bearer(issue(ONE_SLOT))

    assert [client.get("/", headers=headers).status_code for _ in range(50)] == [200] * 50


def test_limiter_starts_with_the_first_request(
    serve_wsgi: Serve, client_of_store: redis.Redis, issue: Issue, store: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a limiter given, the environment says where the store is; a server may fork until then."""
    monkeypatch.setenv("SLUICEGATE_REDIS_URL", store.url)
    monkeypatch.setenv("SLUICEGATE_INSTANCE", "door")
    headers, door = bearer(issue(PER_HOUR)), LimitMiddleware(hello)
    client = serve_wsgi(door)

    assert door.limiter is None
    assert client.get("/200", headers=headers).status_code == 200
    assert eventually(lambda: client_of_store.exists("sg:{fleet}:instance:door"))
    door.close()
    assert not client_of_store.exists("sg:{fleet}:instance:door")
