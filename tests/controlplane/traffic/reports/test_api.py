"""Statements over REST, as files."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest

from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def token(use, spend):
    """A token with usage under a limit and money, and another project with usage."""
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute")
    token = TokenFactory(project=ProjectFactory(slug="chat"), name="ci", labels={"team": "red"})
    use(token.project, AT, token=token.pk, allowed=3, denied=1, cost=3)
    use(token.project, AT, token=token.pk, limit=f"{limit.policy_id}/per-minute", allowed=3, denied=1, cost=3)
    spend(token.project, AT, token=token.pk, micros=5, output=7)
    use(ProjectFactory(slug="other"), AT, token="tok_2", allowed=9)
    return token


def records(response) -> list[dict]:
    assert response.status_code == 200, response.content
    return [json.loads(line) for line in b"".join(response.streaming_content).decode().splitlines()]


def test_a_statement_has_its_sums_and_its_lines(api, token):
    """The total, each token, and each limit with its unit."""
    found = records(api("GET", "statements/export?month=2026-11&project=chat"))

    assert [(one["kind"], one["name"], one["id"], one["unit"], one["allowed"]) for one in found] == [
        ("total", "Total", None, None, 3),
        ("token", "ci", token.pk, None, 3),
        ("limit", "free/per-minute", None, "requests", 3),
    ]
    assert (found[1]["micros"], found[1]["output"], found[1]["denied"]) == (5, 7, 1)
    assert {one["month"] for one in found} == {"2026-11"}


@pytest.mark.parametrize(
    ("group", "name"), [("model", "gpt-x"), ("label&label=team", "red"), ("token", "ci"), ("day", "2026-11-20")]
)
def test_the_lines_are_grouped_as_asked(api, token, group, name):
    """Each group has a line for what was used."""
    found = records(api("GET", f"statements/export?month=2026-11&project=chat&group={group}"))

    assert name in [one["name"] for one in found if one["kind"] == group.partition("&")[0]] or group == "day"


def test_csv_has_a_column_for_each_count(api, token):
    """The same in each line, so that a spreadsheet sums them."""
    response = api("GET", "statements/export?month=2026-11&project=chat&format=csv")
    rows = list(csv.DictReader(io.StringIO(b"".join(response.streaming_content).decode())))

    assert [(row["kind"], row["allowed"], row["micros"]) for row in rows] == [
        ("total", "3", "5"),
        ("token", "3", "5"),
        ("limit", "3", "0"),
    ]


def test_a_token_and_a_policy_have_statements(api, token):
    """Costs of a policy have no sum, because its limits may have different units."""
    of_token = records(api("GET", f"statements/export?month=2026-11&token={token.pk}"))
    of_policy = records(api("GET", "statements/export?month=2026-11&policy=free"))

    assert of_token[0]["allowed"] == 3
    assert (of_policy[0]["allowed"], of_policy[0]["cost"], of_policy[-1]["cost"]) == (3, None, 3)


def test_a_limited_key_has_statements_of_its_projects(call, token):
    """Without a project, of all of them."""
    key = ManagementKeyFactory(projects=[token.project])

    assert records(call("GET", "statements/export?month=2026-11", key=key))[0]["allowed"] == 3
    assert call("GET", "statements/export?project=other", key=key).status_code == 400


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("month=2026-13", "month"),
        ("month=1026-11", "month"),
        ("project=none", "project"),
        ("group=hour", "group"),
        ("group=label", "label"),
        ("label=team", "label"),
        ("group=label&label=-", "label"),
        ("format=pdf", "format"),
        ("page_size=3", "page_size"),
    ],
)
def test_a_wrong_query_is_refused(api, query, parameter):
    """The error names the parameter."""
    response = api("GET", f"statements/export?{query}")

    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (400, parameter)


def test_a_token_stands_for_its_project(api, token):
    """To name another one beside it would be a contradiction."""
    response = api("GET", f"statements/export?token={token.pk}&project=chat")

    assert response.json()["errors"][0]["parameter"] == "token"
