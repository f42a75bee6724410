"""Suspension and the broken glass over REST."""

from datetime import timedelta

import pytest
from django.utils.dateparse import parse_datetime

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.emergency.actions import suspend, suspend_value
from controlplane.objects.emergency.models import BreakGlass, Suspension
from enforcement.model.instants import from_us
from tests.controlplane.objects.emergency.conftest import follows
from tests.factories import TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("path", ["tokens/{token}", "projects/{project}"])
def test_a_token_and_a_project_are_suspended_and_resumed(api, store, path):
    """Repeating either changes nothing. The reason of the header is kept."""
    token = TokenFactory(project__slug="chat")
    path = path.format(token=token.pk, project="chat")

    states = [
        api("POST", f"{path}/{deed}", Sluicegate_Reason="leaked?").json()["suspended"]
        for deed in ("suspend", "suspend", "resume", "resume")
    ]

    assert states == [True, True, False, False]
    assert not Suspension.objects.exists()
    kind = path.partition("s/")[0]
    entries = AuditEntry.objects.order_by("id").values_list("action", "reason")
    assert list(entries) == [(f"{kind}.suspend", "leaked?"), (f"{kind}.resume", "leaked?")]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"until": "tomorrow"}, "#/until", "unknown_field"),
        ({"ends_at": "tomorrow"}, "#/ends_at", "invalid"),
        ({"ends_at": 5}, "#/ends_at", "invalid"),
        ({"ends_at": "2026-11-01T00:00:00Z"}, "#/ends_at", "past"),
        ({"ends_at": "2255-06-01T00:00:00Z"}, "#/ends_at", "range"),
    ],
)
def test_a_wrong_end_suspends_nothing(api, store, body, pointer, code):
    """The answer names the field."""
    answer = api("POST", f"tokens/{TokenFactory().pk}/suspend", body)

    assert answer.status_code == 400
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]
    assert not Suspension.objects.exists()


@pytest.mark.parametrize("path", ["tokens/{token}", "projects/{project}"])
def test_a_suspension_has_an_end_that_can_be_changed(api, store, path):
    """A repetition without an end keeps it, and null takes it away."""
    path = path.format(token=TokenFactory(project__slug="chat").pk, project="chat")
    bodies = [{"ends_at": "2254-06-01T02:00:00+02:00"}, None, {"ends_at": "2254-07-01T00:00:00Z"}, {"ends_at": None}]

    found = [api("POST", f"{path}/suspend", body).json() for body in bodies]

    ends = ["2254-06-01T00:00:00Z", "2254-06-01T00:00:00Z", "2254-07-01T00:00:00Z", None]
    assert [(it["suspended"], it["suspended_until"]) for it in found] == [(True, end) for end in ends]


def test_an_ended_suspension_is_history(api, store, act):
    """It is listed apart, and read at its address, with who ended it."""
    body = {"project": None, "name": "ip", "value": "192.0.2.1", "reason": "x", "ends_at": "2254-06-01T00:00:00Z"}
    made = api("POST", "suspensions", body).json()
    assert (made["ends_at"], made["ended_at"], made["ended_by"]) == (body["ends_at"], None, None)
    api("DELETE", f"suspensions/{made['id']}")

    ended = api("GET", f"suspensions/{made['id']}").json()

    assert api("GET", "suspensions").json()["results"] == []
    assert api("GET", "suspensions?state=ended").json()["results"] == [ended]
    assert ended["ended_by"]
    assert ended == {**made, "ended_at": ended["ended_at"], "ended_by": ended["ended_by"]}
    assert api("DELETE", f"suspensions/{made['id']}").status_code == 404


def test_a_value_is_suspended_and_resumed(api, token, limiter):
    """Live within a second. The reason of the body is that of the row and of the audit."""
    body = {"project": "chat", "name": "session", "value": "bad", "reason": "It loops"}
    answer = api("POST", "suspensions", body)

    made = answer.json()
    assert answer.status_code == 201
    assert answer["Location"] == f"/api/v1/suspensions/{made['id']}"
    assert {name: made[name] for name in (*body, "kind", "token")} == {**body, "kind": "value", "token": None}
    assert follows(limiter, "suspended", token.secret, session="bad")
    assert api("DELETE", f"suspensions/{made['id']}", Sluicegate_Reason="over").status_code == 204
    assert follows(limiter, "ok", token.secret, session="bad")
    entries = AuditEntry.objects.filter(object_type="suspension").order_by("id").values_list("action", "reason")
    assert list(entries) == [("suspension.create", "It loops"), ("suspension.delete", "over")]


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({"name": "no spaces"}, "#/name", "rule"),
        ({"name": 5}, "#/name", "invalid"),
        ({"value": ""}, "#/value", "blank"),
        ({"value": "a\u202eb"}, "#/value", "unprintable"),
        ({"value": "x" * 1025}, "#/value", "max_length"),
        ({"reason": " "}, "#/reason", "blank"),
        ({"project": "nope"}, "#/project", "does_not_exist"),
        ({"token": "tok_1"}, "#/token", "read_only"),
        ({"until": "tomorrow"}, "#/until", "unknown_field"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(api, store, wrong, pointer, code):
    """Nothing is suspended, and above all nothing in all projects."""
    answer = api("POST", "suspensions", {"project": None, "name": "ip", "value": "192.0.2.1", "reason": "x", **wrong})

    assert answer.status_code == 400
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]
    assert not Suspension.objects.exists()


def test_all_projects_are_meant_only_by_null(api, store):
    """Whoever forgets the project does not refuse a value everywhere."""
    answer = api("POST", "suspensions", {"name": "ip", "value": "192.0.2.1", "reason": "x"})

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/project")
    assert not Suspension.objects.exists()


def test_what_is_suspended_is_listed_by_kind_and_project(api, store, act):
    """Each with its project, which null says is all of them."""
    token = TokenFactory(project__slug="chat")
    act(suspend, token)
    act(suspend, token.project)
    act(suspend_value, "ip", "192.0.2.1")
    act(suspend_value, "session", "bad", TokenFactory(project__slug="other").project)

    def listed(query=""):
        return {(row["kind"], row["project"]) for row in api("GET", f"suspensions{query}").json()["results"]}

    assert listed() == {("token", "chat"), ("project", "chat"), ("value", None), ("value", "other")}
    assert listed("?kind=value") == {("value", None), ("value", "other")}
    assert listed("?kind=token") == {("token", "chat")}
    assert listed("?kind=project") == {("project", "chat")}
    assert listed("?project=other") == {("value", "other")}


def test_a_suspended_token_is_resumed_by_its_suspension(api, store, act):
    """As its own address does."""
    token = TokenFactory()
    suspension = act(suspend, token)

    assert api("DELETE", f"suspensions/{suspension.pk}").status_code == 204
    assert not api("GET", f"tokens/{token.pk}").json()["suspended"]


def test_the_glass_is_broken_given_another_end_and_mended(api, store, document):
    """What is published is what the answer says. Mending a whole glass changes nothing."""
    assert api("GET", "break-glass").json()["broken"] is False
    first = api("PUT", "break-glass", {"seconds": 3600, "reason": "the limits are wrong"}).json()
    second = api("PUT", "break-glass", {"seconds": 7200, "reason": "still"}).json()

    assert (first["broken"], second["reason"]) == (True, "still")
    assert api("GET", "break-glass").json() == second
    assert parse_datetime(second["ends_at"]) - parse_datetime(second["began_at"]) <= timedelta(hours=2)
    published = from_us(document("emergency")["break_glass"]["ends_at_us"])
    assert published == BreakGlass.present().ends_at
    assert [api("DELETE", "break-glass").status_code for _ in range(2)] == [204, 204]
    assert api("GET", "break-glass").json()["ends_at"] is None
    assert document("emergency") is None


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"seconds": 3600}, "#/reason"),
        ({"seconds": 3600, "reason": ""}, "#/reason"),
        ({"seconds": 59, "reason": "x"}, "#/seconds"),
        ({"seconds": 86_401, "reason": "x"}, "#/seconds"),
        ({"seconds": "3600", "reason": "x"}, "#/seconds"),
        ({"reason": "x"}, "#/seconds"),
        ({"seconds": 60, "reason": "x", "ends_at": "2026-12-01T00:00:00Z"}, "#/ends_at"),
    ],
)
def test_a_glass_without_a_reason_or_a_near_end_stays_whole(api, store, body, pointer):
    """The answer names the field."""
    answer = api("PUT", "break-glass", body)

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert not BreakGlass.objects.exists()


def test_suspended_tokens_are_listed_by_their_status(api, store, act):
    """They are active too, because nothing else changes."""
    suspended = TokenFactory(project__slug="chat")
    other = TokenFactory(project=suspended.project)
    act(suspend, suspended)

    def listed(status):
        return {row["id"] for row in api("GET", f"projects/chat/tokens?status={status}").json()["results"]}

    assert listed("suspended") == {suspended.pk}
    assert listed("active") == {suspended.pk, other.pk}
