"""PUT by slug: what is not there is created, what is there is replaced."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from tests.controlplane.conftest import at_once
from tests.factories import LimitFactory, ManagementKeyFactory, OverrideFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = {"slug": "chat", "name": "Chat"}
LIMIT = {"name": "per-minute", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60}
FREE = {"slug": "free", "name": "Free", "limits": [LIMIT]}


def test_what_is_not_there_is_created(api, store):
    """With 201, the address, the tag, and one audit entry."""
    response = api("PUT", "projects/chat", CHAT)

    assert (response.status_code, response["Location"], response["ETag"]) == (
        201,
        "/api/v1/projects/chat",
        api("GET", "projects/chat")["ETag"],
    )
    assert (response.json()["version"], response["Sluicegate-Revision"]) == (1, "1")
    assert list(AuditEntry.objects.values_list("action", flat=True)) == ["project.create"]


def test_the_same_request_again_changes_nothing(api):
    """A program that repeats it for ever leaves one object and one audit entry."""
    statuses = [api("PUT", "policies/free", FREE).status_code for _ in range(3)]

    assert statuses == [201, 200, 200]
    assert (AuditEntry.objects.count(), Policy.objects.get().version) == (1, 1)


def test_what_is_left_out_gets_its_default(api):
    """The whole object is replaced, and no field stays as it was."""
    policy = PolicyFactory(slug="free")
    ProjectFactory(slug="chat", policy=policy, active=False, partition_cap=7, time_zone="Europe/Berlin")

    response = api("PUT", "projects/chat", CHAT)
    found = response.json()

    assert response.status_code == 200
    assert [found[name] for name in ("policy", "active", "partition_cap", "time_zone")] == [None, True, 10_000, "UTC"]


def test_limits_are_matched_by_their_names(api):
    """A limit that keeps its name keeps its row and its overrides. Others go."""
    policy = PolicyFactory(slug="free")
    kept = LimitFactory(policy=policy, name="per-minute")
    OverrideFactory(limit=kept)
    LimitFactory(policy=policy, name="old")

    api("PUT", "policies/free", FREE)

    assert (Limit.objects.get().pk, Limit.objects.get().quota, Override.objects.count()) == (kept.pk, 5, 1)


BODIES = [("projects/chat", CHAT), ("policies/free", FREE)]


@pytest.mark.parametrize(("address", "body"), BODIES)
def test_the_address_names_the_object(api, address, body):
    """So the body may leave the slug out, of what is created and of what is replaced."""
    unnamed = {name: value for name, value in body.items() if name != "slug"}
    tried = api("PUT", f"{address}?dry_run=true", unnamed).json()
    found = [api("PUT", address, sent) for sent in (unnamed, unnamed, body)]

    assert (tried["status"], tried["result"]["slug"]) == (201, body["slug"])
    assert [one.status_code for one in found] == [201, 200, 200]
    assert {(one.json()["slug"], one.json()["version"]) for one in found} == {(body["slug"], 1)}


@pytest.mark.parametrize(("address", "body"), BODIES)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("slug", ["talk", "CHAT", "", None, 5])
def test_another_slug_than_that_of_the_address_is_refused(api, address, body, there, slug):
    """Another request would not find the object again, and a repetition of the same one would make a second object."""
    if there:
        api("PUT", address, body)
    before = api("GET", address)
    response = api("PUT", address, {**body, "slug": slug})

    assert (response.status_code, response.json()["errors"]) == (
        400,
        [
            {
                "pointer": "#/slug",
                "code": "rule",
                "detail": f"Must be '{body['slug']}', as in the address, or be left out. PATCH changes it.",
            }
        ],
    )
    after = api("GET", address)
    assert (after.status_code, after.get("ETag")) == (before.status_code, before.get("ETag"))
    assert Project.objects.count() + Policy.objects.count() == there


@pytest.mark.parametrize("body", [[], "chat", None, 5])
def test_a_body_without_fields_is_refused(api, body):
    """It has no place for the name of the address."""
    assert api("PUT", "projects/chat", body).status_code == 400
    assert not Project.objects.exists()


def test_the_slug_is_changed_by_patch(api):
    """It is what names the object, and is not replaced with the other fields."""
    ProjectFactory(slug="chat")

    assert api("PATCH", "projects/chat", {"slug": "talk"}).json()["slug"] == "talk"


@pytest.mark.parametrize("headers", [{"if_match": "*"}, {"if_match": '"proj_1-1"'}])
def test_if_match_creates_nothing(api, headers):
    """Whoever names a version means an object that is there."""
    response = api("PUT", "projects/chat", CHAT, **headers)

    assert (response.status_code, response.json()["code"], response.has_header("ETag")) == (412, "stale_version", False)
    assert not Project.objects.exists()


def test_if_none_match_replaces_nothing(api):
    """It is how a program creates without the fear of overwriting."""
    first = api("PUT", "projects/chat", CHAT, if_none_match="*")
    second = api("PUT", "projects/chat", {**CHAT, "name": "Other"}, if_none_match="*")

    assert (first.status_code, second.status_code, second["ETag"]) == (201, 412, first["ETag"])
    assert Project.objects.get().name == "Chat"


@pytest.mark.parametrize("weak", ["", "W/"])
def test_if_none_match_may_name_versions(api, weak):
    """The comparison is the weak one (RFC 9110, 13.1.2)."""
    tag = api("PUT", "projects/chat", CHAT)["ETag"]

    same = api("PUT", "projects/chat", {**CHAT, "name": "Other"}, if_none_match=f'"x", {weak}{tag}')
    other = api("PUT", "projects/chat", {**CHAT, "name": "Other"}, if_none_match='"x"')

    assert (same.status_code, other.status_code) == (412, 200)


def test_if_match_holds_for_a_replacement(api):
    """The old tag is stale after a change."""
    tag = api("PUT", "projects/chat", CHAT)["ETag"]
    api("PATCH", "projects/chat", {"name": "Other"})

    assert api("PUT", "projects/chat", CHAT, if_match=tag).status_code == 412
    assert Project.objects.get().name == "Other"


def test_a_dry_run_says_which_of_both_it_would_be(api):
    """And does neither."""
    created = api("PUT", "policies/free?dry_run=true", FREE).json()
    PolicyFactory(slug="free", name="Old")
    replaced = api("PUT", "policies/free?dry_run=true", FREE).json()

    assert [(one["status"], one["diff"][0]["action"]) for one in (created, replaced)] == [
        (201, "policy.create"),
        (200, "policy.update"),
    ]
    assert Policy.objects.get().name == "Old"


def test_of_many_at_once_one_creates(web, key, store):
    """The others replace what it has created, and none fails."""
    answers = at_once([lambda: web("PUT", "projects/chat", CHAT, key=key)] * 6)

    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert Project.objects.count() == AuditEntry.objects.count() == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_limited_key_does_not_learn_which_projects_there_are(call, there):
    """It creates none, and the answer is the same for one of somebody else and for none."""
    if there:
        ProjectFactory(slug="other")
    key = ManagementKeyFactory(projects=[ProjectFactory(slug="chat")])

    response = call("PUT", "projects/other", {"slug": "other", "name": "Other"}, key=key)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_a_limited_key_creates_policies_of_its_projects(call):
    """Under the slugs of its projects, and no shared ones."""
    key = ManagementKeyFactory(projects=[ProjectFactory(slug="chat")])
    own = {**FREE, "slug": "chat--free", "project": "chat"}

    assert call("PUT", "policies/chat--free", own, key=key).status_code == 201
    assert call("PUT", "policies/free", {**FREE, "project": "chat"}, key=key).status_code == 404
    assert (
        call("PUT", "policies/chat--other", {**own, "slug": "chat--other", "project": None}, key=key).status_code == 400
    )
