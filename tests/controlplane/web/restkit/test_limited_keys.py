"""What a key that is limited to projects neither learns nor decides."""

import pytest

from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.models import Project
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db

POLICY = {"name": "New", "limits": [], "project": "mine"}
PREFIX = 'Must be "mine--" and a name without "--", because this key is limited to projects.'


@pytest.fixture
def mine() -> Project:
    """The project of the key, beside another one with a policy."""
    PolicyFactory(slug="theirs-gold", project=ProjectFactory(slug="theirs"))
    PolicyFactory(slug="mine--x--y", project=ProjectFactory(slug="mine--x"))
    return ProjectFactory(slug="mine")


@pytest.fixture
def limited(mine):
    return ManagementKeyFactory(projects=[mine])


def error_of(response) -> tuple[int, str, str]:
    (error,) = response.json()["errors"]
    return response.status_code, error["code"], error["detail"]


@pytest.mark.parametrize("taken", ["theirs-gold", "mine--x--y"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_slugs_of_others_policies_cannot_be_probed(call, mine, limited, method, taken):
    """A slug that is in use elsewhere and one that is free get the same answer."""
    PolicyFactory(slug="own", project=mine)
    path = "policies" if method == "POST" else "policies/own"
    free = taken.replace("gold", "none").replace("y", "z")

    answers = [error_of(call(method, path, {**POLICY, "slug": slug}, key=limited)) for slug in (taken, free)]

    assert answers == [(400, "key_limited_to_projects", PREFIX)] * 2


@pytest.mark.parametrize("slug", ["theirs", "free"])
@pytest.mark.parametrize(("method", "code"), [("PATCH", "key_limited_to_projects"), ("PUT", "rule")])
def test_slugs_of_others_projects_cannot_be_probed(call, limited, method, code, slug):
    """All projects share their slugs, so such a key keeps that of its own."""
    response = call(method, "projects/mine", {"slug": slug, "name": "Mine"}, key=limited)

    assert error_of(response)[:2] == (400, code)
    assert Project.objects.filter(slug="mine").exists()


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_limited_key_does_not_raise_the_cap_of_values(call, mine, limited, method):
    """The values of all projects share the memory of the store."""
    body = {"slug": "mine", "name": "Mine", "partition_cap": 1_000_000}

    assert error_of(call(method, "projects/mine", body, key=limited))[:2] == (400, "key_limited_to_projects")
    assert call(method, "projects/mine", {**body, "partition_cap": 10_000}, key=limited).status_code == 200


@pytest.mark.parametrize("slug", ["mine--", "mine---a", "mine--a--b", "mine-a", "mine", "theirs--a"])
def test_the_slugs_of_a_project_are_its_own(call, limited, slug):
    """A name that another project could have is refused."""
    assert error_of(call("POST", "policies", {**POLICY, "slug": slug}, key=limited))[2] == PREFIX


def test_a_limited_key_names_and_renames_its_policies(call, limited):
    """Within its part of all slugs, where a slug in use is its own."""
    assert call("POST", "policies", {**POLICY, "slug": "mine--a"}, key=limited).status_code == 201
    assert error_of(call("POST", "policies", {**POLICY, "slug": "mine--a"}, key=limited))[1] == "unique"
    assert call("PATCH", "policies/mine--a", {"slug": "mine--b-c"}, key=limited).status_code == 200
    assert call("PUT", "policies/mine--b-c", {**POLICY, "slug": "mine--b-c"}, key=limited).status_code == 200


def test_a_policy_keeps_the_slug_that_it_had_before(call, mine, limited):
    """A limited key still changes what another key has named."""
    PolicyFactory(slug="own", project=mine)

    assert call("PUT", "policies/own", {**POLICY, "slug": "own"}, key=limited).status_code == 200


def test_a_key_of_all_projects_gives_any_slug(api, mine):
    """It sees all slugs anyway."""
    assert api("POST", "policies", {**POLICY, "slug": "any"}).status_code == 201
    assert api("PATCH", "projects/mine", {"slug": "other"}).status_code == 200


def test_a_limited_key_sees_nothing_of_the_fleet(call, limited, instance):
    """Hosts and processes serve every project."""
    instance("proxy-1", host="secret-host")

    response = call("GET", "instances", key=limited)

    assert (response.status_code, response.json()["code"]) == (403, "key_limited_to_projects")


SHARED = "This limit belongs to a policy that all projects share, and this key is limited to some."


@pytest.fixture
def shared(mine) -> Override:
    """What an operator has granted the project: less of a shared limit than others have."""
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute", quota=100)
    mine.policy = limit.policy
    mine.save()
    return OverrideFactory(limit=limit, token=None, project=mine, quota=10)


def test_a_limited_key_does_not_override_a_shared_limit(call, mine, limited, shared):
    """It may not change the limit for all projects, and so not for one of them."""
    token = TokenFactory(project=mine)
    body = {"limit": "free/per-minute", "token": token.pk, "quota": 2**53 - 1, "reason": "x"}

    response = call("POST", "overrides", body, key=limited)

    assert error_of(response) == (400, "key_limited_to_projects", SHARED)
    assert Override.objects.count() == 1


@pytest.mark.parametrize(("method", "body"), [("PATCH", {"quota": 1000}), ("DELETE", None)])
def test_a_limited_key_does_not_undo_an_override_of_a_shared_limit(call, limited, shared, method, body):
    """It reads what an operator has decided for its project."""
    assert call("GET", f"overrides/{shared.pk}", key=limited).json()["quota"] == 10

    response = call(method, f"overrides/{shared.pk}", body, key=limited)

    assert (response.status_code, response.json()["detail"]) == (403, SHARED)
    shared.refresh_from_db()
    assert shared.quota == 10


def test_a_limited_key_overrides_the_limits_of_its_own_policies(call, mine, limited):
    """There it decides the limit itself, too."""
    limit = LimitFactory(policy=PolicyFactory(slug="own", project=mine), name="per-minute")
    mine.policy = limit.policy
    mine.save()
    body = {"limit": "own/per-minute", "project": "mine", "quota": 500, "reason": "x"}

    made = call("POST", "overrides", body, key=limited)

    assert made.status_code == 201
    path = f"overrides/{made.json()['id']}"
    assert call("PATCH", path, {"quota": 600}, key=limited).json()["quota"] == 600
    assert call("DELETE", path, key=limited).status_code == 204
