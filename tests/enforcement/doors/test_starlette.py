"""The Starlette door: decorated endpoints in a real application, deciding with a real store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from enforcement import Denied, Limit, Limiter, aio
from enforcement.doors.starlette import check, exempt, get_limiter, install, limited
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import InvalidLimit
from tests.enforcement.doors.conftest import Issue, Serve, bearer
from tests.enforcement.world import eventually

PER_HOUR = Limit(name="per-hour", algorithm="fixed_window", quota=2, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
ONCE = Limit(name="once", algorithm="fixed_window", quota=1, window_seconds=3600)

Make = Callable[..., Starlette]


@pytest.fixture
def make(store: ValkeyServer) -> Make:
    """Make an application of these endpoints with the door installed."""

    def application(default: Any = None, middleware: Any = (), **endpoints: Any) -> Starlette:
        app = Starlette(
            routes=[Route(f"/{name}", endpoint) for name, endpoint in endpoints.items()], middleware=middleware
        )
        install(app, aio.Limiter(store.url, timeout=1.0), default=default)
        return app

    return application


async def ok(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def other(request: Request) -> PlainTextResponse:
    return PlainTextResponse("other")


def statuses(app: Starlette, *paths: str, **options: Any) -> list[int]:
    with TestClient(app) as client:
        return [client.get(path, **options).status_code for path in paths]


def test_limit_in_code_denies_and_tells(make: Make) -> None:
    """A denial has the body and the fields of every other door, and the endpoint is not run."""
    ran = []

    @limited(PER_HOUR, key="ip")
    async def endpoint(request: Request) -> PlainTextResponse:
        ran.append(1)
        return PlainTextResponse("a")

    with TestClient(make(a=endpoint)) as client:
        first, _, denied = [client.get("/a") for _ in range(3)]
    assert (first.status_code, first.headers["RateLimit-Policy"]) == (200, '"per-hour";q=2;w=3600')
    assert first.headers["RateLimit"].startswith('"per-hour";r=1;t=')
    assert (denied.status_code, denied.headers["Content-Type"]) == (429, "application/problem+json")
    assert 1 <= int(denied.headers["Retry-After"]) <= 3600
    assert denied.headers.get_list("RateLimit")[0].startswith('"per-hour";r=0;t=')
    assert denied.json()["violated-policies"] == ["per-hour"]
    assert len(ran) == 2


def test_endpoint_that_is_no_coroutine_runs_in_a_thread(make: Make) -> None:
    """As Starlette itself does it, so that it may wait."""

    @limited(PER_HOUR, key="ip")
    def endpoint(request: Request) -> PlainTextResponse:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return PlainTextResponse("a")

    assert statuses(make(a=endpoint), "/a", "/a", "/a") == [200, 200, 429]


def test_decorated_endpoint_stays_what_it_was() -> None:
    """Starlette names its route after the endpoint."""
    assert limited("1/s", key="ip")(ok).__name__ == "ok"


def test_endpoints_count_apart_unless_they_share_a_scope(make: Make) -> None:
    """The methods of a class too."""
    own, shared = limited(ONCE, key="ip"), limited(ONCE, key="ip", scope="shared")

    class Parts(HTTPEndpoint):
        @own
        async def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("got")

        @own
        def post(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("posted")

    app = make(a=own(ok), b=own(other), c=shared(ok), d=shared(other), e=Parts)
    assert statuses(app, "/a", "/b", "/c", "/d", "/a", "/e", "/e") == [200, 200, 200, 429, 429, 200, 429]
    with TestClient(app) as client:
        assert [client.post("/e").status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("decorated", [True, False])
def test_endpoints_that_one_function_makes_count_apart(make: Make, decorated: bool) -> None:
    """Their full names are the same."""
    rule = limited(ONCE, key="ip")

    def made(text: str) -> Any:
        async def endpoint(request: Request) -> PlainTextResponse:
            return PlainTextResponse(text)

        return rule(endpoint) if decorated else endpoint

    app = make(None if decorated else rule, a=made("a"), b=made("b"))
    assert statuses(app, "/a", "/b", "/a", "/b") == [200, 200, 429, 429]


def test_partials_count_as_their_functions(make: Make) -> None:
    """A partial has no name of its own."""
    app = make(limited(ONCE, key="ip"), a=partial(ok), b=partial(other), c=partial(ok))

    assert statuses(app, "/a", "/b", "/c") == [200, 200, 429]


def test_class_itself_is_no_endpoint_to_decorate() -> None:
    """The error names what to do."""
    with pytest.raises(TypeError, match="decorate the methods of a class"):
        limited("1/s", key="ip")(HTTPEndpoint)


def test_default_limits_every_endpoint_that_has_no_limit_of_its_own(make: Make) -> None:
    """Also of routes that are added later and of those that are mounted. What reaches no endpoint is free."""
    own = limited(PER_HOUR, key="ip", scope="own")(ok)

    @exempt
    async def free(request: Request) -> PlainTextResponse:
        return PlainTextResponse("free")

    async def third(request: Request) -> PlainTextResponse:
        return PlainTextResponse("third")

    app = make(limited(ONCE, key="ip"), a=ok, own=own, free=free)
    app.router.routes += [Route("/later", other), Mount("/sub", routes=[Route("/c", third), Route("/d", free)])]
    assert statuses(app, "/a", "/later", "/sub/c") == [200, 200, 200]
    assert statuses(app, "/a", "/later", "/sub/c") == [429, 429, 429]
    assert statuses(app, "/own", "/own", "/own") == [200, 200, 429]
    assert statuses(app, "/free", "/sub/d", "/free", "/sub/d", "/none", "/none") == [200, 200, 200, 200, 404, 404]


def test_default_is_charged_inside_the_middleware_of_the_application(make: Make) -> None:
    """A key may be what an authentication has put into the request."""

    async def authenticate(request: Request, call_next: Any) -> Any:
        request.state.user = request.query_params["user"]
        return await call_next(request)

    rule = limited(ONCE, key=lambda connection: connection.state.user)
    app = make(rule, [Middleware(BaseHTTPMiddleware, dispatch=authenticate)], a=ok)
    assert statuses(app, "/a?user=ann", "/a?user=bob", "/a?user=ann") == [200, 200, 429]


def test_default_that_is_no_rule_is_an_error() -> None:
    """A string would look as if it limited something."""
    with pytest.raises(TypeError, match=r"default: must be what limited\(\) or check\(\) returns, got '1/hour'"):
        install(Starlette(), default="1/hour")


@pytest.mark.parametrize("awaited", [False, True], ids=["called", "awaited"])
def test_key_is_a_function_of_the_connection(make: Make, awaited: bool) -> None:
    """Text, numbers and UUIDs each have their own count; None is no limit."""
    callers: dict[str, Any] = {"red": "red", "7": 7, "u": UUID(int=7), "none": None}

    def called(connection: Any) -> Any:
        return callers[connection.query_params["by"]]

    async def key(connection: Any) -> Any:
        return called(connection)

    app = make(a=limited(ONCE, key=key if awaited else called)(ok))
    found = statuses(app, *(f"/a?by={caller}" for caller in ("red", "7", "u", "red", "7", "u", "none", "none")))
    assert found == [200, 200, 200, 429, 429, 429, 200, 200]


def test_key_too_long_to_be_counted_is_refused(make: Make) -> None:
    """It is the client's doing, so the answer is a problem of the client's."""
    app = make(a=limited(ONCE, key=lambda connection: connection.query_params["by"])(ok))
    with TestClient(app) as client:
        answer = client.get("/a?by=" + "x" * 1024)

    assert (answer.status_code, answer.json()["code"]) == (400, "key_too_long")


def test_cost_is_a_number_or_a_function_of_the_connection(make: Make) -> None:
    """A dear request uses up more; one that can never pass says so."""
    app = make(a=limited(PER_HOUR, key="ip", costs=lambda connection: int(connection.query_params["n"]))(ok))
    with TestClient(app) as client:
        answers = [client.get(f"/a?n={n}") for n in (2, 1, 3)]

    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[-1].json()["code"] == "cost_exceeds_capacity"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limits": "often", "key": "ip"}, InvalidLimit),
        ({"limits": "1/hour", "key": "user"}, "key: must be 'ip', 'all' or a function of the connection, got 'user'"),
        ({"limits": "1/hour", "key": "ip", "scope": "a:b"}, "scope: must be 1 to 255 characters"),
        ({"limits": "1/hour", "key": "ip", "costs": -1}, "costs: must be an integer from 0"),
    ],
)
def test_wrong_argument_is_an_error_when_the_endpoint_is_decorated(arguments: dict[str, Any], error: Any) -> None:
    """The application does not start; the message names the argument."""
    with pytest.raises(ValueError, match=None if isinstance(error, type) else error) as raised:
        limited(**arguments)
    assert not isinstance(error, type) or raised.type is error


def test_installed_twice_is_an_error(make: Make) -> None:
    """Each request would be charged twice to the default."""
    with pytest.raises(ValueError, match="already installed"):
        install(make())


def test_limit_without_its_installation_is_an_error() -> None:
    """The request is not let through unlimited."""
    app = Starlette(routes=[Route("/a", limited(ONCE, key="ip")(ok))])

    with pytest.raises(RuntimeError, match=r"is not installed: call .* enforcement\.doors\.starlette"):
        statuses(app, "/a")


@pytest.mark.parametrize("by_default", [False, True], ids=["own", "default"])
@pytest.mark.parametrize("handled", [429, Denied])
def test_application_may_answer_denials_itself(make: Make, handled: Any, by_default: bool) -> None:
    """By status or by exception, wherever the denial came from; the header fields stay."""
    rule = limited(ONCE, key="ip")
    app = make(rule, a=ok) if by_default else make(a=rule(ok))

    async def answer(request: Request, exc: Any) -> PlainTextResponse:
        return PlainTextResponse("slow down", 429)

    app.exception_handlers.pop(Denied) if handled == 429 else None
    app.add_exception_handler(handled, answer)
    with TestClient(app) as client:
        denied = [client.get("/a") for _ in range(2)][-1]
    assert (denied.status_code, denied.text) == (429, "slow down")
    assert denied.headers["RateLimit"].startswith('"once";r=0')


def test_denial_that_an_endpoint_raises_is_answered(make: Make) -> None:
    """An endpoint that asks the limiter itself need not answer itself."""

    async def endpoint(request: Request) -> PlainTextResponse:
        await get_limiter(request).acquire(ONCE, "a", max_wait=0)
        return PlainTextResponse("a")

    assert statuses(make(a=endpoint), "/a", "/a") == [200, 429]


def test_stream_holds_its_slot_to_its_end(make: Make, serve: Serve, watcher: Limiter) -> None:
    """Over a real server: while the client reads, and not longer."""
    go_on = asyncio.Event()

    @limited(ONE_SLOT, key="all", scope="slot")
    async def endpoint(request: Request) -> StreamingResponse:
        async def words() -> AsyncIterator[str]:
            yield "hello "
            await go_on.wait()
            yield "world"

        return StreamingResponse(words())

    async def release(request: Request) -> PlainTextResponse:
        go_on.set()
        return PlainTextResponse("")

    client = serve(make(a=endpoint, release=release))
    with client.stream("GET", "/a") as answer:
        assert watcher.peek(ONE_SLOT, "slot:all:").remaining == 0
        client.get("/release")
        assert answer.read() == b"hello world"
    assert eventually(lambda: watcher.peek(ONE_SLOT, "slot:all:").remaining == 1)


@pytest.mark.parametrize("by_default", [False, True], ids=["own", "default"])
def test_denied_websocket_is_refused_before_it_is_accepted(make: Make, by_default: bool) -> None:
    """The answer to its handshake is that to a request."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    rule = limited(ONCE, key="ip")
    app = make(rule) if by_default else make()
    app.router.routes.append(WebSocketRoute("/ws", echo if by_default else rule(echo)))
    with TestClient(app) as client:
        with client.websocket_connect("/ws") as websocket:
            assert websocket.receive_text() == "hello"
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
            pass


def test_policies_of_a_token_are_checked(make: Make, issue: Issue) -> None:
    """As a rule of one endpoint; who shows no token, or a wrong one, does not pass."""
    token, app = issue(ONCE), make(a=check()(ok), open=other)

    assert statuses(app, "/a", "/a", headers=bearer(token)) == [200, 429]
    assert statuses(app, "/a", "/open") == [401, 200]
    assert statuses(app, "/a", headers=bearer("sg_live_wrong")) == [401]


def test_policies_are_the_default_of_an_application(make: Make, issue: Issue) -> None:
    """Every endpoint but those that are exempt; attributes and costs come from functions."""
    one_a_tenant = Limit(name="tenant", algorithm="fixed_window", quota=2, window_seconds=60, partition_by=("tenant",))

    async def attributes(connection: Any) -> dict[str, str]:
        return {"tenant": connection.query_params["tenant"]}

    rule = check(costs=lambda connection: int(connection.query_params["n"]), attributes=attributes)
    token, app = issue(one_a_tenant), make(rule, a=ok)
    app.router.routes.append(Route("/free", exempt(lambda request: PlainTextResponse("free"))))

    found = statuses(app, "/a?tenant=x&n=2", "/a?tenant=y&n=1", "/a?tenant=x&n=1", headers=bearer(token))
    assert found == [200, 200, 429]
    assert statuses(app, "/free") == [200]


def test_charge_on_looks_at_the_status(make: Make, issue: Issue) -> None:
    """A failure costs nothing."""
    only_success = Limit(name="ok", algorithm="fixed_window", quota=1, window_seconds=60, charge_on=("2xx",))

    @check()
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", int(request.query_params["status"]))

    token, app = issue(only_success), make(a=endpoint)
    found = statuses(app, *(f"/a?status={status}" for status in (503, 503, 200, 200)), headers=bearer(token))
    assert found == [503, 503, 200, 429]


def test_limit_in_code_may_look_at_the_status_too(make: Make) -> None:
    """A failed log-in counts, and one that succeeds does not."""
    failures = Limit(name="failures", algorithm="fixed_window", quota=1, window_seconds=60, charge_on=("401",))

    @limited(failures, key="ip")
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", int(request.query_params["status"]))

    found = statuses(make(a=endpoint), *(f"/a?status={status}" for status in (200, 200, 401, 200)))
    assert found == [200, 200, 401, 429]


def test_limits_may_be_chosen_for_each_request(make: Make) -> None:
    """By a function of the connection; None is no limit."""

    def by_plan(connection: Any) -> Any:
        return {"free": "1/hour", "paid": "9/hour", "none": None}[connection.query_params["plan"]]

    app = make(a=limited(by_plan, key="ip")(ok))

    assert statuses(app, "/a?plan=free", "/a?plan=free", "/a?plan=paid", "/a?plan=none") == [200, 429, 200, 200]


def test_limiter_is_made_from_the_environment(store: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest application names no store."""
    monkeypatch.setenv("SLUICEGATE_REDIS_URL", store.url)
    monkeypatch.setenv("SLUICEGATE_TIMEOUT_MS", "10000")  # a busy machine is slow
    app = Starlette(routes=[Route("/a", limited(ONCE, key="ip")(ok))])
    install(app)

    assert statuses(app, "/a", "/a") == [200, 429]
