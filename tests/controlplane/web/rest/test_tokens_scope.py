"""A program that may issue tokens does not thereby decide which limits they have."""

import pytest

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from tests.factories import ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    """A project whose new tokens get the policy "free"."""
    return ProjectFactory(slug="chat", token_policy=PolicyFactory(slug="free"))


@pytest.fixture
def issuer(project) -> ManagementKey:
    return ManagementKeyFactory(scopes=["tokens:issue"], projects=[project])


def test_an_issued_token_has_the_policy_of_new_tokens(call, issuer):
    """Which the project chooses, and the key does not."""
    made = call("POST", "projects/chat/tokens", {"name": "ci", "labels": {}}, key=issuer)

    assert (made.status_code, made.json()["policy"], made.json()["labels"]) == (201, "free", {})


@pytest.mark.parametrize("name", ["policy", "labels"])
@pytest.mark.parametrize("path", ["projects/chat/tokens", "tokens/{token}"])
def test_what_decides_limits_needs_the_greater_scope(call, issuer, project, name, path):
    """Neither another policy, nor none, nor a label, by which limits match."""
    token = TokenFactory(project=project, policy=project.token_policy)
    PolicyFactory(slug="unlimited")
    method, path = ("PATCH" if "{" in path else "POST"), path.format(token=token.pk)

    for value in ({"team": "red"},) if name == "labels" else ("unlimited", None):
        refused = call(method, path, {"name": "x", name: value}, key=issuer)
        (error,) = refused.json()["errors"]
        assert (refused.status_code, error["pointer"], error["code"]) == (400, f"#/{name}", "insufficient_scope")
        assert "tokens:write" in error["detail"]
    assert Token.objects.get().policy == project.token_policy

    issuer.scopes = ["tokens:write"]
    issuer.save()
    assert call(method, path, {"name": "x", "policy": None, "labels": {"team": "red"}}, key=issuer).status_code < 300


def test_a_token_is_kept_up_by_whoever_may_issue_it(call, issuer, project):
    """It is renamed, with its present policy in the body or without, rotated and revoked, but not deleted."""
    token = TokenFactory(project=project, policy=Policy.objects.get())
    path = f"tokens/{token.pk}"

    statuses = [
        call("PATCH", path, {"name": "new", "policy": "free"}, key=issuer).status_code,
        call("POST", f"{path}/rotate", key=issuer).status_code,
        call("POST", f"{path}/revoke", key=issuer).status_code,
        call("DELETE", path, key=issuer).status_code,
    ]

    assert statuses == [200, 201, 200, 403]
