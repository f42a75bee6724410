"""The policy that new tokens of a project get, over REST."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project, Token

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"name": "rpm", "algorithm": "fixed_window", "quota": 2, "window_seconds": 60}


@pytest.fixture
def shop(api, store):
    """A project whose new tokens get the policy "starter"."""
    for slug in ("starter", "large"):
        api("POST", "policies", {"slug": slug, "name": slug, "limits": [LIMIT]})
    response = api("POST", "projects", {"slug": "shop", "name": "Shop", "token_policy": "starter"})
    assert response.status_code == 201, response.content
    return Project.objects.get()


def policy_of(api, **fields):
    """Create a token and return its policy."""
    return api("POST", "projects/shop/tokens", {"name": "t", **fields}).json()["policy"]


def test_a_token_without_a_policy_gets_it(shop, api):
    """One that names another policy has that, and one that names null has none."""
    assert [policy_of(api), policy_of(api, policy="large"), policy_of(api, policy=None)] == ["starter", "large", None]
    assert api("GET", "projects/shop").json()["token_policy"] == "starter"
    assert AuditEntry.objects.get(action="project.create").after["token_policy"] == shop.token_policy_id
    assert {entry.after["policy"] for entry in AuditEntry.objects.filter(action="token.create")} == {
        None,
        *Token.objects.exclude(policy=None).values_list("policy", flat=True),
    }


def test_existing_tokens_stay_as_they_are(shop, api):
    """Also those that are replaced, with their policy or without one."""
    policy_of(api)
    policy_of(api, policy=None)
    api("PATCH", "projects/shop", {"token_policy": "large"})
    with_one, without = Token.objects.order_by("created_at", "id")
    rotated = [api("POST", f"tokens/{token.pk}/rotate", {}).json()["policy"] for token in (with_one, without)]
    changed = api("PATCH", f"tokens/{without.pk}", {"name": "n"}).json()["policy"]

    assert (rotated, changed, policy_of(api)) == (["starter", None], None, "large")


@pytest.mark.parametrize("value", ["missing", "", 7, ["starter"], "of-another"])
def test_what_is_no_policy_of_this_project_is_refused(shop, api, value):
    """The rule is that of the project's own policy."""
    api("POST", "projects", {"slug": "another", "name": "Another"})
    api("POST", "policies", {"slug": "of-another", "name": "A", "project": "another", "limits": [LIMIT]})
    response = api("PATCH", "projects/shop", {"token_policy": value})

    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "#/token_policy"


def test_a_policy_of_new_tokens_is_not_deleted_and_not_published(shop, api, client_of_store):
    """Enforcers need not know it."""
    response = api("DELETE", "policies/starter")

    assert (response.status_code, response.json()["code"]) == (409, "in_use")
    assert "token_policy" not in client_of_store.hget("sg:{doc}:documents", f"project:{shop.pk}")
