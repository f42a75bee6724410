"""Every denial names the decision, the policy and the reason, at every door."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from django.test import Client
from django.urls import path
from fastapi import Depends, FastAPI
from flask import Flask
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.routing import Route

from enforcement import Limit, Limiter, aio
from enforcement.doors import asgi, proxy, wsgi
from enforcement.doors import flask as flask_door
from enforcement.doors import starlette as starlette_door
from enforcement.doors.drf import PolicyThrottle
from enforcement.doors.fastapi import check, install
from enforcement.model.keys import Keys
from enforcement.plan.decision_id import DecisionKey

SECRET = "a secret of the whole fleet"
INSTANCE = "proxy-7.rack-3"
REASONS = {
    "limited": "cost_exceeds_capacity",
    "unknown": "unknown_token",
    "revoked": "revoked",
    "inactive": "inactive_project",
}
NOTHING = Limit(name="nothing", quota=0, window_seconds=60)
STATUSES = {"limited": 429, "unknown": 401, "revoked": 401, "inactive": 403}


def _app(*args: Any) -> Any:
    raise AssertionError("a denied request reached the application")


async def _endpoint(request: Any) -> Any:
    raise AssertionError("a denied request reached the application")


def _fastapi_app(limiter: aio.Limiter) -> FastAPI:
    app = FastAPI()
    install(app, limiter)

    @app.get("/")
    async def read(decision: Annotated[Any, Depends(check())]) -> None:
        raise AssertionError("a denied request reached the application")

    return app


def _site(settings: Any, options: dict[str, Any], *middleware: str, view: Any) -> Client:
    """Return a client of a Django site, whose one view answers at every address."""
    settings.SLUICEGATE = {"REDIS_URL": options["url"], "TIMEOUT_MS": 1000, "INSTANCE": INSTANCE}
    settings.MIDDLEWARE = list(middleware)
    settings.ROOT_URLCONF = (path("", view),)
    return Client()


def _closed_after(request: pytest.FixtureRequest, limiter: Limiter) -> Limiter:
    request.addfinalizer(limiter.close)
    return limiter


def _serve(name: str, url: str, request: pytest.FixtureRequest) -> Any:
    """Serve an application behind the door with this name, and return a client."""
    options: dict[str, Any] = {"url": url, "instance": INSTANCE, "timeout": 1.0}
    if name == "wsgi":
        return request.getfixturevalue("serve_wsgi")(
            wsgi.LimitMiddleware(_app, _closed_after(request, Limiter(**options)))
        )
    if name == "flask":
        app = Flask("site")
        app.route("/")(flask_door.check()(_app))
        flask_door.install(app, _closed_after(request, Limiter(**options)))
        return request.getfixturevalue("serve_wsgi")(app)
    if name == "django":
        return _site(
            request.getfixturevalue("settings"), options, "enforcement.doors.django.LimitMiddleware", view=_app
        )
    if name == "drf":
        view = type("View", (APIView,), {"throttle_classes": [PolicyThrottle], "permission_classes": []})
        view.authentication_classes, view.get = [], _app
        middleware = "enforcement.doors.django.DecisionMiddleware"
        return _site(request.getfixturevalue("settings"), options, middleware, view=view.as_view())
    serve, limiter = request.getfixturevalue("serve"), aio.Limiter(**options)
    if name == "proxy":
        monkeypatch = request.getfixturevalue("monkeypatch")
        monkeypatch.setenv("SLUICEGATE_REDIS_URL", url)
        monkeypatch.setenv("SLUICEGATE_INSTANCE", INSTANCE)
        monkeypatch.setenv("SLUICEGATE_UPSTREAM_URL", "http://127.0.0.1:9")
        return serve(proxy.create_app())
    if name == "starlette":
        site = Starlette(routes=[Route("/", starlette_door.check()(_endpoint))])
        starlette_door.install(site, limiter)
        return serve(site)
    return serve(asgi.LimitMiddleware(_app, limiter) if name == "asgi" else _fastapi_app(limiter))


@pytest.fixture(params=["asgi", "wsgi", "fastapi", "starlette", "flask", "django", "drf", "proxy"])
def send(request, store):
    """Send a request with a token through the door, whose instance is named INSTANCE, and return the response."""
    clients: list[Any] = []

    def send(publish_token):
        if not clients:  # after the token was published, so that the limiter starts with it
            clients.append(_serve(request.param, store.url, request))
        return clients[0].get("/", headers={"Authorization": f"Bearer {publish_token}"})

    return send


@pytest.fixture
def publish_token(issue, client_of_store):
    """Publish a token for each kind of denial, and the fleet's secret; return the token."""
    client_of_store.set(Keys().decision_key, SECRET)

    def publish(kind):
        return issue(NOTHING, revoked=kind == "revoked", active=kind != "inactive")

    return publish


@pytest.mark.parametrize("kind", STATUSES)
def test_each_denial_names_its_decision_and_its_reason(send, publish_token, kind):
    """401 and 403 as well; the id carries what happened."""
    secret = publish_token(kind)
    answer = send("nobody" if kind == "unknown" else secret)

    found = answer.headers["Sluicegate-Decision"]
    facts = DecisionKey(SECRET).open(found)
    known = "" if kind == "unknown" else "tok_1"
    assert answer.status_code == STATUSES[kind]
    assert answer.headers["Sluicegate-Denial"] == facts.reason == REASONS[kind]
    assert len(found) < 120
    assert (facts.instance, facts.token, facts.revision) == (INSTANCE, known, 1)


@pytest.mark.parametrize(("kind", "name"), [("limited", "test/nothing"), ("revoked", "no limit")])
def test_a_line_of_the_log_names_each_denial(send, publish_token, caplog, kind, name):
    """Once, with the reason, the limit and the id. It takes the level info."""
    caplog.set_level("INFO", "sluicegate.denials")
    found = send(publish_token(kind)).headers["Sluicegate-Decision"]
    lines = [record.getMessage() for record in caplog.records if record.name == "sluicegate.denials"]

    assert lines == [f"Denied: {REASONS[kind]} by {name}, decision {found}."]


@pytest.mark.parametrize("send", ["asgi", "wsgi", "fastapi", "starlette", "flask", "django", "proxy"], indirect=True)
def test_a_problem_names_the_policy_and_the_limit_that_deny(send, publish_token):
    """Beside the list of all that do; its id is that of the field. Django REST framework has bodies of its own."""
    answer = send(publish_token("limited"))
    body = answer.json()

    assert answer.headers["Content-Type"] == "application/problem+json"
    assert body["decision"] == answer.headers["Sluicegate-Decision"]
    assert (body["policy"], body["limit"], body["violated-policies"]) == ("test", "nothing", ["nothing"])
    assert DecisionKey(SECRET).open(body["decision"]).limit == "test/nothing"


def test_each_denial_has_an_id_of_its_own(send, publish_token):
    """Also those of a token that is refused before any counter is read."""
    secret = publish_token("revoked")

    assert len({send(secret).headers["Sluicegate-Decision"] for _ in range(5)}) == 5
