"""Statements as they are read, printed and exported, and by whom."""

import csv
import io
import re
from datetime import UTC, date, datetime

import pytest
from django.contrib.auth.models import User

from controlplane.objects.people.models import Membership
from controlplane.traffic.reports import report
from controlplane.web.pages.statements import scope_of
from tests.controlplane.traffic.reports.conftest import NOW
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

PAGE = "/admin/statements/monthrow/"
NOVEMBER = datetime(2026, 11, 20, 9, tzinfo=UTC)


@pytest.fixture
def chat_with_usage(use, spend):
    """A project whose two tokens have used something in November 2026."""
    policy = LimitFactory(policy=PolicyFactory(slug="free"), name="per-day").policy
    project = ProjectFactory(slug="chat", time_zone="Europe/Berlin")
    red = TokenFactory(project=project, name="red one", labels={"team": "red"}, policy=policy)
    blue = TokenFactory(project=project, name="=blue", labels={"team": "blue"}, policy=policy)
    for token, allowed, denied in ((red, 1_500, 20), (blue, 500, 0)):
        use(project, NOVEMBER, token=token.pk, allowed=allowed, denied=denied)
        use(
            project,
            NOVEMBER,
            token=token.pk,
            limit=f"{policy.pk}/per-day",
            allowed=allowed,
            denied=denied,
            cost=allowed,
        )
    spend(project, NOVEMBER, token=red.pk, micros=2_500_000, output=90)
    project.tokens_of_test = {"red": red, "blue": blue}
    return project


def lines_of(response):
    return list(csv.DictReader(io.StringIO(response.content.decode())))


def test_the_statement_of_a_project(as_ann, chat_with_usage):
    """Totals, tokens by name, limits with their unit, money, and what is not known yet."""
    page = as_ann.get(PAGE, {"project": "chat", "month": "2026-11"}).content.decode()

    for text in ("November 2026", "2,000", "2.50 USD", "red one", "free/per-day", "100.0 %", "Europe/Berlin"):
        assert text in page
    assert "2026-12-03 23:00 UTC" in page


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"group": "label", "label": "team"}, ["red", "blue"]),
        ({"group": "model"}, ["gpt-x"]),
        ({"group": "token"}, ["red one", "'=blue"]),
    ],
)
def test_lines_are_grouped_and_exported(as_ann, chat_with_usage, query, names):
    """A name that a spreadsheet would run as a formula is quoted."""
    response = as_ann.get(PAGE, {"project": "chat", "month": "2026-11", "format": "csv", **query})

    lines = lines_of(response)
    assert [line["name"] for line in lines if line["kind"] == query["group"]] == names
    assert lines[0]["kind"] == "total"
    assert (lines[0]["allowed"], lines[0]["denied"], lines[0]["money"]) == ("2000", "20", "2.5")
    assert [(line["name"], line["id_or_unit"]) for line in lines if line["kind"] == "limit"] == [
        ("free/per-day", "requests")
    ]
    assert response["Content-Disposition"] == 'attachment; filename="statement-2026-11.csv"'


def test_the_statement_of_a_token_as_json(as_ann, chat_with_usage):
    """The other token is no part of it."""
    token = chat_with_usage.tokens_of_test["red"]
    body = as_ann.get(PAGE, {"token": token.pk, "month": "2026-11", "format": "json"}).json()

    assert (body["of"], body["closes_at"]) == ("red one of chat", "2026-12-03T23:00:00+00:00")
    assert (body["total"]["allowed"], body["total"]["micros"]) == (1_500, 2_500_000)
    assert [line["id"] for line in body["by_token"]] == [token.pk]
    assert body["by_limit"][0]["limit"] == "free/per-day"


def test_the_statement_of_a_policy_counts_its_limits(as_ann, chat_with_usage):
    """In all projects that use it. Costs of different units have no sum."""
    body = as_ann.get(PAGE, {"policy": "free", "month": "2026-11", "format": "json"}).json()

    assert body["of"] == "free in chat"
    assert (body["total"]["allowed"], body["by_limit"][0]["cost"], body["total"]["micros"]) == (2_000, 2_000, 0)
    assert "cost" not in body["total"]
    lines = lines_of(as_ann.get(PAGE, {"policy": "free", "month": "2026-11", "format": "csv"}))
    assert {line["kind"]: line["cost"] for line in lines} == {"total": "", "token": "", "limit": "2000"}


def test_a_statement_can_be_printed(as_ann, chat_with_usage):
    """A page without the frame of the admin, and without a script."""
    page = as_ann.get(PAGE, {"project": "chat", "month": "2026-11", "format": "print"}).content.decode()

    assert "Statement of chat" in page
    assert "red one" in page
    assert "<script" not in page
    assert "<style" not in page


def test_corrections_are_listed(as_ann, chat_with_usage, use):
    """With the day on which they arrived."""
    use(chat_with_usage, datetime(2026, 10, 5, tzinfo=UTC), allowed=3, now=NOW)

    page = as_ann.get(PAGE, {"project": "chat", "month": "2026-10"}).content.decode()

    assert "This month was closed at" in page
    assert "2026-11-03 23:00 UTC" in page
    assert "Corrections" in page
    assert "2026-11-26" in page


def test_without_a_choice_the_page_lists_the_projects(as_ann, chat_with_usage):
    """Each leads to its statement. A month of which nothing is known says so."""
    page = as_ann.get(PAGE, {"month": "2026-11"}).content.decode()

    assert "?project=chat&amp;month=2026-11" in page
    assert "Nothing was recorded in this month." in as_ann.get(PAGE, {"month": "2020-01"}).content.decode()


def test_pages_lead_to_their_statement(as_ann, chat_with_usage):
    """From a project and from a token."""
    token = chat_with_usage.tokens_of_test["red"]

    assert (
        f"{PAGE}?project=chat" in as_ann.get(f"/admin/projects/project/{chat_with_usage.pk}/change/").content.decode()
    )
    assert f"{PAGE}?token={token.pk}" in as_ann.get(f"/admin/projects/token/{token.pk}/change/").content.decode()


@pytest.mark.parametrize(
    "query",
    [
        {"project": "none"},
        {"token": "tok_none"},
        {"policy": "none"},
        {"project": "chat", "month": "2026-13"},
        {"project": "chat", "month": "x"},
        {"project": "chat", "month": "0001-01"},
        {"project": "chat", "group": "x"},
        {"project": "chat", "format": "pdf"},
    ],
)
def test_what_is_not_there_is_not_found(as_ann, chat_with_usage, query):
    """Whatever the address says."""
    assert as_ann.get(PAGE, query).status_code == 404


def test_a_member_learns_nothing_of_other_projects(client, chat_with_usage):
    """Neither by their names, nor by sums of a shared policy."""
    user = User.objects.create_user("eve", is_staff=True)
    Membership.objects.create(user=user, project=ProjectFactory(slug="own"), role="viewer")
    client.force_login(user)
    own = PolicyFactory(slug="theirs", project=chat_with_usage)

    assert client.get(PAGE, {"project": "own", "month": "2026-11"}).status_code == 200
    hidden = [{"project": "chat"}, {"token": chat_with_usage.tokens_of_test["red"].pk}, {"policy": own.slug}]
    assert [client.get(PAGE, query).status_code for query in hidden] == [404, 404, 404]
    shared = client.get(PAGE, {"policy": "free", "month": "2026-11", "format": "json"}).json()
    assert (shared["total"]["allowed"], shared["by_limit"]) == (0, [])
    assert "project=chat" not in client.get(PAGE, {"month": "2026-11"}).content.decode()
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    assert client.get(PAGE).status_code == 403


def test_the_statement_of_a_label(as_ann, chat_with_usage):
    """Of the tokens that have it now, in one project or in all of them. Its page is linked from the label."""
    for query in ({"project": "chat"}, {}):
        body = as_ann.get(PAGE, {**query, "tagged": "team=red", "month": "2026-11", "format": "json"}).json()
        assert (body["of"], body["total"]["allowed"]) == ("team=red in chat", 1_500)
        assert [line["name"] for line in body["by_token"]] == ["red one"]

    labels = as_ann.get("/admin/projects/token/labels/").content.decode()
    assert f"{PAGE}?tagged=team%3Dred" in labels


@pytest.mark.parametrize("tagged", ["team", "no label=x", "=", "team=" + "x" * 300])
def test_a_wrong_label_is_not_found(as_ann, chat_with_usage, tagged):
    """And does not stand for all tokens."""
    assert as_ann.get(PAGE, {"project": "chat", "tagged": tagged}).status_code == 404


def test_the_present_month_is_that_of_the_project(rf, admin_user):
    """In Auckland, December has begun while it is November in UTC."""
    ProjectFactory(slug="far", time_zone="Pacific/Auckland")
    request = rf.get(PAGE, {"project": "far"})
    request.user = admin_user

    assert scope_of(request, None, datetime(2026, 11, 30, 12, tzinfo=UTC)).month == date(2026, 12, 1)


def test_pages_of_what_has_usage_link_to_its_statement(as_ann, chat_with_usage):
    """A policy's too."""
    policy = chat_with_usage.tokens_of_test["red"].policy

    assert f"{PAGE}?policy=free" in as_ann.get(f"/admin/policies/policy/{policy.pk}/change/").content.decode()


def test_a_page_shows_the_tokens_that_cost_most(as_ann, chat_with_usage, use, spend, monkeypatch):
    """And how many it leaves out. The files have all of them."""
    monkeypatch.setattr(report, "LINES_SHOWN", 2)
    for name, allowed in (("many", 9_000), ("few", 1)):
        use(chat_with_usage, NOVEMBER, token=TokenFactory(project=chat_with_usage, name=name).pk, allowed=allowed)
    query = {"project": "chat", "month": "2026-11"}

    page, lines = as_ann.get(PAGE, query).content.decode(), lines_of(as_ann.get(PAGE, {**query, "format": "csv"}))

    names = re.findall(r'<th scope="row">(?:<a [^>]*>)?([^<]*)<', page.partition("By token")[2])
    assert names[:3] == ["red one", "many", "Total"]
    assert "And 2 more, which are in the files." in page
    assert [line["name"] for line in lines if line["kind"] == "token"] == ["red one", "many", "'=blue", "few"]


def test_the_choice_of_a_month_has_each_month_with_usage(as_ann, chat_with_usage, use):
    """The last one first, and no month between without usage."""
    use(chat_with_usage, datetime(2026, 8, 5, tzinfo=UTC), allowed=3)

    page = as_ann.get(PAGE, {"project": "chat", "month": "2026-11"}).content.decode()

    assert re.findall(r'<option value="(\d{4}-\d\d)">', page) == ["2026-11", "2026-08"]


def test_lines_lead_to_the_statements_with_their_numbers(as_ann, chat_with_usage):
    """Of a token, and of the tokens with a label. Under a policy a token has other numbers, and no link."""
    red, query = chat_with_usage.tokens_of_test["red"], {"month": "2026-11"}

    def links(**more):
        page = as_ann.get(PAGE, {**query, **more}).content.decode()
        return re.findall(r'<th scope="row"><a class="text-link" href="([^"]*)"', page.partition("By t")[2])

    assert f"{PAGE}?token={red.pk}&amp;month=2026-11" in links(project="chat")
    tagged = f"{PAGE}?project=chat&amp;tagged=team%3Dred&amp;month=2026-11"
    assert tagged in links(project="chat", group="label", label="team")
    assert links(policy="free") == []
