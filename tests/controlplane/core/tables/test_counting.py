"""The pages of the admin over many rows: what a page costs does not grow with the tables."""

from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone
from django.utils.html import strip_tags

from controlplane.core.tables import indexing
from controlplane.core.tables.counting import MoreThan, as_capped, capped
from controlplane.core.tables.paging import CappedPaginator
from controlplane.objects.projects.models import Token
from controlplane.web.kit.page import PartsPage
from tests.controlplane.pages import text_of
from tests.controlplane.web.kit.test_site_lists import TOKENS
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)
from tests.million import data
from tests.million.measuring import Cost, visit
from tests.million.pages import pages
from tests.scale import scale

pytestmark = pytest.mark.django_db

on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="indexes of PostgreSQL")
# Both fill each list, so that the larger one shows no more rows.
FEW = data.Size(tokens=1_200, policies=150, projects=150)
# In a list of several pages, the keys are read first. The lists of a member may have one page among few rows.
KEYS = 1
# These read more, up to 600 candidates near a limit, the newest denials, the newest tokens with labels, the projects
# and policies of the tokens on the page, and all projects for the choice of one.
BOUNDED = {
    "/admin/",
    "/admin/explain/",
    "/admin/near-limit/",
    "/admin/projects/token/",
    "/admin/projects/token/labels/",
    "/admin/emergency/suspension/",
    "/admin/reservations/reservation/",
    "/admin/statements/monthrow/",
}
# These ask more, but no more than so often: a statement for each folded row of the list, of which a page has at most
# 51, and for the list behind a file of a member, which reads its keys first.
BY_PARTS = {
    "/admin/publishing/revision/": 100,
    "/admin/usage/usagerow/export.csv": 10,
    "/admin/usage/meteredrow/export.csv": 10,
}
# A page that reads all projects or policies reads at least so many rows more.
MORE_PROJECTS = 120


def is_visited(url: str) -> bool:
    """Return whether a page is visited: without most sorts, filters and searches, and in a small run without rows."""
    is_of_a_row = url.endswith(("/change/", "/delete/"))
    return ("?" not in url or url.endswith(("q=edge-70", "s=edge", "term=edge"))) and scale(not is_of_a_row, True)


def costs(size: data.Size, people: tuple[str, ...]) -> dict[tuple[str, str], Cost]:
    """Return what each page costs each of the people."""
    found, client = {}, Client()
    with transaction.atomic():
        data.fill(size, timezone.now())
        for name in people:
            client.force_login(User.objects.get(username=name))
            for url in pages():
                if is_visited(url):
                    found[name, url] = visit(client, url).cost
        transaction.set_rollback(True)
    return found


@pytest.mark.proof
@pytest.mark.skipif(
    connection.vendor == "sqlite" and scale(True, False), reason="SQLite takes much longer to save the rows"
)
def test_no_page_asks_more_of_the_database_with_more_rows(monkeypatch):
    """In a small run, a page of a list has fewer rows, since most of the time goes into their HTML."""
    monkeypatch.setattr(PartsPage, "list_per_page", scale(10, PartsPage.list_per_page))
    many = data.Size(*scale((2_400, 300, FEW.projects + MORE_PROJECTS), (20_000, 500, 300)))
    people = scale(("operator",), ("operator", "member-0", "member-1"))

    few, more = costs(FEW, people), costs(many, people)

    assert len(few) > 50
    # In order, because the address of a row may have another key.
    pairs = [(page, before, after) for before, (page, after) in zip(few.values(), more.items(), strict=True)]
    queries = {page: (before.queries, after.queries) for page, before, after in pairs}
    grown = {page: pair for page, pair in queries.items() if pair[1] > pair[0] + KEYS}
    assert {page: pair for page, pair in grown.items() if pair[1] > BY_PARTS.get(page[1], 0)} == {}
    rows = {page: (before.rows, after.rows) for page, before, after in pairs if page[0] == "operator"}
    # A search has the filters and columns of its list.
    longer = {page[1].partition("?q=")[0] for page, pair in rows.items() if pair[1] > pair[0] + MORE_PROJECTS // 2}
    assert longer <= BOUNDED


def test_a_long_list_says_that_it_was_not_counted_to_its_end(as_ann, monkeypatch):
    """Its later rows are found by a search."""
    monkeypatch.setattr(CappedPaginator, "most", 100)
    TokenFactory.create_batch(101, project=ProjectFactory())

    first, last, beyond = (as_ann.get(f"{TOKENS}{query}") for query in ("", "?p=2", "?p=3"))

    assert "more than 100 tokens The pages show the first 100." in text_of(first)
    assert len(last.context["cl"].result_list) == 50
    assert beyond.status_code == 302
    monkeypatch.setattr(CappedPaginator, "most", 101)
    assert "101 tokens" in text_of(as_ann.get(TOKENS))
    assert "more than" not in text_of(as_ann.get(TOKENS))


def test_rows_are_counted_no_further_than_asked():
    TokenFactory.create_batch(4, project=ProjectFactory())

    exact, more = capped(Token.objects.all(), 4), capped(Token.objects.all(), 3)

    assert (exact, str(exact), more, str(more)) == (4, "4", 3, "more than 3")
    assert f"{MoreThan(10_000):,} tokens" == "more than 10,000 tokens"
    assert as_capped(10_001) == MoreThan(10_000)


def test_a_policy_and_a_project_count_their_holders(as_ann):
    """Each number of the list is that of the page."""
    policy = LimitFactory(policy__slug="plan").policy
    project = ProjectFactory(slug="shop", policy=policy, token_policy=policy)
    TokenFactory.create_batch(2, project=project, policy=policy)
    TokenFactory(project=project, policy=policy, revoked=True)

    for url in ("/admin/policies/policy/", f"/admin/policies/policy/{policy.pk}/change/"):
        assert "3 tokens · 1 project · new tokens of 1 project" in text_of(as_ann.get(url))
    shown = as_ann.get("/admin/projects/project/").context["cl"]
    assert [strip_tags(shown.model_admin.token_count(row)) for row in shown.result_list] == ["2"]


def test_a_deletion_counts_what_goes_with_the_row_and_who_may_not(client):
    """A member deletes no override of a limit that all projects share, and so no token that has one."""
    token = TokenFactory(policy=PolicyFactory())
    OverrideFactory(token=token, limit=LimitFactory(policy=token.policy))
    client.force_login(MembershipFactory(project=token.project, role="owner").user)
    url = f"{TOKENS}{token.pk}/delete/"

    refused = client.get(url)
    posted = client.post(url, {"post": "yes", "object_name": token.name})
    token.policy.project = token.project
    token.policy.save()
    allowed = client.get(url)

    assert "Your account may not delete objects of these kinds" in text_of(refused)
    assert "override" in text_of(refused)
    assert (posted.status_code, Token.objects.count()) == (403, 1)
    assert "this deletes: 1 token, 1 override." in text_of(allowed)


@pytest.fixture
def beginnings(monkeypatch):
    """A database without the extension for parts of texts."""
    monkeypatch.setattr("controlplane.core.tables.searching.finds_parts", lambda table: False)


def found(as_ann, query: str) -> set[str]:
    return {row.name for row in as_ann.get(TOKENS, {"q": query}).context["cl"].result_list}


def test_a_search_finds_a_part_of_a_name_a_label_or_the_project(as_ann):
    project = ProjectFactory(slug="shop-eu")
    edge = TokenFactory(name="the-edge", project=project, labels={"team": "Müller"})
    TokenFactory(name="other")

    for query in ("edge", "EDGE", "th", '"the-edge"', "ller", "shop edge", "op-e", edge.pk, edge.prefix):
        assert found(as_ann, query) == {"the-edge"}, query
    assert found(as_ann, "edge other") == set()


def test_without_the_extension_a_search_finds_beginnings_and_says_so(as_ann, beginnings):
    TokenFactory(name="edge-1")
    TokenFactory(name="the-edge", labels={"team": "edge"})

    assert found(as_ann, "edge") == {"edge-1"}
    assert found(as_ann, "team=edge") == {"the-edge"}
    assert 'placeholder="Beginning of a name' in as_ann.get(TOKENS).content.decode()
    assert 'placeholder="Beginning of an actor' in as_ann.get("/admin/policies/auditentry/").content.decode()


@on_postgresql
@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ("projects_token_trigrams", lambda: Token.objects.filter(name__icontains="edge")),
        ("projects_token_trigrams", lambda: Token.objects.filter(labels__icontains="edge")),
        ("projects_token_labels", lambda: Token.objects.with_label("team", "edge")),
        ("projects_token_labels", lambda: Token.objects.with_label("team")),
        ("projects_token_prefix", lambda: Token.objects.filter(prefix__startswith="sg_live_ab")),
    ],
)
def test_a_search_reads_its_index(index, rows):
    """The index has the expression that Django's condition has."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")

        assert index in rows().order_by().explain()


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_without_the_extension_beginnings_are_indexed(monkeypatch):
    monkeypatch.setattr(indexing, "_has_trigrams", lambda database: False)
    call_command("index_search", stdout=StringIO())
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        plan = Token.objects.filter(name__istartswith="edge").order_by().explain()
        cursor.execute("RESET enable_seqscan")
    monkeypatch.undo()
    call_command("index_search", stdout=(told := StringIO()))

    assert "projects_token_name_begin" in plan
    assert told.getvalue().splitlines() == [
        "projects_token: a search finds parts.",
        "policies_auditentry: a search finds parts.",
    ]
