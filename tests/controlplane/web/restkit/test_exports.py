"""Whole lists as files of CSV and JSON Lines."""

import csv
import io
import json
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.web.restkit import exports
from tests.factories import ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)


def text(response) -> str:
    assert response.streaming, response.content
    return b"".join(response.streaming_content).decode()


def json_lines(response) -> list[dict]:
    return [json.loads(line) for line in text(response).splitlines()]


def csv_rows(response) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text(response))))


@pytest.fixture
def usage():
    """Three rows of one token, and one of another project."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    token = TokenFactory(project=ProjectFactory(slug="chat"))
    own = {"project_id": token.project_id, "token_id": token.pk}
    for number in range(3):
        UsageRowFactory(period="hour", at=hour - timedelta(hours=number + 1), allowed=number, **own)
    UsageRowFactory(period="hour", at=hour - timedelta(hours=1), project_id=ProjectFactory(slug="other").pk, allowed=9)
    return token


def test_an_export_of_usage_has_all_rows_of_the_list(api, usage, monkeypatch):
    """In the same form and order, however many are read at once."""
    monkeypatch.setattr(exports, "AT_ONCE", 2)

    listed = api("GET", "usage?step=hour").json()["results"]
    exported = json_lines(api("GET", "usage/export?step=hour"))

    assert exported == listed
    assert len(exported) == 4


def test_csv_has_the_same_values(api, usage):
    """The first line names the columns, also if there is no other."""
    rows = csv_rows(api("GET", "usage/export?step=hour&format=csv&project=chat"))
    nothing = text(api("GET", "usage/export?step=hour&format=csv&unit=requests&token=none"))

    assert [(row["project"], row["limit"], row["allowed"]) for row in rows] == [
        ("chat", "", "2"),
        ("chat", "", "1"),
        ("chat", "", "0"),
    ]
    assert nothing == "at,project,token,limit,unit,allowed,denied,would_deny,cost\r\n"


@pytest.mark.parametrize(
    ("accept", "query", "kind"),
    [
        ("*/*", "", "application/jsonl"),
        ("application/json", "", "application/jsonl"),
        ("text/csv", "", "text/csv"),
        ("application/jsonl", "", "application/jsonl"),
        ("text/csv", "&format=jsonl", "application/jsonl"),
    ],
)
def test_the_format_is_chosen_by_the_query_or_by_accept(api, usage, accept, query, kind):
    """The query comes first, because a link has no headers."""
    response = api("GET", f"usage/export?step=hour{query}", accept=accept)

    name = "csv" if kind == "text/csv" else "jsonl"
    assert response["Content-Type"] == f"{kind}; charset=utf-8"
    assert response["Content-Disposition"] == f'attachment; filename="usage.{name}"'
    assert (response["Cache-Control"], "X-Request-Id" in response) == ("no-store", True)
    assert text(response)


def test_a_problem_stays_a_problem(api):
    """Whatever the client accepts."""
    response = api("GET", "usage/export?step=week&page_size=3", accept="text/csv")

    assert (response.status_code, response["Content-Type"]) == (400, "application/problem+json")
    assert {error["parameter"] for error in response.json()["errors"]} == {"step", "page_size"}


def test_a_list_does_not_accept_csv(api):
    """Only exports have it."""
    assert api("GET", "usage", accept="text/csv").status_code == 406


def test_a_limited_key_exports_its_projects(call, usage):
    """As it lists them."""
    key = ManagementKeyFactory(projects=[usage.project])

    assert {row["project"] for row in json_lines(call("GET", "usage/export?step=hour", key=key))} == {"chat"}


def test_the_audit_is_exported_as_the_admin_does(api):
    """With the records before and after, and in the order that was asked for."""
    api("POST", "projects", {"slug": "chat", "name": "=Chat"}, sluicegate_reason="=1+1")
    api("PATCH", "projects/chat", {"name": "Talk"})

    lines = json_lines(api("GET", "audit/export?order=at"))
    rows = csv_rows(api("GET", "audit/export?format=csv&action=project.create"))

    assert [line["action"] for line in lines] == ["project.create", "project.update"]
    assert (lines[1]["before"]["name"], lines[1]["after"]["name"], lines[0]["number"]) == ("=Chat", "Talk", None)
    assert (len(rows), rows[0]["reason"], json.loads(rows[0]["after"])["name"]) == (1, "'=1+1", "=Chat")


def test_an_export_reads_few_rows_at_once(api, usage, django_assert_max_num_queries):
    """Nothing is read before somebody reads the response."""
    with django_assert_max_num_queries(3):
        response = api("GET", "usage/export?step=hour")
    PolicyFactory()

    with django_assert_max_num_queries(3):
        text(response)
