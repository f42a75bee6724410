"""Tokens are grouped by a label, and each value leads to its tokens and to its usage."""

import re

import pytest

from tests.factories import MembershipFactory, ProjectFactory, TokenFactory, UserFactory

pytestmark = pytest.mark.django_db

LABELS = "/admin/projects/token/labels/"


def groups(page) -> list[tuple[str, int]]:
    return [(row["value"], row["count"]) for row in page.context["rows"]]


@pytest.fixture
def labelled():
    """Three tokens of two teams, one without, and one that is revoked."""
    for labels in ({"team": "red", "env": "prod"}, {"team": "blue"}, {"team": "red"}, {}):
        TokenFactory(labels=labels)
    TokenFactory(labels={"team": "green"}, revoked=True)


def test_tokens_are_counted_by_value(as_ann, labelled):
    """The first label is chosen until another one is. Revoked tokens do not count."""
    first, page = as_ann.get(LABELS), as_ann.get(f"{LABELS}?name=team")

    assert (first.context["names"], first.context["chosen"]) == (["env", "team"], "env")
    assert groups(page) == [("red", 2), ("blue", 1)]
    assert page.context["without"] == 1
    text = page.content.decode()
    assert 'href="/admin/projects/token/?label=team%3Dred"' in text
    assert 'href="/admin/usage/usagerow/?label=team%3Dred&amp;period=day"' in text


def test_the_links_lead_to_the_rows(as_ann, labelled):
    """The list of tokens is filtered by what was pressed, and so is the usage."""
    assert as_ann.get("/admin/projects/token/?label=team%3Dred").context["cl"].result_count == 2
    assert as_ann.get("/admin/usage/usagerow/?label=team%3Dred&period=day").status_code == 200
    page = as_ann.get("/admin/projects/token/").content.decode()
    assert '<a class="sg-badge" href="/admin/projects/token/?label=team%3Dblue">team=blue</a>' in page
    assert f'href="{LABELS}"' in page


@pytest.mark.parametrize("name", ["nothing", "a__b", "team__has_key", "<script>", "'; --"])
def test_a_label_that_no_token_has(as_ann, labelled, name):
    """Whatever an address holds, it is a name and nothing else."""
    page = as_ann.get(LABELS, {"name": name})

    assert groups(page) == []
    assert "No active token has the label" in page.content.decode()
    assert "<script>." not in page.content.decode()


def test_without_labels_the_page_says_how_to_set_them(as_ann):
    """An empty page is not a dead end."""
    TokenFactory()

    assert "Labels such as team = red are set in the form of a token" in as_ann.get(LABELS).content.decode()


def test_a_member_counts_only_the_own_tokens(client, labelled):
    """Neither names nor values of other projects."""
    project = ProjectFactory()
    TokenFactory(project=project, labels={"owner": "eve"})
    user = UserFactory()
    MembershipFactory(user=user, project=project, role="viewer")
    client.force_login(user)

    page = client.get(LABELS)

    assert (page.context["names"], groups(page)) == (["owner"], [("eve", 1)])
    assert groups(client.get(f"{LABELS}?name=team")) == []
    client.force_login(UserFactory())
    assert client.get(LABELS).status_code == 403


def test_the_page_of_a_token_leads_to_the_usage_of_its_labels(as_ann):
    """Of each of them."""
    token = TokenFactory(labels={"team": "red"})

    page = as_ann.get(f"/admin/projects/token/{token.pk}/change/").content.decode()

    assert re.search(r'href="/admin/usage/usagerow/\?label=team%3Dred&amp;period=day">usage of team=red', page)
