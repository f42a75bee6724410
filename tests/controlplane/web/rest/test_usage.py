from datetime import UTC, datetime, timedelta

import pytest

from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
RANGE = "from=2026-11-24T12:00:00Z&to=2026-11-24T13:00:00Z"


def rows(api, query: str) -> list[dict]:
    response = api("GET", f"usage?{query}")
    assert response.status_code == 200, response.content
    return response.json()["results"]


def test_a_row_names_what_people_know(api):
    """Slugs, not ids; the total of a token has no limit."""
    project = ProjectFactory(slug="chat")
    UsageRowFactory(project_id=project.pk, allowed=7, denied=2, would_deny=1, cost=9)

    assert rows(api, RANGE) == [
        {
            "at": "2026-11-24T12:00:00Z",
            "project": "chat",
            "token": "tok_1",
            "limit": None,
            "unit": "requests",
            "allowed": 7,
            "denied": 2,
            "would_deny": 1,
            "cost": 9,
        }
    ]


def test_a_decision_is_counted_once_unless_limits_are_asked_for(api):
    """Totals and limits count the same decisions: one answer holds one of the two."""
    policy = PolicyFactory(slug="free")
    UsageRowFactory(allowed=7)
    UsageRowFactory(allowed=7, policy_id=policy.pk, limit_name="a")
    UsageRowFactory(allowed=7, policy_id=policy.pk, limit_name="b", unit="tokens")

    assert [row["limit"] for row in rows(api, RANGE)] == [None]
    assert [row["limit"] for row in rows(api, f"{RANGE}&limit=*")] == ["free/a", "free/b"]
    assert [row["limit"] for row in rows(api, f"{RANGE}&limit=free/b")] == ["free/b"]
    assert [row["limit"] for row in rows(api, f"{RANGE}&limit=*&unit=tokens")] == ["free/b"]


def test_a_unit_without_a_limit_is_explained(api):
    """An empty answer would be a riddle."""
    assert api("GET", "usage?unit=tokens").json()["errors"][0]["code"] == "needs_limit"


def test_history_outlives_what_it_is_about(api):
    """A deleted project or policy is named, and asked for, by its id."""
    UsageRowFactory(project_id="proj_gone", policy_id="pol_gone", limit_name="a")

    (row,) = rows(api, f"{RANGE}&limit=pol_gone/a")

    assert (row["project"], row["limit"]) == ("proj_gone", "pol_gone/a")


def test_rows_are_chosen_by_project_and_token(api):
    """Each narrows the answer."""
    project = ProjectFactory(slug="chat")
    UsageRowFactory(project_id=project.pk, token_id="tok_1")
    UsageRowFactory(project_id=project.pk, token_id="tok_2")
    UsageRowFactory(project_id="proj_other", token_id="tok_3")

    assert [row["token"] for row in rows(api, f"{RANGE}&project=chat")] == ["tok_1", "tok_2"]
    assert [row["token"] for row in rows(api, f"{RANGE}&token=tok_2")] == ["tok_2"]


def test_a_range_begins_with_its_step_and_ends_before_its_end(api):
    """From the begin of the minute that holds "from", up to "to" and without it."""
    for minute in (-1, 0, 1, 2):
        UsageRowFactory(at=NOON + timedelta(minutes=minute))

    found = rows(api, "from=2026-11-24T12:00:30Z&to=2026-11-24T12:02:00Z")

    assert [row["at"] for row in found] == ["2026-11-24T12:00:00Z", "2026-11-24T12:01:00Z"]


@pytest.mark.parametrize(
    ("beginning", "step"),
    [
        ("2026-11-24T18:00:00Z", "minute"),
        ("2026-11-24T17:59:59Z", "hour"),
        ("2026-11-11T00:00:00Z", "hour"),
        ("2026-11-10T23:00:00Z", "day"),
    ],
)
def test_the_step_follows_the_range(api, beginning, step):
    """So that an answer has at most a few hundred rows a token."""
    response = api("GET", f"usage?from={beginning}&to=2026-11-25T00:00:00Z")

    assert response.json()["step"] == step


@pytest.mark.parametrize(
    ("step", "beginning"),
    [("minute", "2026-11-24T11:00:00Z"), ("hour", "2026-11-23T12:00:00Z"), ("day", "2026-10-25T00:00:00Z")],
)
def test_the_range_follows_the_step(api, step, beginning):
    """An hour of minutes, a day of hours, thirty days."""
    assert api("GET", f"usage?step={step}&to=2026-11-24T12:00:00Z").json()["from"] == beginning


def test_a_range_that_ends_before_it_begins_is_refused(api):
    """Nothing lies in it."""
    query = "from=2026-11-24T13:00:00Z&to=2026-11-24T12:00:00Z"

    assert api("GET", f"usage?{query}").json()["errors"][0]["parameter"] == "from"


def test_rows_of_one_moment_are_paged_without_loss(api):
    """The time alone is no place in the list."""
    for number in range(5):
        UsageRowFactory(token_id=f"tok_{number}")
    seen, path = [], f"/api/v1/usage?{RANGE}&page_size=2"
    while path:
        page = api("GET", path.removeprefix("http://testserver")).json()
        seen += [row["token"] for row in page["results"]]
        path = page["next"]

    assert seen == [f"tok_{number}" for number in range(5)]


def test_a_key_of_some_projects_sees_their_usage_alone(call):
    """Whatever it asks for."""
    mine = ProjectFactory(slug="mine")
    UsageRowFactory(project_id=mine.pk, token_id="tok_1")
    UsageRowFactory(project_id="proj_other", token_id="tok_2")
    key = ManagementKeyFactory(projects=[mine])

    everything = call("GET", f"usage?{RANGE}", key=key).json()["results"]
    others = call("GET", f"usage?{RANGE}&token=tok_2", key=key).json()["results"]

    assert ([row["token"] for row in everything], others) == (["tok_1"], [])


def test_an_unknown_limit_or_project_is_refused(api):
    """A mistyped name is no empty month."""
    LimitFactory(policy=PolicyFactory(slug="free"), name="a")

    assert api("GET", "usage?limit=fre/a").json()["errors"][0]["code"] == "does_not_exist"
    assert api("GET", "usage?project=nope").json()["errors"][0]["code"] == "does_not_exist"
