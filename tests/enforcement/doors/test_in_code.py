"""One decision over limits in code with different keys, at each door that declares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from fastapi import Depends, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from enforcement import Limiter, aio
from enforcement.doors import django, fastapi, flask, starlette
from enforcement.embedded import ValkeyServer
from tests.enforcement.doors.conftest import Serve


def user(request: Any) -> Any:
    return request.headers.get("x-user")


def tier(request: Any) -> str | None:
    return None if "x-free" in request.headers else "3/hour"


PAIRS = [("2/hour", user), (tier, "all")]


@pytest.fixture(params=["flask", "starlette", "fastapi", "fastapi_admit", "django"])
def get(
    request: pytest.FixtureRequest, store: ValkeyServer, serve: Serve, serve_wsgi: Serve, settings: Any
) -> Iterator[Callable[..., Any]]:
    """Serve a view with limits of two keys behind a door; return what sends a request for a user."""
    limiter = Limiter(store.url, timeout=1.0)
    if request.param == "flask":
        site = Flask(__name__)
        flask.install(site, limiter)
        site.get("/a")(flask.limited(PAIRS)(lambda: "a"))
        client = serve_wsgi(site)
    elif request.param == "django":
        settings.SLUICEGATE = {"REDIS_URL": store.url, "TIMEOUT_MS": 1000}
        settings.MIDDLEWARE = []
        settings.ROOT_URLCONF = (path("a", django.limited(PAIRS)(lambda request: HttpResponse("a"))),)
        client = serve_wsgi(get_wsgi_application())
    elif request.param == "starlette":
        app = Starlette(routes=[Route("/a", starlette.limited(PAIRS)(lambda request: PlainTextResponse("a")))])
        starlette.install(app, aio.Limiter(store.url, timeout=1.0))
        client = serve(app)
    else:
        api, rule = FastAPI(), fastapi.admit if request.param == "fastapi_admit" else fastapi.limited
        fastapi.install(api, aio.Limiter(store.url, timeout=1.0))
        api.get("/a", dependencies=[Depends(rule(PAIRS))])(lambda: "a")
        client = serve(api)
    yield lambda name=None, **fields: client.get("/a", headers={**fields, **({"X-User": name} if name else {})})
    limiter.close()


def test_limits_of_different_keys_are_one_decision(get: Any) -> None:
    """A request that one of them denies is charged to none, and the response tells both."""
    answers = [get(name) for name in ("a", "a", "a", "b", "b")]

    assert [answer.status_code for answer in answers] == [200, 200, 429, 200, 429]
    assert [answer.headers["Sluicegate-Denial"] for answer in answers[2::2]] == ["limited", "limited"]
    assert answers[0].headers["RateLimit-Policy"] == '"2-per-hour";q=2;w=3600, "3-per-hour";q=3;w=3600'
    assert answers[3].headers["RateLimit"].startswith('"3-per-hour";r=0;')
    assert '"2-per-hour";r=1' in answers[4].headers["RateLimit"]


def test_a_pair_that_does_not_apply_is_left_out(get: Any) -> None:
    """For its key is None, or no limit was chosen. Where none applies, nothing is counted."""
    answers = [get(), get("a", **{"X-Free": "1"}), get(**{"X-Free": "1"})]

    assert [answer.headers.get("RateLimit-Policy", "")[:12] for answer in answers] == [
        '"3-per-hour"',
        '"2-per-hour"',
        "",
    ]


@pytest.mark.parametrize("limited", [flask.limited, starlette.limited, fastapi.limited, fastapi.admit, django.limited])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limits": PAIRS, "key": "ip"}, "key: must be None, because the pairs have their own keys"),
        ({"limits": [("1/hour", "ip"), "2/hour"]}, "limits: must all be pairs of limits and a key"),
        ({"limits": [("1/hour", "ip"), ("1/hour", "all")]}, "limits: names must be unique"),
        ({"limits": [("1/hour", "ip"), ("2/hour", "nobody")]}, "key: must be 'ip'"),
        ({"limits": "1/hour"}, "key: must be 'ip'"),
        ({"limits": [("1/hour", "ip"), ("2/hour", "all")], "costs": {"tokens": 1}}, "no limit of this call counts"),
    ],
)
def test_pairs_that_cannot_work_are_refused_when_they_are_declared(
    limited: Any, arguments: dict[str, Any], message: str
) -> None:
    """With the argument and its rule."""
    with pytest.raises(ValueError, match=message):
        limited(**arguments)
