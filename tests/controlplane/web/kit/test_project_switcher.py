"""The project that somebody works in: a filter in the addresses of lists, which a walk over the menu keeps."""

import pytest

from controlplane.web.kit.menu import navigation
from tests.factories import MembershipFactory, PolicyFactory, ProjectFactory, TokenFactory, UserFactory

pytestmark = pytest.mark.django_db

TOKENS, CHOOSE = "/admin/projects/token/", "/admin/choose-project/"


def links(response) -> dict[str, str]:
    """Return the addresses of the menu on a page, by their titles."""
    return {it["title"]: str(it["link"]) for group in response.context["sidebar_navigation"] for it in group["items"]}


def narrowed(response) -> set[str]:
    return {title for title, link in links(response).items() if "project" in link.partition("?")[2]}


@pytest.fixture
def shop(db):
    ProjectFactory(slug="bar")
    return ProjectFactory(slug="shop")


def test_the_choice_survives_a_walk(as_operator, shop):
    """Also over pages that have no filter by a project, and each list says in its address what it shows."""
    token = TokenFactory(project=shop)
    TokenFactory()
    policy = PolicyFactory(project=shop)

    answer = as_operator.post(CHOOSE, {"project": shop.pk, "next": f"{TOKENS}?status=all&p=3"})
    assert answer.url == f"{TOKENS}?status=all&project__id__exact={shop.pk}"
    page = as_operator.get(answer.url)
    assert list(page.context["cl"].result_list) == [token]
    for title, rows in (("Policies", [policy]), ("Usage", []), ("Tokens", [token])):
        page = as_operator.get(links(page)[title])
        assert list(page.context["cl"].result_list) == rows
        page = as_operator.get("/admin/publishing/revision/")
        assert narrowed(page) >= {"Policies", "Tokens", "Usage", "Statements"}
        assert "<strong>shop</strong>" in page.text


def test_a_list_without_the_filter_is_one_of_all_projects(as_operator, shop):
    """So the frame never names a project that the list beside it does not keep to."""
    as_operator.get(f"{TOKENS}?project__id__exact={shop.pk}")

    page = as_operator.get(TOKENS)

    assert "<strong>all projects</strong>" in page.text
    assert narrowed(page) == narrowed(as_operator.get("/admin/")) == set()


def test_the_page_of_a_row_keeps_the_filter_of_its_list(as_operator, shop):
    """As the address has it, so that two tabs do not disturb each other."""
    token = TokenFactory(project=shop)
    query = f"?_changelist_filters=project__id__exact%3D{shop.pk}"
    as_operator.get(TOKENS)

    assert "Policies" in narrowed(as_operator.get(f"{TOKENS}{token.pk}/change/{query}"))
    assert "Policies" in narrowed(as_operator.get(f"/admin/projects/project/{shop.pk}/change/"))


@pytest.mark.parametrize(
    ("back", "url"),
    [
        ("/admin/", "/admin/"),
        ("/admin/jobs/job/?p=1", "/admin/jobs/job/?p=1"),
        ("/admin/projects/token/tok_1/change/?x=1", f"{TOKENS}?project__id__exact={{pk}}"),
        ("/admin/usage/usagerow/?period=day", "/admin/usage/usagerow/?period=day&project_id={pk}"),
        ("https://evil.example/admin/", "/admin/"),
        ("//evil.example/admin/", "/admin/"),
        ("http://[", "/admin/"),
        ("/api/v1/", "/admin/"),
        ("", "/admin/"),
    ],
)
def test_a_choice_leads_back_within_the_admin(as_operator, shop, back, url):
    """To the list of the row that was open, since the row is of another project, and never to another server."""
    assert as_operator.post(CHOOSE, {"project": shop.pk, "next": back}).url == url.format(pk=shop.pk)


def test_members_choose_among_their_projects_only(client, shop):
    """Another project is answered as one that does not exist, and an address that names it chooses nothing."""
    first = MembershipFactory(project__slug="mine-1")
    MembershipFactory(user=first.user, project__slug="mine-2")
    client.force_login(first.user)

    page = client.get(f"{CHOOSE}?q=")

    assert [project.slug for project in page.context["found"]] == ["mine-1", "mine-2"]
    assert "shop" not in page.text
    for key in (shop.pk, "nobody", "'"):
        assert client.post(CHOOSE, {"project": key}).status_code == 404
        page = client.get(f"{TOKENS}?project__id__exact={key}")
        assert "<strong>all projects</strong>" in page.text
    client.get(f"{TOKENS}?project__id__exact={first.project.pk}")
    first.delete()
    assert "mine-1" not in client.get("/admin/").text


def test_who_has_one_project_has_nothing_to_choose(client):
    """The frame names it. Without any, there is nothing to name."""
    member = MembershipFactory(project__slug="mine")
    client.force_login(member.user)
    page = client.get("/admin/").text
    client.force_login(UserFactory())

    assert "<strong>mine</strong>" in page
    assert "choose-project" not in page
    assert "sg-switch" not in client.get("/admin/").text


def test_many_projects_are_found_by_a_part_of_their_names(as_operator):
    """The frame offers the first of them."""
    for number in range(14):
        ProjectFactory(slug=f"team-{number:02d}", name=f"Team {number}")

    page, found = as_operator.get("/admin/"), as_operator.get(f"{CHOOSE}?q=team-13")

    assert "team-11</button>" in page.text
    assert "team-12</button>" not in page.text
    assert "Find another project" in page.text
    assert [project.slug for project in found.context["found"]] == ["team-13"]
    assert len(navigation(page.wsgi_request)) == 4
