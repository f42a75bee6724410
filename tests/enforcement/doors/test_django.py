"""The Django door: a decorator and middleware in a real site, sync and async, deciding with a real store."""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx2
import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from enforcement import Denied, Limit, Limiter
from enforcement.doors import django as door
from enforcement.doors._options import read_options
from enforcement.doors._sync_visit import NotManaged, in_thread
from enforcement.doors.django import exempt, get_limiter, limited
from enforcement.embedded import ValkeyServer
from enforcement.model.limits import InvalidLimit
from tests.enforcement.doors.conftest import Issue, Serve, bearer
from tests.enforcement.world import eventually

PER_HOUR = Limit(name="per-hour", algorithm="fixed_window", quota=2, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
CHECKING = "enforcement.doors.django.LimitMiddleware"
TELLING = "enforcement.doors.django.DecisionMiddleware"


def ok(request: Any, **kwargs: Any) -> HttpResponse:
    return HttpResponse("ok")


async def ok_awaited(request: Any, **kwargs: Any) -> HttpResponse:
    return HttpResponse("ok")


@pytest.fixture
def site(settings: Any, store: ValkeyServer) -> Callable[..., None]:
    """Make these the site's views and middleware, with a limiter on the store."""

    def make(*middleware: str, options: Any = (), **views: Any) -> None:
        settings.SLUICEGATE = {"REDIS_URL": store.url, "TIMEOUT_MS": 1000, **dict(options)}
        settings.MIDDLEWARE = list(middleware)
        settings.ROOT_URLCONF = tuple(path(name, view) for name, view in views.items())

    return make


def statuses(client: Any, times: int, address: str = "/a", **options: Any) -> list[int]:
    return [client.get(address, **options).status_code for _ in range(times)]


def test_limit_in_code_denies_and_tells(site: Any) -> None:
    """A denial has the body and the fields of every other door; the decorator needs no middleware."""
    site(a=limited(PER_HOUR, key="ip")(ok))
    client = Client()

    first, _, denied = [client.get("/a") for _ in range(3)]
    assert (first.status_code, first.headers["RateLimit-Policy"]) == (200, '"per-hour";q=2;w=3600')
    assert first.headers["RateLimit"].startswith('"per-hour";r=1;t=')
    assert (denied.status_code, denied.headers["Content-Type"]) == (429, "application/problem+json")
    assert denied.headers["RateLimit"].startswith('"per-hour";r=0;t=')
    assert "," not in denied.headers["RateLimit"]
    assert 1 <= int(denied.headers["Retry-After"]) <= 3600
    assert denied.json()["violated-policies"] == ["per-hour"]


def tier(request: Any) -> str | None:
    """Return the limit of a caller by what it pays, or None for the house itself."""
    return {"gold": "3/hour", "house": None}.get(request.headers.get("x-tier"), "1/hour")


def test_limits_may_depend_on_the_request(site: Any) -> None:
    """None exempts the request."""
    site(a=limited(tier, key="ip")(ok))
    client = Client()

    assert statuses(client, 2) == [200, 429]
    assert statuses(client, 4, headers={"X-Tier": "gold"}) == [200, 200, 200, 429]
    assert statuses(client, 5, headers={"X-Tier": "house"}) == [200] * 5


def test_a_limit_that_would_count_nothing_is_refused_when_it_is_declared() -> None:
    """As its costs name no unit of it."""
    tokens = Limit(name="tokens", quota=5000, window_seconds=3600, unit="tokens")
    with pytest.raises(ValueError, match="costs: must name a unit of the limits, which count 'tokens', got 1"):
        limited(tokens, key="ip")


def test_a_denial_may_have_the_shape_of_a_provider(site: Any) -> None:
    """As the preset says; its SDK then shows the sentence."""
    site(a=limited("1/hour", key="ip")(ok), options={"HEADERS": "ietf+openai"})

    _, denied = [Client().get("/a") for _ in range(2)]

    assert (denied.status_code, denied.headers["Content-Type"]) == (429, "application/json")
    assert denied.json()["error"]["message"].startswith("1-per-hour has 0 of 1 requests left. Try again in ")
    assert denied.headers["x-ratelimit-limit-requests"] == "1"


def test_decorated_view_stays_what_it_was() -> None:
    """Name and documentation are those of the view."""
    assert limited("1/s", key="ip")(ok).__name__ == "ok"


def test_views_count_apart_unless_they_share_a_scope(site: Any) -> None:
    """Classes too, which all inherit one dispatch; and the methods of a class, if they are decorated."""
    per_hour = limited("1/hour", key="ip")

    class Base(View):
        def get(self, request: Any) -> HttpResponse:
            return ok(request)

    class First(Base): ...

    class Third(Base): ...

    class Second(View):
        @method_decorator(per_hour)
        def get(self, request: Any) -> HttpResponse:
            return ok(request)

        post = method_decorator(per_hour)(lambda self, request: ok(request))

    for view in (First, Third):
        method_decorator(per_hour, name="dispatch")(view)
    shared = limited("1/hour", key="ip", scope="shared")
    site(a=First.as_view(), b=Second.as_view(), c=Third.as_view(), d=shared(ok), e=shared(ok))
    client = Client()

    found = [client.get(f"/{name}").status_code for name in "abcdeab"]
    assert found == [200, 200, 200, 200, 429, 429, 429]
    assert client.post("/b").status_code == 200


def test_views_without_a_name_of_their_own_count_apart(site: Any) -> None:
    """What as_view() returns has the same full name for all classes, as lambdas have."""
    per_hour, fields = limited("1/hour", key="ip"), {"get": lambda self, request: ok(request)}
    first, second = [type(name, (View,), fields) for name in ("First", "Second")]
    views = [first.as_view(), second.as_view(), lambda request: ok(request), lambda request: ok(request)]
    site(**dict(zip("abcd", map(per_hour, views), strict=True)))

    assert [Client().get(f"/{name}").status_code for name in "abcdabcd"] == [200] * 4 + [429] * 4


def user(number: int) -> Any:
    return SimpleNamespace(pk=number, is_authenticated=True)


@pytest.mark.parametrize(
    ("key", "callers", "expected"),
    [
        ("all", [None, None], [200, 429]),
        ("user", [user(1), user(2), user(1), AnonymousUser(), AnonymousUser()], [200, 200, 429, 200, 429]),
        (lambda request: request.user, ["a", 7, UUID(int=7), "7", None, None], [200, 200, 200, 429, 200, 200]),
    ],
    ids=["all", "user", "function"],
)
def test_key_says_whom_a_request_counts_for(site: Any, rf: Any, key: Any, callers: Any, expected: Any) -> None:
    """An anonymous user is an address; None is no limit."""
    site()
    view, found = limited("1/hour", key=key, scope="keys")(ok), []
    for caller in callers:
        request = rf.get("/")
        request.user = caller
        found.append(view(request).status_code)
    assert found == expected


def test_counter_has_a_name_that_can_be_computed(site: Any, watcher: Limiter) -> None:
    """Scope, kind and value: so that a program can look at it, or reset it."""
    site(a=limited(PER_HOUR, key="ip", scope="search")(ok))
    Client(REMOTE_ADDR="198.51.100.7").get("/a")

    assert watcher.peek(PER_HOUR, "search:ip:198.51.100.7").remaining == 1


def test_user_key_without_users_says_what_is_missing(site: Any) -> None:
    """It never counts everybody as nobody."""
    site(a=limited("1/hour", key="user")(ok))

    with pytest.raises(ImproperlyConfigured, match="AuthenticationMiddleware"):
        Client().get("/a")


def test_key_that_is_no_key_is_a_bug(site: Any) -> None:
    """It is not counted as somebody; the error names the argument."""
    site(a=limited("1/hour", key=lambda request: 1.5)(ok))

    with pytest.raises(TypeError, match="key: must be a string, an integer"):
        Client().get("/a")


def test_key_too_long_to_be_counted_is_refused(site: Any) -> None:
    """It is the client's doing, so the answer is a problem of the client's."""
    site(a=limited("1/hour", key=lambda request: request.headers["X-Team"])(ok))

    answer = Client().get("/a", headers={"X-Team": "x" * 1024})
    assert (answer.status_code, answer.json()["code"]) == (400, "key_too_long")


def test_unknown_address_is_one_address(site: Any, caplog: Any) -> None:
    """Behind a Unix socket whose proxy nobody trusts, one limit for all is better than none, and is said once."""
    site(a=limited("1/hour", key="ip")(ok))

    assert statuses(Client(REMOTE_ADDR=""), 2) == [200, 429]


@pytest.mark.parametrize(
    ("address", "counter"),
    [("198.51.100.7", "198.51.100.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("::ffff:1.2.3.4", "1.2.3.4")],
)
def test_client_counts_by_what_it_cannot_change(site: Any, watcher: Limiter, address: str, counter: str) -> None:
    """Whoever has an IPv6 address has 2**64 of them."""
    site(a=limited(PER_HOUR, key="ip", scope="a")(ok), options={"TRUSTED_PROXIES": ["127.0.0.1"]})
    Client(headers={"X-Forwarded-For": address}).get("/a")

    assert watcher.peek(PER_HOUR, f"a:ip:{counter}").remaining == 1


def test_only_some_methods_may_be_limited(site: Any) -> None:
    """A form is looked at freely, and sent seldom."""
    site(a=limited("1/hour", key="ip", methods=["POST"])(ok))
    client = Client()

    assert [client.post("/a").status_code, *statuses(client, 2), client.post("/a").status_code] == [200, 200, 200, 429]


def test_costs_may_depend_on_the_request(site: Any) -> None:
    """Several limits in one text are one decision."""
    site(a=limited("100/hour; 5/minute", key="ip", costs=lambda request: int(request.GET["n"]))(ok))
    client = Client()

    assert [client.get(f"/a?n={n}").status_code for n in (3, 3, 2)] == [200, 429, 200]


def test_several_limits_on_one_view_are_told_together(site: Any) -> None:
    """By whoever is outermost, once: decorators, or middleware."""
    view = limited(PER_HOUR, key="ip")(limited("10/minute", key="ip")(ok))
    told = []
    for middleware in ((), (TELLING,)):
        site(*middleware, a=view)
        told.append(Client().get("/a").headers["RateLimit"])
    assert [[part.partition(";")[0] for part in text.split(", ")] for text in told] == [
        ['"per-hour"', '"10-per-minute"']
    ] * 2


class Awaited(View):
    async def get(self, request: Any) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse("ok")


@pytest.mark.parametrize("middleware", [(), (TELLING,)], ids=["decorator", "middleware"])
@pytest.mark.parametrize(
    "view",
    [
        limited(PER_HOUR, key="ip")(ok_awaited),
        method_decorator(limited(PER_HOUR, key="ip"), name="dispatch")(type("Whole", (Awaited,), {})).as_view(),
        type("Part", (Awaited,), {"get": method_decorator(limited(PER_HOUR, key="ip"))(Awaited.get)}).as_view(),
        limited(PER_HOUR, key="ip")(ok),
    ],
    ids=["function", "class", "method", "sync"],
)
async def test_asynchronous_views_are_limited_too(site: Any, middleware: Any, view: Any) -> None:
    """Under an asynchronous client; the next test asks the same ones through WSGI."""
    site(*middleware, a=view)
    client = AsyncClient()

    answers = [await client.get("/a") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["RateLimit"].startswith('"per-hour";r=1')


def test_asynchronous_view_is_limited_under_wsgi(site: Any) -> None:
    """Each request has an event loop of its own there, and the limiter outlives them all."""
    site(TELLING, a=limited(PER_HOUR, key="ip")(ok_awaited))

    assert statuses(Client(), 3) == [200, 200, 429]


async def test_user_of_an_asynchronous_view_is_awaited(site: Any, async_rf: Any) -> None:
    """As is what a key function returns to be awaited."""

    async def auser() -> Any:
        return user(5)

    async def by_user(request: Any) -> Any:
        return (await request.auser()).pk

    site()
    found = []
    for key in ("user", by_user):
        for _ in range(2):
            request = async_rf.get("/")
            request.auser = auser
            found.append((await limited("1/hour", key=key, scope=type(key).__name__)(ok_awaited)(request)).status_code)
    assert found == [200, 429, 200, 429]


def test_policies_are_checked_by_token(site: Any, issue: Issue) -> None:
    """With the attributes of the request; the view finds the decision."""
    seen = []
    token = issue(Limit(name="by-path", quota=1, window_seconds=3600, partition_by=("path", "header.x-team")))
    site(CHECKING, a=lambda request: seen.append(request.sluicegate.remaining) or ok(request), b=ok)
    client = Client(headers={**bearer(token), "X-Team": "red"})

    assert [client.get(address).status_code for address in ("/a", "/b", "/a")] == [200, 200, 429]
    assert seen == [0]


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
    site: Any, issue: Issue, state: Any, token: str | None, status: int, code: str
) -> None:
    """Its answer says what it is, challenges where a token would help, and shows no limit."""
    issued = issue(PER_HOUR, **state)
    site(CHECKING, a=ok)
    answer = Client(headers=bearer(issued if token is None else token) if token != "" else {}).get("/a")

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert "RateLimit" not in answer.headers


def test_exempt_views_and_paths_need_no_token(site: Any) -> None:
    """Functions and classes; an address that does not exist tells nothing to who has no token."""
    view = method_decorator(exempt, name="dispatch")(type("Free", (View,), {"get": lambda self, request: ok(request)}))
    site(CHECKING, a=exempt(lambda request: ok(request)), b=view.as_view(), c=ok, d=ok, options={"EXEMPT": ["/c"]})
    client = Client()

    found = [client.get(address).status_code for address in ("/a", "/b", "/c", "/d", "/none")]
    assert found == [200, 200, 200, 401, 401]


async def test_exempt_views_and_paths_need_no_token_async(site: Any) -> None:
    """The same through the asynchronous half of the middleware."""
    site(CHECKING, a=exempt(lambda request: ok(request)), c=ok, d=ok_awaited, options={"EXEMPT": ["/c"]})
    client = AsyncClient()

    found = [(await client.get(address)).status_code for address in ("/a", "/c", "/d", "/none")]
    assert found == [200, 200, 401, 401]


def test_address_that_does_not_exist_is_charged_once(site: Any, issue: Issue) -> None:
    """Whoever scans a site uses up what the token has."""
    site(CHECKING, a=ok)
    client = Client(headers=bearer(issue(PER_HOUR)))

    assert [client.get(address).status_code for address in ("/x", "/a", "/y")] == [404, 200, 429]


def by_query(request: Any) -> str | None:
    return request.GET.get("token")


def test_settings_may_name_functions(site: Any, issue: Issue) -> None:
    """Token, costs and attributes; by a dotted path or themselves."""
    token = issue(Limit(name="by-plan", quota=10, window_seconds=3600, partition_by=("plan",)))
    options = {
        "TOKEN": f"{__name__}.by_query" if "." in __name__ else by_query,
        "COSTS": lambda request: 7,
        "ATTRIBUTES": lambda request: {"plan": request.GET["plan"]},
        "HEADERS": "legacy-delta",
    }
    site(CHECKING, a=ok, options=options)
    client = Client()

    answers = [client.get(f"/a?token={token}&plan={plan}") for plan in "xyx"]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["X-RateLimit-Remaining"] == "3"


def test_policy_that_charges_by_status_obeys_the_response(site: Any, issue: Issue) -> None:
    """charge_on spares the other answers."""
    site(CHECKING, a=lambda request: HttpResponse(status=int(request.GET["s"])))
    client = Client(headers=bearer(issue(Limit(name="ok", quota=2, window_seconds=3600, charge_on=("2xx",)))))

    assert [client.get(f"/a?s={s}").status_code for s in (500, 404, 200, 200, 200)] == [500, 404, 200, 200, 429]


def test_denied_in_a_view_is_a_429(site: Any) -> None:
    """Whoever asks the limiter in the middle of a view need not answer by hand."""

    def view(request: Any) -> HttpResponse:
        with get_limiter().admit([PER_HOUR, ONE_SLOT], "mine"):
            return ok(request)

    site(TELLING, a=view)
    client = Client()

    assert statuses(client, 3) == [200, 200, 429]
    assert client.get("/a").headers["RateLimit"].startswith('"per-hour";r=0')


def test_slot_is_held_while_the_view_runs(site: Any, issue: Issue) -> None:
    """Of a policy as of a limit in code, with middleware and without; it is free after an exception."""
    entered, go = threading.Event(), threading.Event()

    def view(request: Any) -> HttpResponse:
        if "fail" in request.GET:
            raise RuntimeError
        if "wait" in request.GET:
            entered.set()
            assert go.wait(10)
        return ok(request)

    headers = bearer(issue(ONE_SLOT))
    site(CHECKING, a=view, b=exempt(limited(ONE_SLOT, key="all")(view)))
    for address in ("/a", "/b"):
        entered.clear()
        go.clear()
        first = threading.Thread(target=Client(headers=headers).get, args=(f"{address}?wait",))
        first.start()
        assert entered.wait(10)
        client = Client(headers=headers, raise_request_exception=False)
        during = client.get(address).status_code
        go.set()
        first.join(10)
        assert [during, *(client.get(f"{address}?{how}").status_code for how in ("fail", ""))] == [429, 500, 200]


def test_slot_without_middleware_is_free_at_the_end(site: Any) -> None:
    """The decorator ends what it began, also after an exception."""

    def view(request: Any) -> HttpResponse:
        if "fail" in request.GET:
            raise RuntimeError
        return ok(request)

    site(a=limited(ONE_SLOT, key="all")(view))
    client = Client(raise_request_exception=False)

    assert [client.get(f"/a{how}").status_code for how in ("", "?fail", "")] == [200, 500, 200]


# Django looks after its connections whenever a response is closed.
@pytest.mark.django_db
def test_stream_holds_its_slot_to_the_end(site: Any, watcher: Limiter, tmp_path: Any) -> None:
    """Read to its end, closed before, or never begun; files as well."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10_000)
    hold = limited(ONE_SLOT, key="all", scope="s")
    site(a=hold(lambda request: StreamingHttpResponse(iter("ab"))), b=hold(lambda r: FileResponse(file.open("rb"))))
    free = lambda: watcher.peek(ONE_SLOT, "s:all:").remaining == 1  # noqa: E731

    for address, length in (("/a", 2), ("/b", 10_000)):
        answer = Client().get(address)
        assert not free()
        assert len(b"".join(answer.streaming_content)) == length
        assert free()
        answer.close()

        Client().get(address).close()
        assert free()


async def test_asynchronous_stream_holds_its_slot_to_the_end(site: Any, watcher: Limiter) -> None:
    """Also one whose client leaves in the middle: Django closes it from a thread."""
    released = asyncio.Event()

    async def chunks(wait: bool) -> Any:
        yield b"one"
        if wait:
            await released.wait()
        yield b"two"

    async def view(request: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse(chunks("wait" in request.GET))

    site(TELLING, a=limited(ONE_SLOT, key="all", scope="s")(view))
    answer = await AsyncClient().get("/a")
    assert watcher.peek(ONE_SLOT, "s:all:").remaining == 0
    assert [chunk async for chunk in answer.streaming_content] == [b"one", b"two"]
    assert watcher.peek(ONE_SLOT, "s:all:").remaining == 1


@pytest.mark.parametrize("when", ["view", "stream"])
def test_client_that_leaves_holds_no_slot(site: Any, serve: Serve, watcher: Limiter, when: str) -> None:
    """In a real server: Django cancels what it does for a client who has left."""
    entered = threading.Event()

    async def chunks() -> Any:
        yield b"one"
        entered.set()
        await asyncio.sleep(600)

    async def view(request: Any) -> StreamingHttpResponse:
        if when == "view":
            entered.set()
            await asyncio.sleep(600)
        return StreamingHttpResponse(chunks())

    site(TELLING, a=limited(ONE_SLOT, key="all", scope="s")(view))
    url = serve(get_asgi_application()).base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: testserver\r\n\r\n")
        assert entered.wait(10)
    assert eventually(lambda: watcher.peek(ONE_SLOT, "s:all:").remaining == 1)


# Django forgets the body of such a request, which is spooled.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_asynchronous_stream_that_fails_holds_no_slot(site: Any, serve: Serve, watcher: Limiter) -> None:
    """In a real server: Django does not close the response to it."""

    async def chunks() -> Any:
        yield b"one"
        raise ZeroDivisionError

    async def view(request: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse(chunks())

    site(TELLING, a=limited(ONE_SLOT, key="all", scope="s")(view))
    with pytest.raises(httpx2.RemoteProtocolError):
        serve(get_asgi_application()).get("/a", headers={"Host": "testserver"})
    assert eventually(lambda: watcher.peek(ONE_SLOT, "s:all:").remaining == 1, seconds=2)
    gc.collect()


def test_announced_response_is_complete_with_its_last_byte(site: Any, serve_wsgi: Serve) -> None:
    """Whoever has read as much as was announced may come again, though the server has not closed the response."""
    go = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b"all"
        assert go.wait(10)

    def view(request: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse(chunks(), headers={"Content-Length": "3"})

    site(TELLING, a=limited(ONE_SLOT, key="all")(view))
    address = serve_wsgi(get_wsgi_application()).base_url.join("/a")
    with ExitStack() as open_connections:
        for _ in range(3):
            client = open_connections.enter_context(httpx2.Client(timeout=5, verify=False))
            assert client.get(address).text == "all"
        go.set()


async def test_cancelled_request_waits_for_what_it_asked() -> None:
    """Else it could be admitted after everything was given back."""
    began, go, done = threading.Event(), threading.Event(), []

    def work() -> None:
        began.set()
        assert go.wait(10)
        done.append(1)

    asking = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(began.wait, 10)
    asking.cancel()
    for _ in range(5):  # turns of the loop, in the second of which a task that does not wait would have ended
        await asyncio.sleep(0)
    assert not asking.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert done == [1]


def test_settings_leave_to_the_environment_what_they_do_not_say() -> None:
    """And win where they say it."""
    environ = {
        "SLUICEGATE_REDIS_URL": "redis://127.0.0.1:1/0",
        "SLUICEGATE_PREFIX": "a:",
        "SLUICEGATE_TIMEOUT_MS": "50",
        "SLUICEGATE_LOOKUP_MS": "300",
    }
    store = read_options({"PREFIX": "b:", "STATE_DIR": "/tmp/x"}, "SLUICEGATE", environ).store

    assert (store.url, store.prefix, store.timeout, store.lookup) == ("redis://127.0.0.1:1/0", "b:", 0.05, 0.3)
    assert read_options({"LOOKUP_MS": 400}, "SLUICEGATE", environ).store.lookup == 0.4
    assert read_options({"LOOKUP_MS": 400}, "SLUICEGATE", environ).limiter()._engine.settings.lookup_seconds == 0.4
    assert str(store.state_dir) == "/tmp/x"
    for name in ("SLUICEGATE_TIMEOUT_MS", "SLUICEGATE_LOOKUP_MS"):
        for value in ("soon", "0", "10001", "2.5", "-1", "\u0663"):
            with pytest.raises(ValueError, match=f"^{name}: must be an integer from 1 to 10000, got "):
                read_options({}, "SLUICEGATE", {name: value})


def test_address_behind_a_trusted_proxy_is_the_clients(site: Any) -> None:
    """Without trust, whoever invents addresses stays one client."""
    found = []
    for trusted in ((), ("127.0.0.1",)):
        site(a=limited("1/hour", key="ip", scope=f"s{len(trusted)}")(ok), options={"TRUSTED_PROXIES": trusted})
        addresses = ["198.51.100.1", "198.51.100.2"]
        found += [Client().get("/a", headers={"X-Forwarded-For": ip}).status_code for ip in addresses]
    assert found == [200, 429, 200, 200]


def test_fields_of_the_application_stay(site: Any) -> None:
    """A list goes on; a field of one value is the application's."""

    def view(request: Any) -> HttpResponse:
        return HttpResponse(headers={"RateLimit": '"mine";r=1', "X-RateLimit-Limit": "9"})

    site(a=limited(PER_HOUR, key="ip")(view), options={"HEADERS": "ietf+legacy-delta"})
    answer = Client().get("/a")
    assert answer.headers["RateLimit"].startswith('"mine";r=1, "per-hour";r=1')
    assert answer.headers["X-RateLimit-Limit"] == "9"


def test_degraded_decision_says_so(site: Any) -> None:
    """The store is away: the limit's own rule decides."""
    closed = Limit(name="closed", quota=5, window_seconds=60, on_store_failure="deny")
    away = {"REDIS_URL": "redis://127.0.0.1:1/0", "TIMEOUT_MS": 25}
    site(a=limited(PER_HOUR, key="ip")(ok), b=limited(closed, key="ip")(ok), options=away)
    client = Client()

    open_, denied = client.get("/a"), client.get("/b")
    assert (open_.status_code, open_.headers["Sluicegate-Degraded"]) == (200, "fallback")
    assert (denied.status_code, denied.json()["code"], denied.headers["Retry-After"]) == (503, "degraded_denied", "1")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], r"SLUICEGATE: must be a dictionary"),
        ({"REDIS": "x"}, r"SLUICEGATE\['REDIS'\]: unknown option, must be one of REDIS_URL"),
        ({"REDIS_URL": "http://x"}, r"SLUICEGATE: the store settings are not valid"),
        ({"REDIS_URL": None}, r"SLUICEGATE\['REDIS_URL'\]: must be a string"),
        ({"PREFIX": "a b"}, r"SLUICEGATE: the store settings are not valid: prefix"),
        ({"TIMEOUT_MS": "25"}, r"SLUICEGATE\['TIMEOUT_MS'\]: must be an integer from 1 to 10000"),
        ({"TIMEOUT_MS": True}, r"SLUICEGATE\['TIMEOUT_MS'\]"),
        ({"HEADERS": "best"}, r"SLUICEGATE\['HEADERS'\]: preset: must be one of"),
        ({"HEADERS": None}, r"SLUICEGATE\['HEADERS'\]"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8"}, r"SLUICEGATE\['TRUSTED_PROXIES'\]: must be a list"),
        ({"TRUSTED_PROXIES": ["here"]}, r"SLUICEGATE\['TRUSTED_PROXIES'\]: 'here'"),
        ({"EXEMPT": [1]}, r"SLUICEGATE\['EXEMPT'\]: must be a string"),
        ({"TOKEN": "no.such.module"}, r"SLUICEGATE\['TOKEN'\]: cannot be imported"),
        ({"COSTS": 1}, r"SLUICEGATE\['COSTS'\]: must be a function"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_server(settings: Any, options: Any, names: str) -> None:
    """When it starts, with the option's name; the system check says the same."""
    settings.SLUICEGATE = options
    for middleware in (CHECKING, TELLING):
        settings.MIDDLEWARE = [middleware]
        for handler in (WSGIHandler, ASGIHandler):
            with pytest.raises(ImproperlyConfigured, match=names):
                handler()
    (error,) = door.check_settings()
    assert (error.id, error.level) == ("sluicegate.E001", 40)


def test_system_checks_see_what_would_count_wrongly(settings: Any) -> None:
    """Both middlewares at once; a proxy in front that nobody trusts."""
    settings.MIDDLEWARE = [CHECKING, TELLING]
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert [found.id for found in door.check_settings()] == ["sluicegate.E002", "sluicegate.W001"]

    settings.MIDDLEWARE = [CHECKING]
    settings.SLUICEGATE = {"TRUSTED_PROXIES": ["10.0.0.0/8"]}
    assert door.check_settings() == []


def test_app_registers_the_checks(settings: Any) -> None:
    """Where it is installed, ``manage.py check`` runs them."""
    from django.apps import AppConfig
    from django.core.checks.registry import registry

    config = AppConfig.create("enforcement.doors.django.SluicegateConfig")
    before = set(registry.registered_checks)
    config.ready()
    assert registry.registered_checks - before == {door.check_settings}
    registry.registered_checks = before


@pytest.mark.parametrize(
    ("declare", "error", "names"),
    [
        (lambda: limited("10/fortnight", key="ip"), InvalidLimit, "text"),
        (lambda: limited("1/s", key="email"), ValueError, "key: must be 'ip', 'user', 'all'"),
        (lambda: limited("1/s", key="ip", scope="a:b"), ValueError, "scope: must be"),
        (lambda: limited("1/s", key="ip", costs=-1), ValueError, "costs: must be"),
        (lambda: limited("1/s", key="ip", methods="POST"), ValueError, "methods: must be a list"),
        (lambda: limited("1/s", key="ip", methods=["post"]), ValueError, "methods: must be a list"),
        (lambda: limited("1/s", key="ip", methods=[]), ValueError, "methods: must be a list of at least one"),
    ],
)
def test_declaration_that_cannot_work_is_refused_at_import(declare: Any, error: Any, names: str) -> None:
    """Not by the first request in production."""
    with pytest.raises(error, match=names):
        declare()


def test_policy_with_slots_needs_middleware(site: Any, rf: Any, issue: Issue) -> None:
    """Nobody else would end what a throttle began: that is said, and nothing is held."""
    token = issue(ONE_SLOT)
    site()
    for _ in range(2):
        with pytest.raises(NotManaged, match="to MIDDLEWARE"):
            door.visit_of(rf.get("/", headers=bearer(token))).check()
    with pytest.raises(Denied), get_limiter().admit(token), get_limiter().admit(token):
        pass


def test_wsgi_server_closes_what_it_streams(site: Any, serve_wsgi: Serve, watcher: Limiter) -> None:
    """In a real server; whoever has read the whole response meets no slot of its own."""
    site(TELLING, a=limited(ONE_SLOT, key="all", scope="s")(lambda request: StreamingHttpResponse(iter("ab"))))
    client = serve_wsgi(get_wsgi_application())

    assert [client.get("/a").status_code for _ in range(3)] == [200] * 3
    assert eventually(lambda: watcher.peek(ONE_SLOT, "s:all:").remaining == 1)
