"""The FastAPI door: dependencies in a real application, deciding with a real store."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import anyio
import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from enforcement import Decision, Denied, Limit, Limiter, aio
from enforcement.doors.fastapi import Admission, admit, check, get_limiter, install, limited
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import InvalidLimit
from enforcement.testing import Clock
from tests.enforcement.doors.conftest import Issue, Serve, bearer
from tests.enforcement.world import eventually

PER_HOUR = Limit(name="per-hour", algorithm="fixed_window", quota=2, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
TOKENS = Limit(name="tokens", quota=5000, window_seconds=3600, unit="tokens")


@pytest.fixture
def app(store: ValkeyServer) -> FastAPI:
    """Give an application with the door installed."""
    app = FastAPI()
    app.state.url = store.url
    install(app, aio.Limiter(store.url, timeout=1.0))
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Give a client that starts the application when the test has made its routes."""
    with TestClient(app) as client:
        yield client


@asynccontextmanager
async def asking(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client in the test's own loop."""
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://door") as client,
    ):
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, without keeping the loop from making it hold."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def statuses(client: Any, path: str, times: int, **options: Any) -> list[int]:
    return [client.get(path, **options).status_code for _ in range(times)]


def test_limit_in_code_denies_and_tells(app: FastAPI, client: TestClient) -> None:
    """A denial has the body and the fields of every other door, and the operation is not run."""
    ran = []

    @app.get("/a", dependencies=[Depends(limited(PER_HOUR, key="ip"))])
    def operation() -> str:
        ran.append(1)
        return "a"

    first = client.get("/a")
    assert (first.status_code, first.headers["RateLimit-Policy"]) == (200, '"per-hour";q=2;w=3600')
    assert first.headers["RateLimit"].startswith('"per-hour";r=1;t=')
    client.get("/a")
    denied = client.get("/a")
    assert (denied.status_code, denied.headers["Content-Type"]) == (429, "application/problem+json")
    assert 1 <= int(denied.headers["Retry-After"]) <= 3600
    assert denied.headers.get_list("RateLimit")[0].startswith('"per-hour";r=0;t=')
    assert len(denied.headers.get_list("RateLimit")) == 1
    assert denied.json()["violated-policies"] == ["per-hour"]
    assert len(ran) == 2


def test_operations_that_one_function_makes_count_apart(app: FastAPI, client: TestClient) -> None:
    """As those of routers that are generated, which all have the same full name."""
    for name in "ab":
        router = APIRouter(prefix=f"/{name}")

        @router.get("/{item}", dependencies=[Depends(limited("1/hour", key="ip"))])
        def operation(item: str) -> str:
            return item

        app.include_router(router)

    assert [client.get(path).status_code for path in ("/a/1", "/b/1", "/a/2", "/b/2")] == [200, 200, 429, 429]


def tier(paid: str | None) -> str | None:
    """Return the limit of a caller by what it pays, or None for the house itself."""
    return {"gold": "3/hour", "house": None}.get(paid or "", "1/hour")


def tier_by_header(x_tier: Annotated[str, Header()] = "") -> str | None:
    return tier(x_tier)


@pytest.mark.parametrize(
    "source",
    [lambda connection: tier(connection.headers.get("x-tier")), Depends(tier_by_header)],
    ids=["function", "dependency"],
)
def test_limits_may_depend_on_the_request(app: FastAPI, client: TestClient, source: Any) -> None:
    """They are found as a key is; None exempts the request."""

    @app.get("/a", dependencies=[Depends(limited(source, key="ip"))])
    async def operation() -> str:
        return "a"

    @app.get("/b")
    async def admitted(admission: Annotated[Admission, Depends(admit(source, key="ip"))]) -> str:
        return str(admission.decision is not None)

    for path in "/a", "/b":
        assert statuses(client, path, 2) == [200, 429]
        assert statuses(client, path, 4, headers={"X-Tier": "gold"}) == [200, 200, 200, 429]
        assert statuses(client, path, 5, headers={"X-Tier": "house"}) == [200] * 5


def test_a_limit_that_would_count_nothing_is_refused_when_it_is_declared() -> None:
    """As its costs name no unit of it."""
    for made in (limited, admit):
        with pytest.raises(ValueError, match="costs: must name a unit of the limits, which count 'tokens', got 1"):
            made(TOKENS, key="ip")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: "value",
        lambda: PlainTextResponse("own"),
        lambda: JSONResponse({}, 404),
        lambda: StreamingResponse(iter(["a", "b"])),
        lambda: Response(status_code=304),
    ],
    ids=["value", "plain", "json", "stream", "not-modified"],
)
def test_every_kind_of_response_tells_what_is_left(app: FastAPI, client: TestClient, answer: Callable[[], Any]) -> None:
    """FastAPI itself drops a dependency's header fields where the operation returns a Response."""

    @app.get("/a", dependencies=[Depends(limited(PER_HOUR, key="ip"))], response_model=None)
    async def operation() -> Any:
        return answer()

    assert client.get("/a").headers["RateLimit"].startswith('"per-hour";r=1;t=')


def test_an_error_of_the_operation_tells_too(app: FastAPI, client: TestClient) -> None:
    """And was counted: only a denial is not."""

    @app.get("/a", dependencies=[Depends(limited(PER_HOUR, key="ip"))])
    async def operation() -> None:
        raise HTTPException(418)

    assert [client.get("/a").headers["RateLimit"][:14] for _ in range(2)] == ['"per-hour";r=1', '"per-hour";r=0']


def test_operations_count_apart_unless_they_share_a_scope(app: FastAPI, client: TestClient) -> None:
    """One name in several places is one limit."""

    def make(path: str, scope: str | None) -> None:
        async def operation() -> None: ...

        operation.__qualname__ = path
        app.get(path, dependencies=[Depends(limited("1/hour", key="ip", scope=scope))])(operation)

    make("/a", None)
    make("/b", None)
    make("/c", "shared")
    make("/d", "shared")
    found = [client.get(path).status_code for path in ("/a", "/b", "/c", "/d", "/a")]
    assert found == [200, 200, 200, 429, 429]


def test_counter_has_a_name_that_can_be_computed(app: FastAPI, client: TestClient, watcher: Limiter) -> None:
    """Scope, kind and value: so that a program can look at it, or reset it."""
    app.get("/a", dependencies=[Depends(limited(PER_HOUR, key="all", scope="search"))])(lambda: None)
    client.get("/a")

    assert watcher.peek(PER_HOUR, "search:all:").remaining == 1


async def by_team(x_team: Annotated[str | None, Header()] = None) -> str | None:
    return x_team


@pytest.mark.parametrize(
    "key",
    [lambda connection: connection.headers.get("x-team"), Depends(by_team)],
    ids=["function", "dependency"],
)
def test_key_is_a_function_or_a_dependency(app: FastAPI, client: TestClient, key: Any) -> None:
    """Each value has its own count; None is no limit."""
    app.get("/a", dependencies=[Depends(limited("1/hour", key=key))])(lambda: None)

    teams = ["red", "blue", "red", None, None]
    found = [client.get("/a", headers={"X-Team": team} if team else {}).status_code for team in teams]
    assert found == [200, 200, 429, 200, 200]


async def test_key_may_be_awaited_and_be_no_text(app: FastAPI) -> None:
    """Whole numbers and UUIDs are what users are called by."""

    async def by_user(connection: Any) -> Any:
        return {"7": 7, "u": UUID(int=7)}[connection.query_params["user"]]

    app.get("/a", dependencies=[Depends(limited("1/hour", key=by_user))])(lambda: None)

    async with asking(app) as client:
        found = [(await client.get("/a", params={"user": user})).status_code for user in ("7", "u", "7", "u")]
    assert found == [200, 200, 429, 429]


def test_key_that_is_no_key_is_a_bug(app: FastAPI, client: TestClient) -> None:
    """It is not counted as somebody; the error names the argument."""
    app.get("/a", dependencies=[Depends(limited("1/hour", key=lambda connection: 1.5))])(lambda: None)

    with pytest.raises(TypeError, match="key: must be a string, an integer"):
        client.get("/a")


def test_key_too_long_to_be_counted_is_refused(app: FastAPI, client: TestClient) -> None:
    """It is the client's doing, so the answer is a problem of the client's."""
    app.get("/a", dependencies=[Depends(limited("1/hour", key=Depends(by_team)))])(lambda: None)

    answer = client.get("/a", headers={"X-Team": "x" * 1024})
    assert (answer.status_code, answer.json()["code"]) == (400, "key_too_long")


def test_costs_may_depend_on_the_request(app: FastAPI, client: TestClient) -> None:
    """Several limits in one text are one decision."""
    costs = lambda connection: int(connection.query_params["n"])  # noqa: E731
    app.get("/a", dependencies=[Depends(limited("100/hour; 5/minute", key="ip", costs=costs))])(lambda: None)

    assert [client.get(f"/a?n={n}").status_code for n in (3, 3, 2)] == [200, 429, 200]


def test_several_limits_are_told_together(store: ValkeyServer) -> None:
    """The tightest first, or the one that denies; Retry-After is the denier's."""
    app = FastAPI()
    install(app, aio.Limiter(store.url, timeout=1.0, clock=Clock()))  # at the start of an hour
    wide = Limit(name="wide", algorithm="fixed_window", quota=10, window_seconds=60)
    # A log, whose wait does not depend on when in an hour the test runs.
    tight = Limit(name="per-hour", algorithm="sliding_log", quota=2, window_seconds=3600)
    both = [Depends(limited(wide, key="ip")), Depends(limited(tight, key="ip"))]
    app.get("/a", dependencies=both)(lambda: None)

    with TestClient(app) as client:
        told = [client.get("/a").headers for _ in range(3)]
    names = [[part.partition(";")[0] for part in headers["RateLimit"].split(", ")] for headers in told]
    assert names == [['"per-hour"', '"wide"']] * 3
    assert [len(headers.get_list("RateLimit")) for headers in told] == [1, 1, 1]
    assert told[2]["Retry-After"] == "3600"


def test_published_policies_are_checked_by_token(app: FastAPI, store: ValkeyServer, issue: Issue) -> None:
    """With the attributes of the request and of the application."""
    token = issue(Limit(name="by-plan", quota=1, window_seconds=3600, partition_by=("plan", "path", "header.x-team")))
    plan = lambda connection: {"plan": connection.query_params["plan"]}  # noqa: E731
    app.get("/{item}", dependencies=[Depends(check(attributes=plan))])(lambda: None)

    with TestClient(app) as client:
        headers = {**bearer(token), "X-Team": "red"}
        paths = ["/a?plan=x", "/a?plan=y", "/b?plan=x", "/a?plan=x"]
        assert [client.get(path, headers=headers).status_code for path in paths] == [200, 200, 200, 429]


@pytest.mark.parametrize(
    ("state", "token", "status", "code"),
    [
        ({}, "", 401, "missing_token"),
        ({}, "garbage", 401, "unknown_token"),
        ({"revoked": True}, None, 401, "revoked"),
        ({"active": False}, None, 403, "inactive_project"),
    ],
)
def test_token_that_is_not_valid_is_no_rate_limit(
    app: FastAPI, issue: Issue, state: Any, token: str | None, status: int, code: str
) -> None:
    """Its answer says what it is, challenges where a token would help, and shows no limit."""
    issued = issue(PER_HOUR, **state)
    app.get("/a", dependencies=[Depends(check())])(lambda: None)

    with TestClient(app) as client:
        answer = client.get("/a", headers=bearer(issued if token is None else token) if token != "" else {})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert "RateLimit" not in answer.headers


async def test_slot_is_held_until_the_response_is_complete(app: FastAPI, watcher: Limiter) -> None:
    """Of a limit in code as of a policy; the background task that follows does not hold it."""
    entered, go, after = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.get("/a", dependencies=[Depends(limited(ONE_SLOT, key="all", scope="a"))])
    async def operation(tasks: BackgroundTasks, wait: bool = False) -> None:
        if wait:
            tasks.add_task(after.wait)
            entered.set()
            await go.wait()

    async with asking(app) as client:
        first = asyncio.ensure_future(client.get("/a?wait=1"))
        await entered.wait()
        during = (await client.get("/a")).status_code
        go.set()
        await until(lambda: watcher.peek(ONE_SLOT, "a:all:").remaining == 1)
        assert not first.done()  # its background task goes on
        later = (await client.get("/a")).status_code
        after.set()
        assert (during, later, (await first).status_code) == (429, 200, 200)


async def test_every_slot_is_free_after_a_cancellation_that_is_repeated(app: FastAPI, watcher: Limiter) -> None:
    """anyio cancels again whenever the request awaits anything; what is held is given back all the same."""
    entered, kept = asyncio.Event(), []
    both = [Depends(limited(ONE_SLOT, key="all", scope=scope)) for scope in ("x", "y")]

    @app.get("/a", dependencies=both)
    async def operation(request: Request) -> None:
        kept.append(request.scope)  # or the collector would tidy up
        entered.set()
        await asyncio.sleep(600)

    async with asking(app) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/a")
            await entered.wait()
            assert [watcher.peek(ONE_SLOT, f"{scope}:all:").remaining for scope in "xy"] == [0, 0]
            group.cancel_scope.cancel()
        await until(lambda: [watcher.peek(ONE_SLOT, f"{scope}:all:").remaining for scope in "xy"] == [1, 1])


async def test_policy_slot_is_free_after_an_exception(app: FastAPI, issue: Issue) -> None:
    """And after a validation error, which comes when the dependencies are done."""
    headers = bearer(issue(ONE_SLOT))

    @app.get("/a", dependencies=[Depends(check())])
    async def operation(number: int) -> None:
        raise HTTPException(500 + number)

    async with asking(app) as client:
        found = [(await client.get(f"/a?number={n}", headers=headers)).status_code for n in ("3", "x", "4")]
    assert found == [503, 422, 504]


async def test_policy_that_charges_by_status_obeys_the_response(app: FastAPI, issue: Issue) -> None:
    """charge_on spares the other answers."""
    headers = bearer(issue(Limit(name="ok", quota=2, window_seconds=3600, charge_on=("2xx",))))

    @app.get("/{status}", dependencies=[Depends(check())])
    async def operation(status: int) -> Response:
        return Response(status_code=status)

    async with asking(app) as client:
        found = [(await client.get(f"/{s}", headers=headers)).status_code for s in (500, 404, 200, 200, 200)]
    assert found == [500, 404, 200, 200, 429]


async def test_estimate_is_settled(app: FastAPI, watcher: Limiter) -> None:
    """In an async operation, in one that runs in a thread, and in a background task."""
    reserve = admit(TOKENS, key="all", scope="llm", costs={"tokens": 1000})
    Reserved = Annotated[Admission, Depends(reserve)]

    @app.get("/async")
    async def settled(admission: Reserved) -> None:
        await admission.settle({"tokens": 10})

    @app.get("/thread")
    def settled_from_a_thread(admission: Reserved) -> None:
        admission.settle_from_thread({"tokens": 20})

    @app.get("/later")
    async def settled_later(admission: Reserved, tasks: BackgroundTasks) -> None:
        tasks.add_task(admission.settle, {"tokens": 30})

    @app.get("/never")
    async def estimated(admission: Reserved) -> None: ...

    left = []
    async with asking(app) as client:
        for path in ("/async", "/thread", "/later", "/never"):
            assert (await client.get(path)).status_code == 200
            left.append(watcher.peek(TOKENS, "llm:all:").remaining)
    assert left == [4990, 4970, 4940, 3940]


async def test_estimate_comes_back_by_an_exception(app: FastAPI, watcher: Limiter) -> None:
    """As a block's does: unless it was settled before."""

    @app.get("/{how}")
    async def operation(
        how: str, admission: Annotated[Admission, Depends(admit(TOKENS, key="all", scope="x", costs={"tokens": 1000}))]
    ) -> None:
        if how == "settled":
            await admission.settle({"tokens": 5})
        raise HTTPException(502)

    async with asking(app) as client:
        assert (await client.get("/failed")).status_code == 502
        assert watcher.peek(TOKENS, "x:all:").remaining == 5000
        await client.get("/settled")
        assert watcher.peek(TOKENS, "x:all:").remaining == 4995


async def test_estimate_by_token_is_one_decision_of_all_units(app: FastAPI, issue: Issue) -> None:
    """Policies may count requests, tokens and slots at once; what does not fit is denied before the operation runs."""
    headers = bearer(issue(TOKENS, ONE_SLOT, Limit(name="rpm", quota=9, window_seconds=60)))
    estimate = lambda connection: {"tokens": int(connection.query_params["n"])}  # noqa: E731

    @app.get("/a")
    async def operation(admission: Annotated[Admission, Depends(admit(costs=estimate))]) -> dict[str, int]:
        assert admission.decision is not None
        return {state.name: state.remaining for state in admission.decision.limits}

    async with asking(app) as client:
        first = await client.get("/a?n=4000", headers=headers)
        second = await client.get("/a?n=4000", headers=headers)
    assert first.json() == {"tokens": 1000, "slots": 0, "rpm": 8}
    assert (second.status_code, second.json()["violated-policies"]) == (429, ["tokens"])


async def test_admission_without_a_key_is_no_limit(app: FastAPI) -> None:
    """None stands for no limit here too; costs are checked all the same."""

    @app.get("/a")
    async def operation(admission: Annotated[Admission, Depends(admit(PER_HOUR, key=lambda c: None))]) -> bool:
        with pytest.raises(ValueError, match="costs"):
            await admission.settle(-1)
        await admission.settle(7)
        await admission.cancel()
        return admission.decision is None

    async with asking(app) as client:
        assert (await client.get("/a")).json() is True


def test_stream_holds_its_slot_to_the_end(app: FastAPI, serve: Serve, watcher: Limiter) -> None:
    """Also a stream whose client leaves in the middle; the estimate stands then, since it was not settled."""
    go = threading.Event()
    limits = [ONE_SLOT, TOKENS]

    @app.get("/stream")
    async def stream(
        admission: Annotated[Admission, Depends(admit(limits, key="all", scope="s", costs={"tokens": 100}))],
        long: bool = False,
    ) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            while long and not go.is_set():
                await asyncio.sleep(0.005)
            yield b"two"
            await admission.settle({"tokens": 7})

        return StreamingResponse(chunks())

    def left() -> dict[str, int]:
        return {state.name: state.remaining for state in watcher.peek(limits, "s:all:").limits}

    client = serve(app)
    with client.stream("GET", "/stream?long=1") as answer:
        parts = answer.iter_bytes()
        assert next(parts) == b"one"
        assert (client.get("/stream").status_code, left()["slots"]) == (429, 0)
        go.set()
        assert b"".join(parts) == b"two"
        # Whoever has read the last chunk meets no slot of its own.
        assert client.get("/stream").status_code == 200
    assert left() == {"slots": 1, "tokens": 4986}

    go.clear()
    with client.stream("GET", "/stream?long=1") as answer:
        assert next(answer.iter_bytes()) == b"one"
    assert eventually(lambda: left()["slots"] == 1)
    assert left()["tokens"] == 4886


async def test_estimate_stands_where_the_server_reports_that_the_client_left(app: FastAPI, watcher: Limiter) -> None:
    """Servers of ASGI 2.4 refuse to send on; Starlette makes that an exception, which is none of the operation's."""
    limits = [ONE_SLOT, TOKENS]

    @app.get("/a")
    async def stream(
        admission: Annotated[Admission, Depends(admit(limits, key="all", scope="d", costs={"tokens": 100}))],
    ) -> StreamingResponse:
        return StreamingResponse(iter(["one", "two"]))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message.get("body") == b"two":
            raise OSError

    scope = {"type": "http", "method": "GET", "path": "/a", "query_string": b"", "headers": []}
    async with app.router.lifespan_context(app):
        with pytest.raises(ClientDisconnect):
            await app({**scope, "asgi": {"spec_version": "2.4"}}, receive, send)
    left = {state.name: state.remaining for state in watcher.peek(limits, "d:all:").limits}
    assert left == {"slots": 1, "tokens": 4900}


def test_announced_response_is_complete_with_its_last_byte(app: FastAPI, serve: Serve) -> None:
    """Whoever has read as much as was announced may come again, though the operation has not ended."""
    go = threading.Event()

    @app.get("/a", dependencies=[Depends(limited(ONE_SLOT, key="all"))])
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"all"
            while not go.is_set():
                await asyncio.sleep(0.005)

        return StreamingResponse(chunks(), headers={"Content-Length": "3"})

    address = serve(app).base_url.join("/a")
    with ExitStack() as open_connections:
        for _ in range(3):
            client = open_connections.enter_context(httpx2.Client(timeout=5, verify=False))
            assert client.get(address).text == "all"
        go.set()


def test_server_starts_and_closes_the_limiter(store: ValkeyServer, serve: Serve, issue: Issue) -> None:
    """Around the application's own lifespan, whose state is there."""
    seen = []
    limiter = aio.Limiter(store.url, timeout=1.0)

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        seen.append(limiter.revision)
        yield {"name": "state"}
        seen.append(limiter._started)

    app = FastAPI(lifespan=own)

    @app.get("/a", dependencies=[Depends(check())])
    async def operation(request: Request) -> str:
        return request.state.name

    install(app, limiter)
    token = issue(PER_HOUR)
    with TestClient(app) as client:
        assert client.get("/a", headers=bearer(token)).json() == "state"
    assert (seen, limiter._started) == ([1, True], False)


def test_limiter_comes_from_the_environment(store: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the time when the application starts, not of when it is imported."""
    app = FastAPI()
    install(app)

    @app.get("/a")
    async def operation(limiter: Annotated[aio.Limiter, Depends(get_limiter)]) -> int | None:
        return (await limiter.hit(PER_HOUR, "mine")).remaining

    monkeypatch.setenv("SLUICEGATE_REDIS_URL", store.url)
    with TestClient(app) as client:
        assert client.get("/a").json() == 1


# The connection of a loop that was closed under it cannot be closed any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_client_that_is_not_entered_gets_through(store: ValkeyServer) -> None:
    """It gives each request an event loop of its own, and the limiter goes on in each."""

    def found() -> list[int]:
        app, limiter = FastAPI(), aio.Limiter(store.url, timeout=1.0)
        install(app, limiter)
        app.get("/a", dependencies=[Depends(limited(PER_HOUR, key="ip"))])(lambda: None)
        denied = statuses(TestClient(app), "/a", 3)
        asyncio.run(limiter.close())
        return denied

    assert found() == [200, 200, 429]
    gc.collect()


def test_denied_in_an_operation_is_a_429(app: FastAPI, client: TestClient) -> None:
    """Whoever asks the limiter in the middle of an operation need not answer by hand."""

    @app.get("/a")
    async def operation(limiter: Annotated[aio.Limiter, Depends(get_limiter)]) -> None:
        await limiter.acquire(PER_HOUR, "mine", max_wait=0)

    assert statuses(client, "/a", 3) == [200, 200, 429]
    assert client.get("/a").headers["RateLimit"].startswith('"per-hour";r=0')


def test_application_may_answer_denials_in_its_own_words(app: FastAPI) -> None:
    """The header fields stay."""
    app.get("/a", dependencies=[Depends(limited(Limit(quota=0, window_seconds=60), key="ip"))])(lambda: None)

    @app.exception_handler(Denied)
    async def apologise(request: Request, exc: Denied) -> JSONResponse:
        return JSONResponse({"sorry": exc.decision.reason}, 420)

    with TestClient(app) as client:
        answer = client.get("/a")
    assert (answer.status_code, answer.json()) == (420, {"sorry": "cost_exceeds_capacity"})
    assert answer.headers["RateLimit"].startswith('"0-per-minute";r=0')


def test_handler_by_status_gets_denials(app: FastAPI) -> None:
    """As it gets every other 429; the header fields stay."""
    app.get("/a", dependencies=[Depends(limited("0/minute", key="ip"))])(lambda: None)

    @app.exception_handler(429)
    async def apologise(request: Request, exc: HTTPException) -> JSONResponse:
        return JSONResponse({"sorry": exc.detail}, exc.status_code)

    with TestClient(app) as client:
        answer = client.get("/a")
    assert answer.json() == {"sorry": "The request costs more than the limit can ever admit"}
    assert answer.headers["RateLimit"].startswith('"0-per-minute";r=0')


@pytest.mark.parametrize("installed", [True, False])
def test_mounted_application_is_limited_too(app: FastAPI, installed: bool) -> None:
    """With a door of its own it answers like any other; without, it is denied by the status at least."""
    mounted = FastAPI()
    mounted.get("/a", dependencies=[Depends(limited(PER_HOUR, key="ip"))])(lambda: None)
    mounted.get("/b", dependencies=[Depends(check())])(lambda: None)
    app.mount("/m", mounted)
    limiter = aio.Limiter(app.state.url, timeout=1.0)
    if installed:
        install(mounted, limiter)

    with TestClient(app) as client:
        answers = [client.get("/m/a") for _ in range(3)]
        unknown = client.get("/m/b")
        client.portal.call(limiter.close)
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["RateLimit"].count("r=") for answer in answers] == [1, 1, 1]
    assert (unknown.status_code, answers[2].headers["Content-Type"]) == (
        401,
        "application/problem+json" if installed else "application/json",
    )


def test_decision_is_the_value_of_the_dependency(app: FastAPI, client: TestClient) -> None:
    """An operation may look at it."""

    @app.get("/a")
    async def operation(decision: Annotated[Decision, Depends(limited(PER_HOUR, key="ip"))]) -> int | None:
        return decision.remaining

    assert client.get("/a").json() == 1


def test_limit_can_be_switched_off_in_a_test(app: FastAPI, client: TestClient) -> None:
    """As any other dependency can."""
    limit = limited("0/hour", key="ip")
    app.get("/a", dependencies=[Depends(limit)])(lambda: None)

    assert client.get("/a").status_code == 429
    app.dependency_overrides[limit] = lambda: None
    assert client.get("/a").status_code == 200


def test_whole_routers_and_applications_may_be_limited(store: ValkeyServer) -> None:
    """One count for all operations, or one for each, as the scope says."""
    router = APIRouter(prefix="/r", dependencies=[Depends(limited("2/hour", key="ip", scope="router"))])
    router.get("/a")(lambda: None)
    router.get("/b")(lambda: None)
    app = FastAPI(dependencies=[Depends(limited("100/hour", key="ip", scope="all-of-it"))])
    install(app, aio.Limiter(store.url, timeout=1.0))
    app.include_router(router)

    with TestClient(app) as client:
        assert [client.get(path).status_code for path in ("/r/a", "/r/b", "/r/a")] == [200, 200, 429]
        assert client.get("/r/b").headers["RateLimit-Policy"].count("q=") == 2


def test_websocket_is_refused_before_it_is_accepted(app: FastAPI, client: TestClient) -> None:
    """Where the server can, with the problem itself; a socket holds its slot until it closes."""

    @app.websocket("/ws")
    async def talk(socket: WebSocket, decision: Annotated[Any, Depends(limited(ONE_SLOT, key="ip"))]) -> None:
        await socket.accept()
        await socket.receive_text()

    with client.websocket_connect("/ws") as first:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
            pass
        first.send_text("bye")
    with client.websocket_connect("/ws") as again:
        again.send_text("bye")


@pytest.mark.parametrize("outside", [True, False])
async def test_other_middleware_stands_before_or_behind(store: ValkeyServer, watcher: Limiter, outside: bool) -> None:
    """Also of Starlette's base class, which runs what is behind it in a task of its own."""

    async def passing(request: Request, call_next: Any) -> Response:
        return await call_next(request)

    app = FastAPI()
    for step in (0, 1):
        if step == outside:
            app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
        else:
            install(app, aio.Limiter(store.url, timeout=1.0))
    limits = [ONE_SLOT, PER_HOUR]
    app.get("/a", dependencies=[Depends(limited(limits, key="all", scope="m"))])(lambda: None)

    async with asking(app) as client:
        answers = [await client.get("/a") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["RateLimit"].count("r=") == 2
    assert watcher.peek(ONE_SLOT, "m:all:").remaining == 1


def test_openapi_documents_denials(app: FastAPI) -> None:
    """Of the operations that have them, through routers too; what the application says itself stays."""
    router = APIRouter(prefix="/r", dependencies=[Depends(check())])
    router.get("/a", responses={429: {"description": "Mine"}})(lambda: None)
    app.include_router(router)
    app.get("/b", dependencies=[Depends(limited("1/hour", key="ip"))])(lambda: None)
    app.get("/c")(lambda: None)

    paths = {path: methods["get"]["responses"] for path, methods in app.openapi()["paths"].items()}
    assert set(paths["/r/a"]) == {"200", "401", "403", "429", "503"}
    assert set(paths["/b"]) == {"200", "429", "503"}
    assert set(paths["/c"]) == {"200"}
    assert paths["/r/a"]["429"]["description"] == "Mine"
    assert "application/problem+json" in paths["/b"]["429"]["content"]
    assert app.openapi()["components"]["schemas"]["SluicegateProblem"]["required"][0] == "type"


def test_address_behind_a_trusted_proxy_is_the_clients(store: ValkeyServer) -> None:
    """Without trust, whoever invents addresses stays one client."""
    found = []
    for trusted in ((), ("127.0.0.1",)):
        app = FastAPI()
        install(app, aio.Limiter(store.url, timeout=1.0), trusted_proxies=trusted)
        app.get("/a", dependencies=[Depends(limited("1/hour", key="ip", scope=f"s{len(trusted)}"))])(lambda: None)
        with TestClient(app, client=("127.0.0.1", 5)) as client:
            addresses = ["198.51.100.1", "198.51.100.2"]
            found += [client.get("/a", headers={"X-Forwarded-For": ip}).status_code for ip in addresses]
    assert found == [200, 429, 200, 200]


@pytest.mark.parametrize(
    ("declare", "error", "names"),
    [
        (lambda: limited("10/fortnight", key="ip"), InvalidLimit, "text"),
        (lambda: limited("1/s", key="user"), ValueError, "key: must be 'ip', 'all'"),
        (lambda: limited("1/s", key="ip", scope="a:b"), ValueError, "scope: must be"),
        (lambda: limited("1/s", key="ip", costs=-1), ValueError, "costs: must be"),
        (lambda: admit("1/s"), ValueError, "key: must be 'ip', 'all' or a function"),
        (lambda: check(costs=1.5), ValueError, "costs: must be"),
        (lambda: install(FastAPI(), headers="best"), ValueError, "preset: must be one of"),
        (lambda: install(FastAPI(), trusted_proxies=["here"]), ValueError, "here"),
        (lambda: [install(app) for app in [FastAPI()] * 2], ValueError, "already installed"),
    ],
)
def test_declaration_that_cannot_work_is_refused_at_import(declare: Any, error: Any, names: str) -> None:
    """Not by the first request in production."""
    with pytest.raises(error, match=names):
        declare()


def test_dependency_without_the_door_says_what_is_missing() -> None:
    """It never lets a request through unlimited."""
    app = FastAPI()
    app.get("/a", dependencies=[Depends(limited("1/hour", key="ip"))])(lambda: None)

    with pytest.raises(RuntimeError, match=r"call enforcement\.doors\.fastapi\.install"):
        TestClient(app).get("/a")


def test_degraded_decision_says_so(app: FastAPI, client: TestClient) -> None:
    """The store is away: the limit's own rule decides, inside the application's time."""
    closed = Limit(name="closed", quota=5, window_seconds=60, on_store_failure="deny")
    app.get("/a", dependencies=[Depends(limited(PER_HOUR, key="ip"))])(lambda: None)
    app.get("/b", dependencies=[Depends(limited(closed, key="ip"))])(lambda: None)
    away = FastAPI()
    install(away, aio.Limiter("redis://127.0.0.1:1/0"))
    away.router.routes += app.router.routes

    with TestClient(away) as client:
        open_, denied = client.get("/a"), client.get("/b")
    assert (open_.status_code, open_.headers["Sluicegate-Degraded"]) == (200, "fallback")
    assert (denied.status_code, denied.json()["code"], denied.headers["Retry-After"]) == (503, "degraded_denied", "1")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"key": "ip"}, "key"),
        ({"scope": "images"}, "scope"),
        ({"limits": "5/minute", "key": "ip", "attributes": dict}, "attributes"),
    ],
)
def test_an_argument_without_effect_is_an_error(arguments, name):
    """Policies choose whom a request counts for, and limits in code look at no attributes."""
    with pytest.raises(TypeError, match=f"^{name}: must be None"):
        admit(**arguments)
