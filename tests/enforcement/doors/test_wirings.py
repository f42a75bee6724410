"""
Wirings that people get wrong, in every integration: each is an error, a warning in the log, or works as it was meant.

None may be silent, as a limit that does not apply is not missed before it was needed.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Annotated, Any, get_args

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import APIRouter, Depends, FastAPI, Request
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from werkzeug.test import Client as Caller

import enforcement
from enforcement import Denied, Limit, Limiter, aio
from enforcement.doors import _guard
from enforcement.doors import django as in_django
from enforcement.doors import drf as in_drf
from enforcement.doors import fastapi as in_fastapi
from enforcement.doors import flask as in_flask
from enforcement.doors import starlette as in_starlette
from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.wsgi import LimitMiddleware as WSGIMiddleware
from enforcement.embedded import ValkeyServer
from enforcement.logs import RateLimitedLogger
from tests.enforcement.world import World, fixed

THREE = "3/hour"
OK = 200


@pytest.fixture
def limiter(store: ValkeyServer) -> Iterator[Limiter]:
    with Limiter(store.url, timeout=1.0) as limiter:
        yield limiter


@pytest.fixture
def fast(store: ValkeyServer) -> FastAPI:
    app = FastAPI()
    in_fastapi.install(app, aio.Limiter(store.url, timeout=1.0))
    return app


@pytest.fixture
def flask(limiter: Limiter) -> Flask:
    app = Flask(__name__)
    in_flask.install(app, limiter)
    return app


@pytest.fixture
def site(settings: Any, store: ValkeyServer) -> Callable[..., Client]:
    def make(*middleware: str, **views: Any) -> Client:
        settings.SLUICEGATE = {"REDIS_URL": store.url, "TIMEOUT_MS": 1000}
        settings.MIDDLEWARE = list(middleware)
        settings.ROOT_URLCONF = tuple(path(name, view) for name, view in views.items())
        return Client()

    return make


def statuses(client: Any, *requests: str) -> list[int]:
    """Return the statuses of requests such as ``POST /a user=7``. What follows the path is a query."""
    found = []
    for request in requests:
        method, _, rest = request.partition(" ")
        found.append(getattr(client, method.lower())(rest.replace(" ", "?")).status_code)
    return found


def in_query(name: str) -> Callable[[Any], str | None]:
    def key(request: Any) -> str | None:
        values = getattr(request, "query_params", None) or getattr(request, "args", None) or request.GET
        return values.get(name)

    return key


by_team, by_user = in_query("team"), in_query("user")


def ok(request: Any = None, **_: Any) -> HttpResponse:
    return HttpResponse("ok")


# Limits with the same text, which must not share a counter.


def test_one_text_on_two_functions(limiter: Limiter) -> None:
    """The third mail is denied, and the first message is not."""

    @limiter.limited("2/hour", key="{user}")
    def mail(user: int) -> str:
        return "mail"

    @limiter.limited("2/hour", key="{user}")
    def sms(user: int) -> str:
        return "sms"

    assert [mail(7), mail(7), sms(7), sms(7)] == ["mail", "mail", "sms", "sms"]
    with pytest.raises(Denied):
        mail(7)


def test_two_functions_of_one_scope_share_their_counters(limiter: Limiter) -> None:
    """Who wants that says so."""
    one = limiter.limited("2/hour", key="{user}", scope="messages")(lambda user: "one")
    two = limiter.limited("2/hour", key="{user}", scope="messages")(lambda user: "two")

    assert [one(7), two(7), two(8)] == ["one", "two", "two"]
    with pytest.raises(Denied):
        one(7)
    with pytest.raises(ValueError, match="scope: must be 1 to 255 characters"):
        limiter.limited("2/hour", scope="a b")(lambda: None)


def test_one_text_twice_on_a_function(limiter: Limiter) -> None:
    """By team and by user. The numbers of a team and of a user are equal."""

    @limiter.limited("1/hour", key="{team}")
    @limiter.limited("1/hour", key="{user}")
    def call(team: int, user: int) -> str:
        return "ok"

    assert [call(7, 1), call(1, 7), call(5, 5)] == ["ok"] * 3
    with pytest.raises(Denied):
        call(7, 2)


TEAM_7 = ["GET /a team=7&user=1", "GET /a team=7&user=2", "GET /a team=1&user=7", "GET /a team=7&user=3"]
APART = [OK, OK, OK, 429]
"""Team 7 has used its 2, and user 7 of another team nothing."""


def test_fastapi_two_keys(fast: FastAPI) -> None:
    keyed = [Depends(in_fastapi.limited("2/hour", key=key)) for key in (by_team, by_user)]
    fast.get("/a", dependencies=keyed)(lambda: "ok")

    with TestClient(fast) as client:
        assert statuses(client, *TEAM_7) == APART


def test_fastapi_two_keys_of_router_and_operation(fast: FastAPI) -> None:
    router = APIRouter(dependencies=[Depends(in_fastapi.limited("2/hour", key=by_team))])
    router.get("/a", dependencies=[Depends(in_fastapi.limited("2/hour", key=by_user))])(lambda: "ok")
    fast.include_router(router)

    with TestClient(fast) as client:
        assert statuses(client, *TEAM_7) == APART


def test_fastapi_two_keys_of_routers_that_include_one_another(fast: FastAPI) -> None:
    """Each level has a limit of the same text."""
    inner, outer = (
        APIRouter(dependencies=[Depends(in_fastapi.limited("2/hour", key=key))]) for key in (by_user, by_team)
    )
    inner.get("/a")(lambda: "ok")
    outer.include_router(inner)
    fast.include_router(outer, dependencies=[Depends(in_fastapi.limited("2/hour", key=in_query("org")))])

    with TestClient(fast) as client:
        assert statuses(client, *TEAM_7) == APART


def test_fastapi_a_router_with_another_key_at_one_of_two_prefixes(fast: FastAPI) -> None:
    """The function has the same counters by user at both, and another one by team."""
    router = APIRouter()
    router.get("/x", dependencies=[Depends(in_fastapi.limited("1/hour", key=by_user))])(at_both)
    fast.include_router(router, prefix="/a", dependencies=[Depends(in_fastapi.limited("1/hour", key=by_team))])
    fast.include_router(router, prefix="/b")

    with TestClient(fast) as client:
        assert statuses(client, "GET /a/x team=7&user=1", "GET /b/x user=7", "GET /b/x user=1") == [OK, OK, 429]


def at_both() -> str:
    return "ok"


def test_fastapi_beside_a_decorator_for_starlette(fast: FastAPI) -> None:
    @fast.get("/a", dependencies=[Depends(in_fastapi.limited("2/hour", key=by_team))])
    @in_starlette.limited("2/hour", key=by_user)
    async def view(request: Request) -> str:
        return "ok"

    with TestClient(fast) as client:
        assert statuses(client, *TEAM_7) == APART


def listing() -> Callable[[], str]:
    """Return a function that has the same name as all others that this makes."""

    def read() -> str:
        return "ok"

    return read


PLACES = ["GET /a/x", "GET /b/x", "POST /a/x", "GET /a/x"]
FOUR = [OK, OK, OK, 429]


def test_fastapi_functions_of_one_name_at_two_prefixes(fast: FastAPI) -> None:
    """As a function makes them that makes the router of a resource. So do two methods of one path count apart."""
    for prefix in ("/a", "/b"):
        router, once = APIRouter(), Depends(in_fastapi.limited("1/hour", key="ip"))
        router.get("/x", dependencies=[once])(listing())
        router.post("/x", dependencies=[once])(listing())
        fast.include_router(router, prefix=prefix)

    with TestClient(fast) as client:
        assert statuses(client, *PLACES) == FOUR


def test_starlette_two_keys(store: ValkeyServer) -> None:
    @in_starlette.limited("2/hour", key=by_team)
    @in_starlette.limited("2/hour", key=by_user)
    async def view(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/a", view)])
    in_starlette.install(app, aio.Limiter(store.url, timeout=1.0))
    with TestClient(app) as client:
        assert statuses(client, *TEAM_7) == APART


def test_flask_two_keys(flask: Flask) -> None:
    view = in_flask.limited("2/hour", key=by_team)(in_flask.limited("2/hour", key=by_user)(lambda: "ok"))
    flask.add_url_rule("/a", view_func=view, endpoint="a")

    assert statuses(flask.test_client(), *TEAM_7) == APART


def test_django_two_keys(site: Any) -> None:
    view = in_django.limited("2/hour", key=by_team)(in_django.limited("2/hour", key=by_user)(ok))

    assert statuses(site(a=view), *TEAM_7) == APART


def test_django_two_keys_of_a_class(site: Any) -> None:
    @method_decorator(in_django.limited("2/hour", key=by_team), name="dispatch")
    @method_decorator(in_django.limited("2/hour", key=by_user), name="dispatch")
    class Page(View):
        def get(self, request: Any) -> HttpResponse:
            return HttpResponse("ok")

    assert statuses(site(a=Page.as_view()), *TEAM_7) == APART


def test_flask_two_methods(flask: Flask) -> None:
    by_method = [in_flask.limited("1/hour", key="ip", methods=[method]) for method in ("GET", "POST")]
    flask.add_url_rule("/a", view_func=by_method[0](by_method[1](lambda: "ok")), endpoint="a", methods=["GET", "POST"])

    assert statuses(flask.test_client(), "GET /a", "POST /a", "GET /a", "POST /a") == [OK, OK, 429, 429]


def test_flask_default_beside_an_own_rule(store: ValkeyServer, limiter: Limiter) -> None:
    """The default limits the methods that the view's own rule leaves out."""
    app = Flask(__name__)
    in_flask.install(app, limiter, default=in_flask.limited("1/hour", key="ip"))
    view = in_flask.limited("1/hour", key="ip", methods=["POST"])(lambda: "ok")
    app.add_url_rule("/a", view_func=view, endpoint="a", methods=["GET", "POST"])

    assert statuses(app.test_client(), "GET /a", "POST /a", "GET /a", "POST /a") == [OK, OK, 429, 429]


def test_django_two_methods(site: Any) -> None:
    view = in_django.limited("1/hour", key="ip", methods=["GET"])(
        in_django.limited("1/hour", key="ip", methods=["POST"])(ok)
    )

    assert statuses(site(a=view), "GET /a", "POST /a", "GET /a", "POST /a") == [OK, OK, 429, 429]


# Decorators at the wrong place.


def test_fastapi_decorator_below_the_route(fast: FastAPI) -> None:
    """As every user of slowapi writes it."""

    @fast.get("/a")
    @in_fastapi.limited("1/hour", key="ip")
    async def awaited(q: int = 1) -> int:
        return q

    @fast.get("/b")
    @in_fastapi.limited("1/hour", key="ip")
    def called(request: Request, **more: Any) -> str:
        return request.url.path

    with TestClient(fast) as client:
        assert client.get("/a?q=5").json() == 5
        assert statuses(client, "GET /a", "GET /b more=1", "GET /b more=1") == [429, OK, 429]


def test_fastapi_decorator_above_the_route(fast: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @in_fastapi.limited("1/hour", key="ip")
    @fast.get("/a")
    def upside_down() -> str:
        return "ok"

    with TestClient(fast):
        assert "upside_down: a limit has no effect" in caplog.text


@pytest.mark.parametrize("by_default", [False, True])
def test_starlette_functions_of_one_name_under_two_mounts(store: ValkeyServer, by_default: bool) -> None:
    once = in_starlette.limited("1/hour", key="ip")

    def view() -> Any:
        async def read(request: Any) -> PlainTextResponse:
            return PlainTextResponse("ok")

        return read if by_default else once(read)

    def resource() -> list[Route]:
        return [Route("/x", view()), Route("/x", view(), methods=["POST"])]

    app = Starlette(routes=[Mount("/a", routes=resource()), Mount("/{tenant}", routes=resource())])
    in_starlette.install(app, aio.Limiter(store.url, timeout=1.0), default=once if by_default else None)
    with TestClient(app) as client:
        assert statuses(client, *PLACES) == FOUR
        assert statuses(client, "GET /c/x") == [429]  # what a client writes there gives it no other counter


def test_fastapi_a_limit_without_depends(fast: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    once = in_fastapi.limited("1/hour", key="ip")

    def by_default(decision: Any = once) -> str:
        return "ok"

    def by_annotation(decision: Any = None) -> str:
        return "ok"

    by_annotation.__annotations__["decision"] = Annotated[Any, once]
    fast.get("/a")(by_default)
    fast.get("/b", dependencies=[Depends(by_annotation)])(lambda: "ok")

    with TestClient(fast):
        for name in ("by_default", "by_annotation"):
            assert f"{name}: the limit in parameter 'decision' has no effect. Put it into Depends(...)" in caplog.text


def test_fastapi_decorator_above_the_route_of_a_mounted_application(
    fast: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    """It is also seen by a server without lifespan events."""
    mounted = FastAPI()

    @in_fastapi.limited("1/hour", key="ip")
    @mounted.get("/a")
    def upside_down() -> str:
        return "ok"

    fast.mount("/m", mounted)

    assert statuses(TestClient(fast), "GET /m/a", "GET /m/a") == [OK, OK]
    assert caplog.text.count("upside_down: a limit has no effect") == 1


def test_fastapi_decorator_of_a_class(fast: FastAPI) -> None:
    with pytest.raises(TypeError, match="operation: must be a function"):
        in_fastapi.limited("1/hour", key="ip")(SimpleNamespace())


def test_flask_decorator_above_the_route(flask: Flask, caplog: pytest.LogCaptureFixture) -> None:
    @in_flask.limited("1/hour", key="ip")
    @flask.get("/a")
    def upside_down() -> str:
        return "ok"

    flask.test_client().get("/a")
    assert "upside_down: a limit has no effect" in caplog.text


def test_control_a_view_that_is_limited_at_one_of_two_routes(flask: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """That is meant, and nothing is logged."""

    def view() -> str:
        return "ok"

    flask.add_url_rule("/a", view_func=view, endpoint="free")
    flask.add_url_rule("/b", view_func=in_flask.limited("1/hour", key="ip")(view), endpoint="limited")

    assert statuses(flask.test_client(), "GET /a", "GET /b", "GET /b", "GET /a") == [OK, OK, 429, OK]
    assert "no effect" not in caplog.text


def test_starlette_decorator_after_the_route(store: ValkeyServer, caplog: pytest.LogCaptureFixture) -> None:
    async def upside_down(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/a", upside_down)])
    in_starlette.limited("1/hour", key="ip")(upside_down)
    in_starlette.install(app, aio.Limiter(store.url, timeout=1.0))
    with TestClient(app):
        assert "upside_down: a limit has no effect" in caplog.text


def test_classes_are_refused() -> None:
    """In Starlette and Flask, whose classes have methods or decorators to be limited."""
    for door in (in_starlette, in_flask):
        with pytest.raises(TypeError, match="must be a function"):
            door.limited(THREE, key="ip")(View)


# Handlers that the application has already.


def own(*_: Any) -> Any:
    return "own", 418


async def own_response(*_: Any) -> PlainTextResponse:
    return PlainTextResponse("own", 418)


@pytest.mark.parametrize("given", ["constructor", "before", "after"])
def test_fastapi_keeps_an_own_handler(store: ValkeyServer, given: str) -> None:
    handlers: dict[Any, Any] = {Denied: own_response} if given == "constructor" else {}
    app = FastAPI(exception_handlers=handlers)
    if given == "before":
        app.add_exception_handler(Denied, own_response)
    in_fastapi.install(app, aio.Limiter(store.url, timeout=1.0))
    if given == "after":
        app.add_exception_handler(Denied, own_response)
    never = in_fastapi.limited(Limit(quota=0, window_seconds=60), key="ip")
    app.get("/a", dependencies=[Depends(never)])(lambda: "ok")

    with TestClient(app) as client:
        assert client.get("/a").status_code == 418


def test_flask_keeps_an_own_handler(limiter: Limiter) -> None:
    app = Flask(__name__)
    app.register_error_handler(Denied, own)
    in_flask.install(app, limiter)
    app.add_url_rule("/a", view_func=in_flask.limited(Limit(quota=0, window_seconds=60), key="ip")(ok), endpoint="a")

    assert statuses(app.test_client(), "GET /a") == [418]


# What is forgotten.


def test_fastapi_without_install() -> None:
    app = FastAPI()
    app.get("/a", dependencies=[Depends(in_fastapi.limited(THREE, key="ip"))])(lambda: "ok")

    with TestClient(app) as client, pytest.raises(RuntimeError, match="Sluicegate is not installed"):
        client.get("/a")


def test_starlette_without_install() -> None:
    app = Starlette(routes=[Route("/a", in_starlette.limited(THREE, key="ip")(own_response))])

    with TestClient(app) as client, pytest.raises(RuntimeError, match="Sluicegate is not installed"):
        client.get("/a")


def test_flask_without_install() -> None:
    app = Flask(__name__)
    app.testing = True
    app.add_url_rule("/a", view_func=in_flask.limited(THREE, key="ip")(lambda: "ok"), endpoint="a")

    with pytest.raises(RuntimeError, match="Sluicegate is not installed"):
        app.test_client().get("/a")


def test_installed_twice(fast: FastAPI, flask: Flask, limiter: Limiter) -> None:
    with pytest.raises(ValueError, match="already installed"):
        in_fastapi.install(fast)
    with pytest.raises(ValueError, match="already installed"):
        in_flask.install(flask, limiter)


@pytest.mark.parametrize("door", [in_fastapi, in_starlette, in_flask, in_django])
def test_without_a_key(door: Any) -> None:
    """It could mean everybody together as well as each caller."""
    with pytest.raises(ValueError, match="key: must be 'ip'"):
        door.limited(THREE)


@pytest.mark.parametrize("door", [in_fastapi, in_starlette, in_flask, in_django])
def test_type_checkers_know_the_same_keys(door: Any) -> None:
    names = get_args(get_args(door.Key)[0])
    for name in names:
        door.limited(THREE, key=name)
    with pytest.raises(ValueError, match=f"key: must be {', '.join(map(repr, names))} or "):
        door.limited(THREE, key="usr")


@pytest.mark.parametrize("door", [in_fastapi, in_starlette, in_flask, in_django])
def test_a_key_in_words_of_another_library(door: Any) -> None:
    with pytest.raises(ValueError, match="key: must be 'ip'"):
        door.limited(THREE, key="remote_address")


def test_django_key_user_without_its_middleware(site: Any) -> None:
    with pytest.raises(Exception, match="AuthenticationMiddleware"):
        site(a=in_django.limited(THREE, key="user")(ok)).get("/a")


def test_django_both_middleware(settings: Any) -> None:
    prefix = "enforcement.doors.django."
    settings.MIDDLEWARE = [f"{prefix}DecisionMiddleware", f"{prefix}LimitMiddleware"]

    assert [found.id for found in in_django.check_settings()] == ["sluicegate.E002"]


def test_drf_num_proxies(settings: Any) -> None:
    throttle = "enforcement.doors.drf.UserRateThrottle"
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_CLASSES": [throttle], "NUM_PROXIES": 1}

    assert [found.id for found in in_django.check_settings()] == ["sluicegate.W002"]


def test_drf_a_rate_that_is_none_of_ours(settings: Any) -> None:
    throttle = "enforcement.doors.drf.UserRateThrottle"
    rates = {"user": "100/fortnight"}
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_CLASSES": [throttle], "DEFAULT_THROTTLE_RATES": rates}

    assert [found.id for found in in_django.check_settings()] == ["sluicegate.E003"]
    with pytest.raises(Exception, match="not valid"):
        type("Mine", (in_drf.SimpleRateThrottle,), {"rate": "100/fortnight"})


def test_a_limiter_of_the_other_kind(limiter: Limiter, store: ValkeyServer) -> None:
    """One for threads would block the event loop, and a call of the other one is not awaited."""
    awaited = aio.Limiter(store.url)
    for wrong in (
        lambda: LimitMiddleware(own_response, limiter),  # type: ignore[arg-type]
        lambda: in_fastapi.install(FastAPI(), limiter),  # type: ignore[arg-type]
        lambda: in_starlette.install(Starlette(), limiter),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"limiter: must be an enforcement\.aio\.Limiter"):
            wrong()
    with pytest.raises(TypeError, match=r"limiter: must be an enforcement\.Limiter"):
        in_flask.install(Flask(__name__), awaited)  # type: ignore[arg-type]


def test_asgi_a_preset_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="must be one of ietf"):
        LimitMiddleware(own_response, headers="draft-6")  # type: ignore[arg-type]


# Calls of the library.


def test_an_await_that_is_forgotten(store: ValkeyServer) -> None:
    """It admits everything. Python says so, and names the method."""

    async def forgetful() -> bool:
        limiter = aio.Limiter(store.url)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            admitted = bool(limiter.hit(Limit.parse("1/hour"), "a"))
            gc.collect()
        assert "coroutine 'Limiter.hit' was never awaited" in str(caught[0].message)
        return admitted

    assert asyncio.run(forgetful())


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: Limit(5, 60), r"Limit\(quota=5, window_seconds=60\) or Limit.parse\('5/minute'\)"),  # type: ignore[misc]
        (lambda: Limit.parse("5/minute", algoritm="sliding_log"), "algoritm"),  # type: ignore[call-arg]
        (lambda: Limit.parse("5/minute", algorithm="slidng"), "algorithm: Must be one of"),  # type: ignore[arg-type]
        (lambda: Limiter(FakeRedis()), "url: must not be of fakeredis"),
    ],
)
def test_an_argument_that_is_wrong(call: Callable[[], Any], reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=reason):
        call()


class FakeConnection:
    __module__ = "fakeredis._connection"


class FakeRedis:
    """What a client of fakeredis looks like. It has the default address of a real server."""

    connection_pool = SimpleNamespace(connection_kwargs={"host": "localhost"}, connection_class=FakeConnection)


def test_a_token_with_its_scheme(limiter: Limiter, caplog: pytest.LogCaptureFixture) -> None:
    """It is no known token, and the log says why."""
    assert limiter.check("Bearer sg_live_abc").reason == "unknown_token"
    assert "A token begins with 'Bearer '" in caplog.text
    assert "sg_live" not in caplog.text


def test_names_and_texts(limiter: Limiter) -> None:
    """A debugger shows a limiter, and an editor no names of modules that are not public."""
    assert repr(limiter).startswith("<enforcement.limiter.Limiter ")
    assert not {"Any", "TYPE_CHECKING", "import_module", "async_tasks"} & {*dir(enforcement)}
    assert {"Limit", "Limiter", "__version__"} <= {*dir(enforcement)}


# Addresses of clients, as django-ratelimit has them.


def addressed(peer: str, **fields: str) -> dict[str, Any]:
    return {"REMOTE_ADDR": peer} | {f"HTTP_{name.upper()}": value for name, value in fields.items()}


OPTIONS = {"TRUSTED_PROXIES": ["10.0.0.1"], "ADDRESS_FIELD": "X-Real-IP", "IPV4_BITS": 24, "IPV6_BITS": 48}
CALLS = [
    (addressed("10.0.0.1", x_real_ip="192.0.2.7"), OK),
    (addressed("10.0.0.1", x_real_ip="192.0.2.9", x_forwarded_for="198.51.100.1"), 429),  # of the same /24
    (addressed("192.0.2.8", x_real_ip="203.0.113.5"), 429),  # no proxy, so that it counts by itself
    (addressed("10.0.0.1", x_real_ip="2001:db8:1:2::1"), OK),
    (addressed("10.0.0.1", x_real_ip="2001:db8:1:3::1"), 429),  # of the same /48
    (addressed("10.0.0.1", x_real_ip="nonsense"), OK),
    (addressed("10.0.0.1"), 429),  # both count as the proxy
]


def test_flask_address_by_a_field_and_masks(limiter: Limiter) -> None:
    app = Flask(__name__)
    app.config["SLUICEGATE"] = OPTIONS
    in_flask.install(app, limiter)
    app.add_url_rule("/a", view_func=in_flask.limited("1/hour", key="ip")(lambda: "ok"), endpoint="a")
    client = app.test_client()

    assert [client.get("/a", environ_overrides=call).status_code for call, _ in CALLS] == [it for _, it in CALLS]


def test_django_address_by_a_field_and_masks(site: Any, settings: Any) -> None:
    client = site(a=in_django.limited("1/hour", key="ip")(ok))
    settings.SLUICEGATE = settings.SLUICEGATE | OPTIONS

    assert [client.get("/a", **call).status_code for call, _ in CALLS] == [status for _, status in CALLS]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"ADDRESS_FIELD": "X-Real-IP"}, "needs TRUSTED_PROXIES"),
        ({"ADDRESS_FIELD": "X Real"}, "must be the name of a header field"),
        ({"IPV4_BITS": 33}, "must be an integer from 8 to 32, got 33"),
        ({"IPV6_BITS": "64"}, "must be an integer from 16 to 128, got '64'"),
        ({"TRUSTED_PROXIES": "10.0.0.1"}, "must be a list of strings"),
        ({"TRUSTED_PROXY": ["10.0.0.1"]}, "unknown option"),
    ],
)
def test_an_option_that_is_wrong(settings: Any, options: dict[str, Any], rule: str) -> None:
    settings.SLUICEGATE = options

    (found,) = in_django.check_settings()
    assert rule in found.msg


@pytest.mark.parametrize("paths", ["/healthz", ["healthz"], [None]])
def test_paths_that_are_exempt_by_mistake(paths: Any) -> None:
    """A string has the characters of a path, of which one is ``/``."""
    for door in (LimitMiddleware, WSGIMiddleware):
        with pytest.raises(ValueError, match="exempt: must be a list of paths that begin with /"):
            door(own_response, exempt=paths)


def test_flask_options_that_come_too_late(flask: Flask, caplog: pytest.LogCaptureFixture) -> None:
    flask.config["SLUICEGATE"] = {"TRUSTED_PROXIES": ["10.0.0.1"]}

    flask.test_client().get("/a")
    flask.test_client().get("/a")
    assert caplog.text.count("app.config['SLUICEGATE'] was changed after install()") == 1


@pytest.mark.parametrize("peer", ["10.0.0.1", "8.8.8.8"])
def test_flask_a_proxy_that_is_not_trusted(flask: Flask, caplog: pytest.LogCaptureFixture, peer: str) -> None:
    """All of its clients count as one. A peer with a public address may be a client that forges the field."""
    flask.add_url_rule("/a", view_func=in_flask.limited("1/hour", key="ip")(lambda: "ok"), endpoint="a")
    client, call = flask.test_client(), addressed(peer, x_forwarded_for="192.0.2.7")

    assert [client.get("/a", environ_overrides=call).status_code for _ in range(2)] == [OK, 429]
    assert caplog.text.count("X-Forwarded-For is ignored") == (peer == "10.0.0.1")


@pytest.mark.parametrize("door", [in_flask, in_django])
def test_a_method_that_does_not_exist(door: Any, caplog: pytest.LogCaptureFixture) -> None:
    door.limited(THREE, key="ip", methods=["PSOT", "GET"])

    assert "HTTP itself has no 'PSOT'" in caplog.text
    assert "'GET'" not in caplog.text


# What flask-limiter calls deduct_when and on_breach.


def test_flask_charges_by_the_response(flask: Flask) -> None:
    """A response that does not meet the condition costs nothing, and a denied request neither."""
    view = in_flask.limited("1/hour", key="ip", charge_if=lambda response: response.status_code == 404)(by_path)
    flask.add_url_rule("/a/<int:status>", view_func=view, endpoint="a")

    asked = ["GET /a/200", "GET /a/200", "GET /a/404", "GET /a/200"]
    assert flask.test_client().get("/a/200").headers["RateLimit"].startswith('"1-per-hour";r=1;')
    assert statuses(flask.test_client(), *asked) == [OK, OK, 404, 429]


def by_path(status: int) -> Any:
    return "ok", status


@pytest.mark.parametrize(("answer", "status"), [(("later", 418), 418), (None, 429)])
def test_flask_answers_a_denial_itself(limiter: Limiter, answer: Any, status: int) -> None:
    """For a view and for the default. The fields of the limits are on the response all the same."""
    seen: list[Any] = []

    def on_denial(decision: Any) -> Any:
        seen.append(decision.denied_by)
        return answer

    app = Flask(__name__)
    in_flask.install(app, limiter, default=in_flask.limited("1/hour", key="ip", on_denial=on_denial))
    limited = in_flask.limited("1/hour", key="ip", on_denial=on_denial)
    app.add_url_rule("/a", view_func=limited(lambda: "ok"), endpoint="a")
    app.add_url_rule("/b", view_func=lambda: "ok", endpoint="b")
    client = app.test_client()

    assert statuses(client, "GET /a", "GET /a", "GET /b", "GET /b") == [OK, status, OK, status]
    assert seen == [("1-per-hour",)] * 2
    assert "RateLimit" in client.get("/a").headers


@pytest.mark.parametrize("door", [in_flask, in_django])
@pytest.mark.parametrize("name", ["charge_if", "on_denial"])
def test_a_condition_that_is_no_function(door: Any, name: str) -> None:
    async def later(_: Any) -> bool:
        return False

    with pytest.raises(TypeError, match=f"{name}: must be a function"):
        door.limited(THREE, key="ip", **{name: True})
    with pytest.raises(TypeError, match=f"{name}: must not be asynchronous"):
        door.limited(THREE, key="ip", **{name: later})


def test_flask_a_condition_that_fails(limiter: Limiter) -> None:
    """The request keeps no slot."""
    slot = Limit(name="slot", algorithm="concurrency", quota=1, window_seconds=3600)
    app = Flask(__name__)
    in_flask.install(app, limiter)
    view = in_flask.limited(slot, key="all", scope="failing", charge_if=lambda response: response.no_such_field)
    app.add_url_rule("/a", view_func=view(lambda: "ok"), endpoint="a")

    assert statuses(app.test_client(), "GET /a", "GET /a") == [500, 500]
    assert limiter.peek(slot, "failing:all:").remaining == 1


MIDDLEWARE = "enforcement.doors.django.DecisionMiddleware"


@pytest.mark.parametrize("middleware", [(), (MIDDLEWARE,)])
@pytest.mark.parametrize("awaited", [False, True])
def test_django_charges_by_the_response(site: Any, middleware: tuple[str, ...], awaited: bool) -> None:
    """In views of both kinds, also without the middleware. A denied request costs nothing."""

    def answer(request: Any) -> HttpResponse:
        return HttpResponse(status=int(request.GET["status"]))

    async def later(request: Any) -> HttpResponse:
        return answer(request)

    missed = in_django.limited("1/hour", key="ip", scope="missed", charge_if=lambda it: it.status_code == 404)
    client = site(*middleware, a=missed(later if awaited else answer))

    asked = [f"GET /a status={status}" for status in (200, 200, 404, 200)]
    assert statuses(client, *asked) == [OK, OK, 404, 429]


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(("answer", "status"), [(HttpResponse(status=418), 418), (None, 429)])
def test_django_answers_a_denial_itself(site: Any, answer: Any, status: int, awaited: bool) -> None:
    """The fields of the limits are on the response all the same. A denial that the view raises is not asked about."""
    seen: list[Any] = []

    def on_denial(request: Any, decision: Any) -> Any:
        seen.append((request.path, decision.denied_by))
        return answer

    async def later(request: Any) -> HttpResponse:
        return ok()

    limited = in_django.limited("1/hour", key="ip", scope=f"breach-{status}-{awaited}", on_denial=on_denial)
    client = site(a=limited(later if awaited else ok))

    assert statuses(client, "GET /a", "GET /a") == [OK, status]
    assert "RateLimit" in client.get("/a").headers
    assert seen == [("/a", ("1-per-hour",))] * 2


@pytest.mark.parametrize("middleware", [(), (MIDDLEWARE,)])
def test_django_a_condition_that_fails(site: Any, middleware: tuple[str, ...]) -> None:
    """The request keeps no slot."""
    slot = Limit(name="slot", algorithm="concurrency", quota=1, window_seconds=3600)
    view = in_django.limited(slot, key="all", scope="failing", charge_if=lambda response: response.no_such_field)(ok)
    client = site(*middleware, a=view)
    client.raise_request_exception = False

    assert statuses(client, "GET /a", "GET /a") == [500, 500]
    assert in_django.get_limiter().peek(slot, "failing:all:").remaining == 1


# What fresh eyes got wrong.


def test_a_key_without_its_braces(limiter: Limiter) -> None:
    """It would count all users together."""

    def mail(user: int) -> None: ...

    with pytest.raises(ValueError, match=r"key: must be '\{user\}' to count by the parameter, got 'user'"):
        limiter.limited(THREE, key="user")(mail)


def test_a_key_that_is_an_object(limiter: Limiter) -> None:
    """Its text has its place in memory, so that each call would have a counter of its own."""

    @limiter.limited(THREE, key="{user}")
    def mail(user: Any) -> str:
        return "mail"

    with pytest.raises(TypeError, match="key: user must have a text; name a field of object, such as its id"):
        mail(object())
    assert [mail(7), mail("ada"), mail(OK)] == ["mail"] * 3


def test_a_middleware_twice(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.add_middleware(LimitMiddleware)
    app.build_middleware_stack()
    assert "twice" not in caplog.text

    app.add_middleware(LimitMiddleware)
    app.build_middleware_stack()
    assert "LimitMiddleware is installed twice, so that each request is charged twice" in caplog.text


# Django closes old connections when a request begins.
@pytest.mark.django_db
@pytest.mark.parametrize("door", ["fastapi", "flask", "django"])
def test_a_middleware_around_an_application_that_checks(
    door: str,
    store: ValkeyServer,
    limiter: Limiter,
    site: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each request is charged twice to the policies of its token, and the log says so."""
    monkeypatch.setattr(_guard, "_often", RateLimitedLogger(_guard.logger))
    world = World(store.url)
    world.follow(limiter)
    secret = world.everything(fixed(10))
    if door == "fastapi":
        app = FastAPI(dependencies=[Depends(in_fastapi.check())])
        in_fastapi.install(app, aio.Limiter(store.url, timeout=1.0, lookup=1.0))
        app.add_middleware(LimitMiddleware, limiter=aio.Limiter(store.url, timeout=1.0, lookup=1.0))
        app.get("/")(lambda: "ok")
        with TestClient(app) as client:
            answer = client.get("/", headers={"X-API-Key": secret})
    else:
        site("enforcement.doors.django.LimitMiddleware", **{"": ok})
        flask = Flask("app")
        in_flask.install(flask, limiter, default=in_flask.check())
        flask.get("/")(lambda: "ok")
        inner = WSGIMiddleware(WSGIHandler() if door == "django" else flask, limiter=limiter)
        answer = Caller(inner).get("/", headers={"X-API-Key": secret})
    assert answer.status_code == 200
    assert "LimitMiddleware has charged the policies of a token, which are charged again" in caplog.text
