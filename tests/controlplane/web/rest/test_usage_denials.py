"""The sample of denials over REST, which a key sees as far as it sees projects."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.factories import DeniedRequestFactory, LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def decisions(call, query: str = "", **options) -> list[str]:
    response = call("GET", f"denials{query}", **options)
    assert response.status_code == 200, response.content
    return [row["decision"] for row in response.json()["results"]]


def test_a_denial_names_what_people_know(api):
    """Slugs, not ids, and the values by which the limit counts."""
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="per-ip")
    DeniedRequestFactory(
        decision="dec_1",
        project_id=ProjectFactory(slug="chat").pk,
        policy_id=limit.policy_id,
        limit_name="per-ip",
        attributes={"ip": "10.0.0.1"},
    )

    assert api("GET", "denials").json() == {
        "results": [
            {
                "decision": "dec_1",
                "at": "2026-11-24T12:00:00Z",
                "reason": "limited",
                "project": "chat",
                "token": "tok_1",
                "limit": "free/per-ip",
                "attributes": {"ip": "10.0.0.1"},
                "instance": "proxy-1",
            }
        ],
        "next": None,
        "previous": None,
        "next_cursor": None,
    }


def test_what_is_not_known_is_null(api):
    """An unknown token has no project, and no limit denied it."""
    DeniedRequestFactory(reason="unknown_token", project_id="", token_id="")

    (row,) = api("GET", "denials").json()["results"]

    assert (row["project"], row["token"], row["limit"], row["attributes"]) == (None, "", None, {})


def test_the_newest_come_first_page_by_page(api):
    """Denials of the same moment too come once."""
    for number in (1, 2, 3, 4):
        DeniedRequestFactory(decision=f"dec_{number}", at=NOON + timedelta(seconds=number // 3))

    page = api("GET", "denials?page_size=3").json()
    rest = api("GET", page["next"].removeprefix("http://testserver")).json()

    assert [row["decision"] for row in page["results"]] == ["dec_4", "dec_3", "dec_2"]
    assert [row["decision"] for row in rest["results"]] == ["dec_1"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("project=chat", ["dec_chat"]),
        ("project=proj_gone", ["dec_gone"]),
        ("token=tok_9", ["dec_token"]),
        ("limit=free/m", ["dec_limit"]),
        ("limit=pol_gone/m", ["dec_gone"]),
        ("limit=free/other", []),
        ("reason=revoked", ["dec_reason"]),
        ("decision=dec_token", ["dec_token"]),
        ("since=2026-11-24T12:00:01Z", ["dec_late"]),
        ("until=2026-11-24T12:00:00Z", ["dec_early"]),
        ("project=chat&reason=revoked", []),
    ],
)
def test_denials_are_filtered(api, query, found):
    """By project, token, limit, reason, decision and time; the ids of what is deleted work too."""
    DeniedRequestFactory(decision="dec_chat", project_id=ProjectFactory(slug="chat").pk)
    DeniedRequestFactory(decision="dec_token", token_id="tok_9")
    DeniedRequestFactory(decision="dec_limit", policy_id=PolicyFactory(slug="free").pk, limit_name="m")
    DeniedRequestFactory(decision="dec_gone", project_id="proj_gone", policy_id="pol_gone", limit_name="m")
    DeniedRequestFactory(decision="dec_reason", reason="revoked")
    DeniedRequestFactory(decision="dec_late", at=NOON + timedelta(seconds=1))
    DeniedRequestFactory(decision="dec_early", at=NOON - timedelta(seconds=1))

    assert decisions(api, f"?{query}") == found


@pytest.mark.parametrize("query", ["limit=*", "limit=free", "limit=free/", "limit=", "project=", "project=x", "token="])
def test_a_filter_that_names_nothing_is_refused(api, query):
    """It never stands for everything."""
    PolicyFactory(slug="free")

    assert api("GET", f"denials?{query}").status_code == 400


def test_a_limited_key_sees_its_projects_only(call):
    """Neither those of others, nor those of unknown tokens, nor which process denied."""
    project = ProjectFactory(slug="chat")
    DeniedRequestFactory(decision="dec_own", project_id=project.pk)
    DeniedRequestFactory(decision="dec_other", project_id=ProjectFactory(slug="other").pk)
    DeniedRequestFactory(decision="dec_gone", project_id="proj_gone")
    DeniedRequestFactory(decision="dec_unknown", project_id="", token_id="")
    key = ManagementKeyFactory(scopes=["usage:read"], projects=[project])

    (row,) = call("GET", "denials", key=key).json()["results"]

    assert (row["decision"], row["project"], row["instance"]) == ("dec_own", "chat", None)
    for query in ("decision=dec_other", "decision=dec_unknown", "token=tok_1&until=2026-11-24T12:00:00Z"):
        assert decisions(call, f"?{query}", key=key) == []
    for name in ("other", "proj_gone"):
        assert call("GET", f"denials?project={name}", key=key).status_code == 400


def test_the_document_says_that_it_is_a_sample(openapi):
    """Whoever counts the rows was told not to."""
    operation = openapi["paths"]["/api/v1/denials"]["get"]

    assert operation["summary"] == "List sampled denials"
    assert "A sample of the denials of the last 8 days" in operation["description"]
