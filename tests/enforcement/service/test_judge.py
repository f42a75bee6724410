"""How a proxy describes a request, and that a client cannot describe it beside the proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.enforcement.doors.conftest import bearer
from tests.enforcement.service.conftest import running
from tests.enforcement.world import World, fixed

Asked = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def asked(server) -> Iterator[Asked]:
    """Ask a service that reads costs and attributes about a request, with a token whose limit denies each POST."""
    fields = {"SLUICEGATE_COSTS_HEADER": "X-Costs", "SLUICEGATE_ATTRIBUTES_HEADER": "X-Attributes"}
    secret = World(server.url).everything(fixed(0, match={"methods": ["POST"]}))
    with running(server.url, "--server", "uvicorn", **fields) as client:

        def ask(more: Any, path: str = "/v1/check") -> httpx2.Response:
            return client.get(path, headers=httpx2.Headers([*bearer(secret).items(), *more]))

        yield ask


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ("model=a&model=b", "no name twice"),
        ("=a", "must have a name before each '='"),
        ("model=%ff", "must be UTF-8"),
        ("&".join(f"a{number}=1" for number in range(33)), "must be at most 32 pairs"),
        ("path=/free", "must not name 'path', which the request itself has"),
        ("header.x-team=a", "must not name 'header.x-team', which the request itself has"),
    ],
)
def test_attributes_that_say_two_things_are_refused(asked, attributes, rule):
    """One of them was ignored without a word."""
    answer = asked([("X-Attributes", attributes)])

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert rule in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ([("X-Forwarded-Uri", "/free"), ("X-Forwarded-Uri", "/paid")], "x-forwarded-uri: must be sent once"),
        ([("X-Forwarded-Uri", "/free, /paid")], "x-forwarded-uri: must be a path or a URL without blanks"),
        ([("X-Forwarded-Uri", "paid")], "x-forwarded-uri: must be a path or a URL without blanks"),
        ([("X-Forwarded-Method", "GET"), ("X-Forwarded-Method", "POST")], "x-forwarded-method: must be sent once"),
        ([("X-Forwarded-Method", "GET, POST")], "x-forwarded-method: must be a method, got 'GET, POST'"),
        ([("X-Costs", "requests=0"), ("X-Costs", "requests=1")], "x-costs: must be sent once"),
    ],
)
def test_a_proxy_that_adds_fields_to_those_of_its_client_is_noticed(asked, fields, rule):
    """Joined by a comma they named a method and a path that no limit knows, and the limits let the request pass."""
    answer = asked(fields)

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert rule in answer.json()["detail"]


@pytest.mark.parametrize(
    "costs", [f"{'u' * 30_000}=x", "=" + "x" * 30_000, "u" * 30_000, f"{'U' * 30_000}=1", "a=b=" * 7_000]
)
def test_a_refusal_does_not_repeat_all_that_it_refuses(asked, costs):
    """nginx gets it in a header field, and takes a field that is too long for a service that is gone."""
    answer = asked([("X-Costs", costs)], "/v1/check403")

    assert (answer.status_code, answer.headers["Sluicegate-Status"]) == (403, "400")
    assert len(answer.headers["Sluicegate-Problem"]) < 500


@pytest.mark.parametrize("method", ["post", "Post"])
def test_the_case_of_a_method_makes_no_difference(asked, method):
    """Django and Flask take it for POST, and Caddy hands it on."""
    assert asked([("X-Forwarded-Method", method)]).status_code == 429
