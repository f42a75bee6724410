"""The page on which consumers see their own limits, at every door, over HTTP, with a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from enforcement import Limit
from enforcement.doors import asgi, flask
from enforcement.doors._options import read_options
from enforcement.embedded import ValkeyServer
from enforcement.http.limits_page import USAGE_PATH
from enforcement.model.matching import Match
from enforcement.model.tokens import mint
from enforcement.testing import Published, Store
from tests.enforcement.doors.conftest import Serve, bearer
from tests.enforcement.doors.test_anonymous import Doors, hello
from tests.enforcement.world import eventually

HOUR = Limit(name="hourly", quota=2, window_seconds=3600)
SWITCHED = ["asgi", "wsgi", "django", "django_async", "proxy"]
"""The doors that have the page by themselves. An application adds it to the others as a view."""
EVERY = [*SWITCHED, *["starlette", "flask", "fastapi", "drf"]]


@pytest.fixture
def published(store: ValkeyServer) -> Iterator[Published]:
    Store(store).clear()
    published = Published(store.url)
    published.globally(None)
    published.project("shop")
    yield published
    published.close()


@pytest.fixture(params=EVERY)
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
    monkeypatch.setenv("SLUICEGATE_TIMEOUT_MS", "1000")  # no test here is about a store that answers late
    doors = Doors(store.url, serve, serve_wsgi, settings, monkeypatch)
    with doors.closing:
        yield getattr(doors, request.param)


def issue(published: Published, *limits: Limit) -> dict[str, str]:
    """Publish a token under these limits, and return the header fields that show it."""
    published.policy("own", *limits)  # before the door opens: one that lacks the policy says 503 until it has read it
    return bearer(published.token(project="shop", policy="own"))


def test_a_token_sees_its_limits_also_when_they_are_used_up(door: Any, published: Published) -> None:
    """And the page is charged to none of them."""
    headers, client = issue(published, HOUR), door()

    before = client.get(USAGE_PATH, headers=headers)
    statuses = [client.get("/a", headers=headers).status_code for _ in range(3)]
    after = [client.get(USAGE_PATH, headers=headers) for _ in range(3)]

    assert statuses == [200, 200, 429]
    assert before.headers["Content-Type"] == "application/json"
    assert before.headers["Cache-Control"] == "no-store"
    pages = [answer.json() for answer in (before, *after)]
    assert [page["limits"][0]["used"] for page in pages] == [0, 2, 2, 2]
    assert [page["limits"][0]["left"] for page in pages] == [2, 0, 0, 0]
    assert [answer.status_code for answer in after] == [200] * 3


def test_the_page_needs_a_token_that_is_valid(door: Any, published: Published) -> None:
    """A problem, as from any other path; no cache keeps it."""
    revoked, client = published.token(project="shop", revoked=True), door()

    answers = [client.get(USAGE_PATH, headers=it) for it in ({}, bearer("x"), bearer(mint("live")), bearer(revoked))]

    assert [answer.status_code for answer in answers] == [401] * 4
    assert [it.json()["code"] for it in answers] == ["missing_token", "unknown_token", "unknown_token", "revoked"]
    assert {it.headers["Content-Type"] for it in answers} == {"application/problem+json"}
    assert {it.headers["Cache-Control"] for it in answers} == {"no-store"}
    assert all("WWW-Authenticate" in it.headers for it in answers)


def test_the_page_is_read_by_get_and_head(door: Any, published: Published) -> None:
    """HEAD has the fields of GET and no body; anything else is 405 and charges nothing."""
    headers, client = issue(published, HOUR), door()
    page = client.get(USAGE_PATH, headers=headers)

    head = client.head(USAGE_PATH, headers=headers)
    others = [client.request(name, USAGE_PATH, headers=headers) for name in ("POST", "PUT", "DELETE", "PATCH")]

    assert (head.status_code, head.content) == (200, b"")
    assert abs(int(head.headers["Content-Length"]) - len(page.content)) < 40  # the times differ in their length
    assert [answer.status_code for answer in others] == [405] * 4
    assert all("GET" in answer.headers["Allow"] for answer in others)
    assert client.get(USAGE_PATH, headers=headers).json()["limits"][0]["used"] == 0


@pytest.mark.parametrize("value", ["", "false", 0, None])
def test_the_switch_is_a_boolean(value: Any) -> None:
    """Nobody can tell what anything else should mean. Flask has no such switch, as the page is a view there."""
    with pytest.raises(ValueError, match="usage_endpoint: must be True or False"):
        asgi.LimitMiddleware(hello, usage_endpoint=value)
    with pytest.raises(ValueError, match=r"SLUICEGATE\['USAGE_ENDPOINT'\]: must be True or False"):
        read_options({"USAGE_ENDPOINT": value}, "SLUICEGATE")
    app = Flask(__name__)
    app.config["SLUICEGATE"] = {"USAGE_ENDPOINT": False}
    with pytest.raises(ValueError, match=r"USAGE_ENDPOINT.*unknown option"):
        flask.install(app)


@pytest.mark.parametrize("door", SWITCHED, indirect=True)
def test_the_page_can_be_switched_off(door: Any, published: Published) -> None:
    """Its path then is one like any other: charged, and answered by the application, if it has it."""
    headers, client = issue(published, HOUR), door(usage_endpoint=False)

    answers = [client.get(USAGE_PATH, headers=headers) for _ in range(3)]

    assert answers[2].status_code == 429
    assert all("limits" not in answer.text for answer in answers)


def test_guests_see_their_own_limits(door: Any, published: Published) -> None:
    """Where a door admits requests without a token."""
    published.policy("guests", Limit(name="guests", quota=5, window_seconds=3600, partition_by=("ip",)))
    published.project("open", anonymous_policy="guests")
    client = door(anonymous="open")

    client.get("/a")
    (limit,) = client.get(USAGE_PATH).json()["limits"]

    assert (limit["used"], limit["left"], limit["scope"], limit["partition"]) == (
        1,
        4,
        "anonymous",
        {"ip": "127.0.0.1"},
    )


@pytest.mark.parametrize("door", ["asgi", "wsgi"], indirect=True)
def test_the_page_says_503_without_the_store(door: Any, published: Published, store: ValkeyServer) -> None:
    """Never a number that may be wrong."""
    headers, client = issue(published, HOUR), door()
    assert client.get(USAGE_PATH, headers=headers).status_code == 200

    store.freeze()
    try:
        answer = client.get(USAGE_PATH, headers=headers)
    finally:
        store.thaw()

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    # The other code says that the token could not be looked up, because the documents have just changed.
    assert answer.json()["code"] in ("usage_unavailable", "degraded_denied")


@pytest.mark.parametrize("door", ["asgi"], indirect=True)
def test_the_members_of_the_page(door: Any, published: Published) -> None:
    """One limit of each kind: what it is, whom it binds, and what is left of it."""
    limits = [
        HOUR,
        Limit(name="monthly", quota=100, calendar="month", unit="tokens"),
        Limit(name="ever", quota=9, calendar="lifetime"),
        Limit(name="bucket", algorithm="token_bucket", quota=10, window_seconds=60, burst=30),
        Limit(name="slots", algorithm="concurrency", quota=3, window_seconds=20),
        Limit(name="trial", quota=1, window_seconds=60, mode="shadow", charge_on=("2xx",)),
        Limit(name="chat", quota=7, window_seconds=60, match=Match(("POST",), "/v1/*", {"model": ("a", "b")})),
        Limit(name="by-model", quota=7, window_seconds=60, partition_by=("model", "ip")),
        Limit(name="by-path", quota=7, window_seconds=60, partition_by=("path",)),
        Limit(name="by-team", quota=7, window_seconds=60, partition_by=("header.x-team", "ip")),
    ]
    headers, client = issue(published, *limits), door()
    token = headers["Authorization"].removeprefix("Bearer ")
    ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    published.override("own/hourly", quota=5, token=token, ends_at=ends_at)

    def shown() -> dict[str, Any]:
        return client.get(USAGE_PATH, headers={**headers, "X-Team": "réd".encode()}).json()

    assert eventually(lambda: shown()["revision"] == published.revision)
    page = shown()
    rows = {row["limit"]: row for row in page["limits"]}

    assert list(rows) == [limit.name for limit in limits]
    at = datetime.fromisoformat(page["at"])
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
    hourly = rows["hourly"]
    assert (hourly["quota"], hourly["quota_source"], hourly["policy"]) == (5, "override", "own")
    assert datetime.fromisoformat(hourly["override_ends_at"]) == ends_at
    assert datetime.fromisoformat(hourly["reset_at"]).minute == 0  # windows begin with the hour
    assert 0 < hourly["reset_ms"] <= 3_600_000
    assert (rows["monthly"]["calendar"], rows["monthly"]["time_zone"], rows["monthly"]["unit"]) == (
        "month",
        "UTC",
        "tokens",
    )
    assert rows["monthly"]["window_seconds"] in {days * 86_400 for days in (28, 29, 30, 31)}
    assert (rows["ever"]["reset_at"], rows["ever"]["window_seconds"]) == (None, None)
    assert [rows["bucket"][name] for name in ("quota", "capacity", "used", "left")] == [10, 30, 0, 30]
    assert [rows["slots"][name] for name in ("used", "left", "slot_seconds", "window_seconds")] == [0, 3, 20, None]
    assert (rows["trial"]["enforcement"], rows["trial"]["charge_on"]) == ("soft", ["2xx"])
    assert {row["enforcement"] for name, row in rows.items() if name != "trial"} == {"hard"}
    assert rows["chat"]["applies_to"] == {"methods": ["POST"], "path": "/v1/*", "attributes": ["model"]}
    assert (rows["chat"]["used"], rows["chat"]["left"]) == (0, 7)
    for name in ("by-model", "by-path"):
        assert [rows[name][part] for part in ("partition", "used", "left", "reset_at")] == [None] * 4, name
    assert rows["by-team"]["partition"] == {"header.x-team": "réd".encode().decode("latin-1"), "ip": "127.0.0.1"}
    assert rows["by-team"]["left"] == 7


@pytest.mark.parametrize("door", ["asgi", "wsgi"], indirect=True)
def test_reading_the_page_writes_nothing_to_the_store(door: Any, published: Published) -> None:
    """Otherwise whoever invents header values would fill the register of partition values, without any limit."""
    team = Limit(name="team", quota=7, window_seconds=60, partition_by=("header.x-team",), mode="shadow")
    slots = Limit(name="slots", algorithm="concurrency", quota=3, window_seconds=20)
    headers, client = issue(published, HOUR, team, slots), door()
    client.get(USAGE_PATH, headers=headers)
    before = _counters(published)

    pages = [client.get(USAGE_PATH, headers={**headers, "X-Team": f"team-{i}"}).json() for i in range(20)]

    assert {row["left"] for page in pages for row in page["limits"] if row["limit"] == "team"} == {7}
    assert _counters(published) == before


@pytest.mark.parametrize("door", ["asgi"], indirect=True)
def test_a_value_beyond_the_cap_shows_the_shared_counter(door: Any, published: Published) -> None:
    """Because its requests are counted there."""
    published.policy("own", Limit(name="team", quota=7, window_seconds=3600, partition_by=("header.x-team",)))
    published.project("small", partition_cap=1)
    headers, client = bearer(published.token(project="small", policy="own")), door()

    for team in ("a", "b", "c"):
        client.get("/a", headers={**headers, "X-Team": team})
    pages = {it: client.get(USAGE_PATH, headers={**headers, "X-Team": it}).json()["limits"][0] for it in "abcd"}

    assert {team: page["used"] for team, page in pages.items()} == {"a": 1, "b": 2, "c": 2, "d": 2}
    assert {team: page["shared_counter"] for team, page in pages.items()} == {
        "a": False,
        "b": True,
        "c": True,
        "d": True,
    }


@pytest.mark.parametrize("door", ["asgi", "wsgi", "flask"], indirect=True)
def test_hostile_requests_for_the_page(door: Any, published: Published) -> None:
    """Get an answer that says what is wrong, and no other path is the page."""
    team = Limit(name="team", quota=7, window_seconds=60, partition_by=("header.x-team",))
    headers, client = issue(published, team), door()

    too_long = client.get(USAGE_PATH, headers={**headers, "X-Team": "x" * 1_025})
    assert (too_long.status_code, too_long.json()["code"]) == (431, "attribute_too_long")
    script = client.get(f"{USAGE_PATH}?q=1", headers={**headers, "X-Team": '"</script>{}\\'})
    assert script.json()["limits"][0]["partition"] == {"header.x-team": '"</script>{}\\'}
    assert client.get(USAGE_PATH, headers=bearer("x" * 5_000)).json()["code"] == "unknown_token"
    for path in (f"{USAGE_PATH}/", f"{USAGE_PATH}x", USAGE_PATH.upper(), f"/{USAGE_PATH}", f"/x{USAGE_PATH}"):
        assert b'"limits"' not in client.get(path, headers=headers).content, path


def _counters(published: Published) -> set[str]:
    """Return the names of all keys but those of the instances, which come and go."""
    return {key for key in published.client.scan_iter("sg:{*") if "instance" not in key}


@pytest.mark.parametrize("door", ["asgi"], indirect=True)
def test_a_rollover_counts_neither_as_used_nor_as_quota(door: Any, published: Published) -> None:
    """What is used is that of the window, also while nothing was carried into it."""
    month = Limit(name="month", quota=10, calendar="month", rollover=20)
    headers, client = issue(published, month, HOUR), door()

    client.get("/a", headers=headers)
    rows = {row["limit"]: row for row in client.get(USAGE_PATH, headers=headers).json()["limits"]}

    shown = [rows["month"][name] for name in ("quota", "rollover", "capacity", "used", "left")]
    assert shown == [10, 20, 30, 1, 9]
    assert [rows["hourly"][name] for name in ("rollover", "used", "left")] == [None, 1, 1]


@pytest.mark.parametrize("door", ["asgi"], indirect=True)
def test_a_consumer_sees_the_budget_of_its_team(door: Any, published: Published) -> None:
    """Shared with the other tokens of the team. A token without the label does not have that limit."""
    published.policy("teams", Limit(name="team", quota=5, window_seconds=3600, partition_by=("label.team", "ip")))
    published.project("labelled", policy="teams")
    labels = {"team": "red"}, {"team": "red"}, {}
    one, two, bare = (bearer(published.token(project="labelled", labels=it)) for it in labels)
    client = door()

    client.get("/a", headers=one)
    (row,) = client.get(USAGE_PATH, headers=two).json()["limits"]

    assert (row["used"], row["left"], row["partition_by"]) == (1, 4, ["label.team", "ip"])
    assert row["partition"] == {"label.team": "red", "ip": "127.0.0.1"}
    assert client.get(USAGE_PATH, headers=bare).json()["limits"] == []
