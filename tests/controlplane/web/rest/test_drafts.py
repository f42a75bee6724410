"""Drafts over REST, which shows them and publishes none."""

import pytest

from tests.factories import LimitFactory, ManagementKeyFactory, PolicyDraftFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db


def read(client, key, path="drafts"):
    return client.get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {key.secret}"})


def test_a_draft_is_shown_as_one_and_never_as_a_policy(client):
    """With what it changes. The list of policies has the policy as it is."""
    limit = LimitFactory(policy__slug="chat", name="per-minute", quota=100)
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": 10}])
    new, key = PolicyDraftFactory(slug="night"), ManagementKeyFactory()

    one, found = read(client, key, f"drafts/{draft.pk}").json(), read(client, key, "drafts?state=open").json()

    assert (one["policy"], one["state"], one["is_behind"], one["limits"][0]["quota"]) == ("chat", "open", False, 10)
    assert [it["id"] for it in found["results"]] == [new.pk, draft.pk]
    assert (found["results"][0]["policy"], found["results"][0]["slug"]) == (None, "night")
    assert [it["slug"] for it in read(client, key, "policies").json()["results"]] == ["chat"]
    assert read(client, key, "policies/night").status_code == 404
    assert read(client, key, "drafts?state=nope").status_code == 400


def test_a_key_of_a_project_sees_the_drafts_of_that_project(client):
    """Drafts of policies that all projects share are for keys of all projects."""
    mine = PolicyDraftFactory(policy=PolicyFactory(project=ProjectFactory()))
    hidden = [PolicyDraftFactory(), PolicyDraftFactory(policy=PolicyFactory(project=ProjectFactory()))]
    key = ManagementKeyFactory(projects=[mine.project], scopes=["policies:read"])

    assert [it["id"] for it in read(client, key).json()["results"]] == [mine.pk]
    assert {read(client, key, f"drafts/{draft.pk}").status_code for draft in hidden} == {404}
