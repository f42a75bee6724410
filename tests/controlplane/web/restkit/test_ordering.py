"""The order, the search and the filters of lists."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.releases.publishing.models import Revision
from tests.factories import PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


def names(api, path: str, name: str = "name") -> list[str]:
    response = api("GET", path)
    assert response.status_code == 200, response.content
    return [one[name] for one in response.json()["results"]]


@pytest.fixture
def three():
    for slug, name in (("a", "Zoe"), ("b", "Ann"), ("c", "Ann")):
        TokenFactory(project=ProjectFactory(slug=slug, name=name), name=name)
        PolicyFactory(slug=slug, name=name, description=f"of {name}")


@pytest.mark.parametrize("path", ["projects", "policies"])
def test_lists_are_ordered_as_asked(api, three, path):
    """Equal names have an order of their own, so that no row is on two pages."""
    assert names(api, path, "slug") == ["a", "b", "c"]
    assert names(api, f"{path}?order=-slug", "slug") == ["c", "b", "a"]
    assert names(api, f"{path}?order=name", "slug") == ["b", "c", "a"]
    assert names(api, f"{path}?order=-created_at", "slug") == ["c", "b", "a"]


@pytest.mark.parametrize("order", ["name", "-name", "created_at", "-created_at"])
def test_the_pages_of_an_order_have_each_row_once(api, three, order):
    """Forwards and backwards."""
    whole = names(api, f"tokens?order={order}", "id")
    pages, address = [], f"tokens?order={order}&page_size=1"
    while address:
        page = api("GET", address).json()
        pages.append([one["id"] for one in page["results"]])
        last, address = page, page["next"]

    assert [pk for page in pages for pk in page] == whole
    assert len(whole) == 3
    assert [one["id"] for one in api("GET", last["previous"]).json()["results"]] == pages[1]


def test_a_cursor_belongs_to_its_order(api, three):
    """In another order, it would skip rows."""
    cursor = api("GET", "projects?page_size=1&order=name").json()["next_cursor"]

    response = api("GET", f"projects?page_size=1&order=-name&cursor={cursor}")

    assert response.json()["errors"][0]["code"] == "invalid_cursor"


@pytest.mark.parametrize("path", ["projects", "policies", "tokens", "audit", "revisions"])
def test_an_unknown_order_is_refused(api, path):
    """Not ignored."""
    response = api("GET", f"{path}?order=colour")

    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (400, "order")


def test_a_search_finds_all_of_its_words(api, three):
    """Their case means nothing."""
    assert names(api, "projects?search=ann", "slug") == ["b", "c"]
    assert names(api, "policies?search=of%20zoe", "slug") == ["a"]
    assert names(api, "projects?search=ann%20zoe") == []
    assert names(api, "tokens?search=An&order=created_at") == ["Ann", "Ann"]
    assert names(api, "projects/a/tokens?search=Ann") == []


def test_a_token_is_found_by_its_prefix_and_its_id(api, three):
    """What a person has at hand."""
    token = TokenFactory(name="one")

    assert names(api, f"tokens?search={token.prefix}") == ["one"]
    assert names(api, f"tokens?search={token.pk}") == ["one"]


def test_projects_are_filtered(api):
    """By their policy, and by whether they are active."""
    ProjectFactory(slug="a", policy=PolicyFactory(slug="free"))
    ProjectFactory(slug="b", active=False)

    assert names(api, "projects?policy=free", "slug") == ["a"]
    assert names(api, "projects?active=false", "slug") == ["b"]
    assert api("GET", "projects?active=no").status_code == api("GET", "projects?policy=none").status_code == 400


def test_the_audit_is_filtered_searched_and_ordered(api):
    """By the type of the object, the channel, the project, and by words."""
    api("POST", "projects", {"slug": "chat", "name": "Chat"}, sluicegate_reason="a launch")
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": []})
    api("PATCH", "projects/chat", {"name": "Talk"})

    assert names(api, "audit", "action") == ["project.update", "policy.create", "project.create"]
    assert names(api, "audit?order=at", "action") == ["project.create", "policy.create", "project.update"]
    assert names(api, "audit?object_type=policy", "action") == ["policy.create"]
    assert names(api, "audit?project=chat", "action") == ["project.update", "project.create"]
    assert names(api, "audit?search=policy.create", "action") == ["policy.create"]
    assert len(names(api, "audit?channel=api", "action")) == AuditEntry.objects.count() == 3
    assert names(api, "audit?channel=admin", "action") == []


def test_revisions_are_filtered_and_ordered(api):
    """By the channel, the kind, the time and the number."""
    for number, channel in ((1, "api"), (2, "admin"), (3, "api")):
        Revision.objects.create(number=number, channel=channel, kind="token" if number == 3 else "policy")

    assert names(api, "revisions?order=revision", "revision") == [1, 2, 3]
    assert names(api, "revisions?channel=api", "revision") == [3, 1]
    assert names(api, "revisions?kind=token", "revision") == [3]
    assert names(api, "revisions?above=1", "revision") == [3, 2]
    assert names(api, "revisions?until=2001-01-01T00:00:00Z", "revision") == []
