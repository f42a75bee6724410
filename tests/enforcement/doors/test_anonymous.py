"""Requests without a token at every door that checks policies, over HTTP, deciding with a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from fastapi import Depends, FastAPI
from flask import Flask
from rest_framework.response import Response
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from enforcement import Limit, Limiter, aio
from enforcement.doors import asgi, django, drf, fastapi, flask, proxy, starlette, wsgi
from enforcement.doors.fastapi import admit, check, install
from enforcement.embedded import ValkeyServer
from enforcement.http.limits_page import USAGE_PATH
from enforcement.model.tokens import mint
from enforcement.testing import Published, Store
from tests.enforcement.doors.conftest import Serve, bearer

GUESTS = Limit(name="guests", quota=2, window_seconds=3600, partition_by=("path",))
SHOP = {"anonymous": "shop"}
LONG = f"/{'x' * 1_024}"
CHALLENGE = 'Bearer realm="sluicegate"'
INVALID = f'{CHALLENGE}, error="invalid_token"'


async def hello(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def hello_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


class Doors:
    """Makes and serves an application behind each door. Its options are those of the door, or none."""

    def __init__(self, url: str, serve: Serve, serve_wsgi: Serve, settings: Any, monkeypatch: Any) -> None:
        self.url, self.serve, self.serve_wsgi = url, serve, serve_wsgi
        self.settings, self.monkeypatch = settings, monkeypatch
        self.closing = ExitStack()

    def asgi(self, **options: Any) -> Any:
        return self.serve(asgi.LimitMiddleware(hello, aio.Limiter(self.url, timeout=1.0, lookup=5.0), **options))

    def wsgi(self, **options: Any) -> Any:
        door = wsgi.LimitMiddleware(hello_wsgi, Limiter(self.url, timeout=1.0, lookup=5.0), **options)
        self.closing.callback(door.close)
        return self.serve_wsgi(door)

    def fastapi(self, dependency: Any = check, **options: Any) -> Any:
        app = FastAPI()
        install(app, aio.Limiter(self.url, timeout=1.0, lookup=5.0), **options)
        app.add_route(USAGE_PATH, fastapi.usage)
        app.get("/{name}", dependencies=[Depends(dependency())])(lambda name: "hello")
        return self.serve(app)

    def fastapi_admit(self, **options: Any) -> Any:
        return self.fastapi(admit, **options)

    def starlette(self, **options: Any) -> Any:
        app = Starlette(routes=[Route("/{name}", starlette.check()(lambda request: PlainTextResponse("hello")))])
        app.add_route(USAGE_PATH, starlette.usage)
        starlette.install(app, aio.Limiter(self.url, timeout=1.0, lookup=5.0), **options)
        return self.serve(app)

    def flask(self, **options: Any) -> Any:
        app = Flask(__name__)
        app.config["SLUICEGATE"] = {name.upper(): value for name, value in options.items()}
        limiter = Limiter(self.url, timeout=1.0, lookup=5.0)
        self.closing.callback(limiter.close)
        flask.install(app, limiter, default=flask.check())
        app.add_url_rule(USAGE_PATH, view_func=flask.usage)
        app.get("/<name>")(lambda name: "hello")
        return self.serve_wsgi(app)

    def django(self, **options: Any) -> Any:
        self._site("enforcement.doors.django.LimitMiddleware", lambda request, name: HttpResponse("hello"), options)
        return self.serve_wsgi(get_wsgi_application())

    def django_async(self, **options: Any) -> Any:
        async def view(request: Any, name: str) -> HttpResponse:
            return HttpResponse("hello")

        self._site("enforcement.doors.django.LimitMiddleware", view, options)
        return self.serve(get_asgi_application())

    def drf(self, **options: Any) -> Any:
        fields = {"throttle_classes": [drf.PolicyThrottle], "authentication_classes": [], "permission_classes": []}
        fields["get"] = lambda self, request, name: Response("hello")
        view = type("Hello", (APIView,), fields).as_view()
        self._site("enforcement.doors.django.DecisionMiddleware", view, options)
        self.settings.ROOT_URLCONF += (path(USAGE_PATH[1:], django.usage),)
        return self.serve_wsgi(get_wsgi_application())

    def proxy(self, **options: Any) -> Any:
        self.monkeypatch.setenv("SLUICEGATE_REDIS_URL", self.url)
        self.monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", str(self.serve(hello).base_url))
        self.monkeypatch.setenv("SLUICEGATE_TIMEOUT_MS", "1000")  # a busy machine takes longer than it does usually
        self.monkeypatch.setenv("SLUICEGATE_LOOKUP_MS", "5000")
        self.monkeypatch.setenv("SLUICEGATE_ANONYMOUS_PROJECT", options.get("anonymous", ""))
        self.monkeypatch.setenv("SLUICEGATE_HEADERS", options.get("headers", ""))
        self.monkeypatch.setenv("SLUICEGATE_USAGE_ENDPOINT", str(options.get("usage_endpoint", True)).lower())
        self.monkeypatch.setenv("SLUICEGATE_TRUSTED_PROXIES", ",".join(options.get("trusted_proxies", ())))
        return self.serve(proxy.create_app())

    def _site(self, middleware: str, view: Any, options: dict[str, Any]) -> None:
        more = {name.upper(): value for name, value in options.items()}
        self.settings.SLUICEGATE = {"REDIS_URL": self.url, "TIMEOUT_MS": 1000, "LOOKUP_MS": 5000, **more}
        self.settings.MIDDLEWARE = [middleware]
        self.settings.ROOT_URLCONF = (path("<name>", view),)


@pytest.fixture
def published(store: ValkeyServer) -> Iterator[Published]:
    """Publish the project "shop", whose requests without a token may be two for each path."""
    Store(store).clear()
    published = Published(store.url)
    published.globally(None)
    published.policy("guests", GUESTS)
    published.project("shop", anonymous_policy="guests")
    yield published
    published.close()


DOORS = "asgi wsgi starlette flask fastapi fastapi_admit django django_async drf proxy"


@pytest.fixture(params=DOORS.split())
def door(
    request: pytest.FixtureRequest,
    published: Published,
    store: ValkeyServer,
    serve: Serve,
    serve_wsgi: Serve,
    settings: Any,
    monkeypatch: Any,
) -> Iterator[Callable[..., Any]]:
    """Serve an application behind a door; return a client of it."""
    doors = Doors(store.url, serve, serve_wsgi, settings, monkeypatch)
    with doors.closing:
        yield getattr(doors, request.param)


def test_requests_without_a_token_fall_under_the_anonymous_policy(door: Any) -> None:
    """By their attributes, with the fields of a decision, and 429 beyond the limit."""
    client = door(**SHOP)

    answers = [client.get(address) for address in ("/a", "/a", "/b", "/a")]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[1].headers["RateLimit"].startswith('"guests";r=0')
    assert answers[1].headers["RateLimit-Policy"].startswith('"guests";q=2;w=3600')
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 3600


def test_requests_without_a_token_are_refused_where_no_project_is_named(door: Any) -> None:
    """That a project admits them says nothing about this door."""
    answer = door().get("/a")

    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, CHALLENGE)
    assert "RateLimit" not in answer.headers


@pytest.mark.parametrize("door", [name for name in DOORS.split() if name != "drf"], indirect=True)
@pytest.mark.parametrize(
    ("preset", "path", "error"),
    [
        ("ietf+openai", "/a", {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}),
        ("openai", LONG, {"type": "invalid_request_error", "param": None, "code": "attribute_too_long"}),
        ("anthropic", "/a", {"type": "authentication_error"}),
        ("anthropic", LONG, {"type": "invalid_request_error"}),
    ],
    ids=["openai-token", "openai-length", "anthropic-token", "anthropic-length"],
)
def test_a_refusal_has_the_shape_that_the_preset_names(
    door: Any, preset: str, path: str, error: dict[str, Any]
) -> None:
    """As a denial has, though nothing was decided: the SDK of the provider shows the sentence."""
    answer = door(headers=preset, **SHOP if path == LONG else {}).get(path)

    said, kind = answer.json()["error"], answer.headers["Content-Type"]
    sentence = said.pop("message")
    assert (said, kind, answer.status_code) == (error, "application/json", 414 if path == LONG else 401)
    assert sentence.startswith("path: must have at most" if path == LONG else "Send a token as 'Authorization")


@pytest.mark.parametrize("door", [name for name in DOORS.split() if name != "drf"], indirect=True)
def test_a_refusal_names_its_reason_in_a_field(door: Any) -> None:
    """As a denial does; it has no id, for nothing was decided."""
    client = door()
    reasons = [client.get(path).headers["Sluicegate-Denial"] for path in ("/a", "/a")]

    assert reasons == ["missing_token"] * 2
    assert "Sluicegate-Decision" not in client.get("/a").headers


def test_a_token_that_is_shown_and_wrong_is_never_anonymous(door: Any, published: Published) -> None:
    """Whether unknown, revoked, garbage, empty or sent in another form, the answer is 401."""
    client, revoked = door(**SHOP), published.token(project="shop", revoked=True)

    wrong = [bearer(token) for token in (mint("live"), "garbage", "shop", "anonymous", revoked)]
    answers = [client.get("/a", headers=headers) for headers in [*wrong, {"X-API-Key": "garbage"}]]
    assert [answer.status_code for answer in answers] == [401] * 6
    assert [answer.headers["WWW-Authenticate"] for answer in answers] == [INVALID] * 6
    shown = [{"Authorization": value} for value in ("Bearer", revoked, "Basic dXNlcjpwYXNz", "")] + [{"X-API-Key": ""}]
    assert [client.get("/a", headers=headers).status_code for headers in shown] == [401] * 5
    assert client.get("/a").headers["RateLimit"].startswith('"guests";r=1')  # nothing was charged


@pytest.mark.parametrize("field", ["x-goog-api-key", "api-key"])
def test_a_token_in_the_field_of_a_providers_sdk_is_a_token(door: Any, published: Published, field: str) -> None:
    """One that is revoked is refused. A token in an earlier field counts before it."""
    published.policy("own", Limit(name="own", quota=9, window_seconds=3600))
    first, second = (published.token(project="shop", policy="own") for _ in range(2))
    revoked, client = published.token(project="shop", revoked=True), door(**SHOP)

    answers = [client.get("/a", headers=headers) for headers in ({field: first}, {**bearer(second), field: first})]
    assert [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers] == ['"own";r=8'] * 2
    assert client.get("/a", headers={field: revoked}).status_code == 401


@pytest.mark.parametrize("door", [name for name in DOORS.split() if name != "proxy"], indirect=True)
def test_a_key_of_the_application_in_such_a_field_is_no_token(door: Any) -> None:
    """The request is as anonymous as it was. A door that meters takes whatever an SDK was given for a token."""
    client = door(**SHOP)
    answers = [client.get("/a", headers={name: "a-key"}) for name in ("api-key", "x-goog-api-key")]

    assert [answer.headers["RateLimit"].startswith('"guests"') for answer in answers] == [True, True]


def test_requests_with_a_token_are_limited_by_its_own_policies(door: Any, published: Published) -> None:
    """Before and after requests without one."""
    published.policy("own", Limit(name="own", quota=9, window_seconds=3600))
    headers, client = bearer(published.token(project="shop", policy="own")), door(**SHOP)

    answers = [client.get("/a", headers=one) for one in ({}, headers, {}, headers, {})]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]
    assert answers[3].headers["RateLimit"].startswith('"own";r=7')


@pytest.mark.parametrize(
    ("project", "status", "reason"),
    [
        ({"slug": "shop"}, 401, "token_required"),
        ({"slug": "shop", "anonymous_policy": "guests", "active": False}, 403, "inactive_project"),
    ],
    ids=["no policy", "inactive"],
)
def test_a_project_that_admits_none_is_no_open_door(
    door: Any, published: Published, project: dict[str, Any], status: int, reason: str
) -> None:
    """A door that names a project without an anonymous policy refuses as one that names none."""
    published.project(**project)
    answer = door(**SHOP).get("/a")

    assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (
        status,
        CHALLENGE if status == 401 else None,
    )
    assert "RateLimit" not in answer.headers


def test_a_project_that_cannot_be_one_is_refused_at_the_start(door: Any) -> None:
    """With the name of the option and its rule."""
    with pytest.raises(Exception, match=r"(?i)anonymous.*must be 1 to 63 lower-case letters, digits and hyphens"):
        door(anonymous="No Slug").get("/a")
