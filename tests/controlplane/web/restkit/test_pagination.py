import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from controlplane.changes.audit.models import AuditEntry
from tests.factories import ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


def walk(api, path: str, direction: str = "next") -> list[list[str]]:
    """Follow the links of a list and return the ids of each page."""
    pages = []
    while path:
        page = api("GET", path.removeprefix("http://testserver")).json()
        pages.append([row["id"] for row in page["results"]])
        path = page[direction]
    return pages


def test_pages_follow_each_other_without_gap_or_repetition(api):
    """Every row comes once."""
    project = ProjectFactory(slug="chat")
    tokens = [TokenFactory(project=project).pk for _ in range(5)]

    pages = walk(api, "projects/chat/tokens?page_size=2")

    newest_first = tokens[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]


def test_the_way_back_shows_the_same_pages(api):
    """previous leads where next came from."""
    project = ProjectFactory(slug="chat")
    for _ in range(5):
        TokenFactory(project=project)
    path, last = "projects/chat/tokens?page_size=2", ""
    while path:
        last, path = path, api("GET", path.removeprefix("http://testserver")).json()["next"]

    assert walk(api, last, "previous") == walk(api, "projects/chat/tokens?page_size=2")[::-1]


def test_a_page_of_exactly_its_size_is_the_last(api):
    """No empty page follows."""
    for slug in ("a", "b"):
        ProjectFactory(slug=slug)

    page = api("GET", "projects?page_size=2").json()

    assert (len(page["results"]), page["next"], page["previous"]) == (2, None, None)


def test_rows_that_come_meanwhile_shift_nothing(api):
    """A cursor is a place, not a number."""
    for slug in ("b", "d"):
        ProjectFactory(slug=slug)
    following = api("GET", "projects?page_size=1").json()["next"]
    ProjectFactory(slug="a")

    page = api("GET", following.removeprefix("http://testserver")).json()

    assert [project["slug"] for project in page["results"]] == ["d"]


@pytest.mark.parametrize("cursor", ["x", "W10:1:x", "é"])
def test_a_forged_cursor_is_refused(api, cursor):
    """What is in it is ours."""
    response = api("GET", f"projects?cursor={cursor}")

    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, "invalid_cursor")


def test_the_cursor_of_another_list_is_refused(api):
    """It would name no place in this one."""
    for slug in ("a", "b"):
        ProjectFactory(slug=slug)
    cursor = api("GET", "projects?page_size=1").json()["next"].partition("cursor=")[2]

    assert api("GET", f"policies?cursor={cursor}").status_code == 400


@pytest.mark.parametrize("size", ["0", "-1", "201", "x", "1.5", "9" * 30])
def test_the_size_of_a_page_is_bounded(api, size):
    """One request cannot ask for the whole table."""
    assert api("GET", f"projects?page_size={size}").json()["errors"][0]["parameter"] == "page_size"


def test_policies_are_listed_by_owner(api):
    """Shared ones by an empty name."""
    PolicyFactory(slug="shared")
    PolicyFactory(slug="own", project=ProjectFactory(slug="chat"))

    own = api("GET", "policies?project=chat").json()["results"]
    shared = api("GET", "policies?project=").json()["results"]

    assert ([policy["slug"] for policy in own], [policy["slug"] for policy in shared]) == (["own"], ["shared"])


def test_a_list_costs_the_same_whatever_its_length(api, django_assert_max_num_queries):
    """No query a row."""
    for _ in range(10):
        ProjectFactory(policy=PolicyFactory())
    api("GET", "projects")

    with django_assert_max_num_queries(3):
        api("GET", "projects")


def test_the_audit_is_filtered(api):
    """By actor, action, object and time."""
    for name in ("ann", "bob"):
        AuditEntry.objects.create(
            actor=name, channel="api", action="x.y", object_type="policy", object_id=f"pol_{name}", object_label=name
        )

    def actors(query: str) -> list[str]:
        return [entry["actor"] for entry in api("GET", f"audit?{query}").json()["results"]]

    assert actors("actor=bob") == ["bob"]
    assert actors("object=pol_ann") == ["ann"]
    assert actors("action=x.y") == ["bob", "ann"]
    assert actors("since=2200-01-01T00:00:00Z") == []
    assert actors("until=2000-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "path",
    [
        *("overrides?limit=", "overrides?token=", "overrides?project=", "policies?project=", "audit?actor="),
        *("usage?project=", "usage?limit=", "usage?limit=free/", "denials?limit=free/", "denials?project=proj_"),
        *("denials?decision=", "counters?token=", "counters?project=", "projects?cursor="),
    ],
)
def test_a_parameter_with_nul_is_refused(api, path):
    """PostgreSQL cannot look for it, so it never gets there."""
    PolicyFactory(slug="free")

    response = api("GET", f"{path}%00")

    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert (error["parameter"], error["code"]) == (path.split("?")[1].split("=")[0], "null_characters_not_allowed")


def test_an_instance_that_is_silent_is_lost(api, instance, lost_at):
    """15 seconds without a heartbeat, whatever it said last."""
    instance("here")
    instance("gone", seen_at=lost_at)

    found = api("GET", "instances").json()["results"]

    assert {row["id"]: row["state"] for row in found} == {"here": "ok", "gone": "lost"}


@pytest.mark.parametrize(("running", "ids"), [("true", ["here"]), ("false", ["gone"])])
def test_instances_are_listed_by_whether_they_run(api, instance, lost_at, running, ids):
    """For whoever waits for a fleet to come back."""
    instance("here")
    instance("gone", seen_at=lost_at)

    assert [row["id"] for row in api("GET", f"instances?running={running}").json()["results"]] == ids


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL scans a table that is almost empty")
@pytest.mark.parametrize("query", ["actor=nosuch", "action=nosuch", "object=nosuch", "actor=a&action=b"])
def test_the_audit_is_searched_by_an_index(api, query):
    """One filter cannot read every row of years, and the rows come in the order of the pages."""
    with CaptureQueriesContext(connection) as done:
        assert api("GET", f"audit?{query}").status_code == 200
    (search,) = (one["sql"] for one in done.captured_queries if "policies_auditentry" in one["sql"])

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {search}")
        plan = [row[-1] for row in cursor.fetchall()]

    assert len(plan) == 1, plan
    assert plan[0].startswith("SEARCH policies_auditentry USING INDEX policies_audit_")


def test_a_page_links_to_its_neighbours_for_programs_that_read_headers(api):
    """Link as in RFC 8288, and the cursor alone, so that nobody cuts it out of an address."""
    for slug in ("a", "b", "c"):
        ProjectFactory(slug=slug)
    first = api("GET", "projects?page_size=1")
    second = api("GET", f"projects?page_size=1&cursor={first.json()['next_cursor']}")
    third = api("GET", second.json()["next"].removeprefix("http://testserver"))

    assert first["Link"] == f'<{first.json()["next"]}>; rel="next"'
    assert [row["slug"] for row in second.json()["results"]] == ["b"]
    assert second["Link"].split(", ")[1] == f'<{second.json()["previous"]}>; rel="prev"'
    assert (third.json()["next_cursor"], "next" in third["Link"]) == (None, False)


def test_a_list_of_one_page_has_no_link(api):
    """An empty header would be no header."""
    assert "Link" not in api("GET", "projects")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["old", "batch", "web"]),
        ("project=chat", ["batch", "web"]),
        ("policy=free", ["web"]),
        ("name=web", ["web"]),
        ("label.team=red", ["batch"]),
        ("status=revoked", ["old"]),
        ("project=chat&status=revoked", []),
        ("name=we", []),
    ],
)
def test_tokens_of_all_projects_are_listed_and_filtered(api, query, names):
    """Those that the key may see, the newest first."""
    chat = ProjectFactory(slug="chat")
    web = TokenFactory(project=chat, name="web", policy=PolicyFactory(slug="free"))
    TokenFactory(project=chat, name="batch", labels={"team": "red"})
    TokenFactory(name="old", revoked=True)

    assert [row["name"] for row in api("GET", f"tokens?{query}").json()["results"]] == names
    assert [row["name"] for row in api("GET", f"tokens?prefix={web.prefix}").json()["results"]] == ["web"]


def test_a_limited_key_lists_the_tokens_of_its_projects(call):
    """And is told nothing of a project that is not one of them."""
    own = TokenFactory(name="own")
    other = TokenFactory(name="other")
    key = ManagementKeyFactory(projects=[own.project])

    assert [row["name"] for row in call("GET", "tokens", key=key).json()["results"]] == ["own"]
    assert call("GET", f"tokens?project={other.project.slug}", key=key).status_code == 400


def test_the_audit_is_found_by_the_request_that_made_it(api):
    """The id stands in the response and in the log."""
    request_id = api("POST", "projects", {"slug": "one", "name": "One"})["X-Request-Id"]
    api("POST", "projects", {"slug": "two", "name": "Two"})

    found = api("GET", f"audit?request_id={request_id}").json()["results"]

    assert [row["object"]["label"] for row in found] == ["one"]
