"""An end is in the future when it is set, and what has ended stays so."""

import pytest
from django.utils import timezone

from controlplane.objects.projects.models import Token
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

PAST, FUTURE = "2020-01-01T00:00:00Z", "2031-01-01T00:00:00Z"
OVER = "Must be in the future, got 2020-01-01T00:00:00+00:00."


def errors_of(response) -> list[tuple[str, str, str]]:
    return [(error["pointer"], error["code"], error["detail"]) for error in response.json()["errors"]]


def test_a_token_is_not_created_expired(api):
    """Its secret would be refused at once."""
    ProjectFactory(slug="chat")

    response = api("POST", "projects/chat/tokens", {"name": "ci", "expires_at": PAST})

    assert errors_of(response) == [("#/expires_at", "past", OVER)]
    assert not Token.objects.exists()


def test_a_token_is_not_ended_by_an_end_in_the_past(api):
    """It is revoked instead, which the audit calls so."""
    token = TokenFactory()

    assert errors_of(api("PATCH", f"tokens/{token.pk}", {"expires_at": PAST})) == [("#/expires_at", "past", OVER)]


@pytest.mark.parametrize("trait", ["expired", "revoked"])
@pytest.mark.parametrize("body", [{"expires_at": FUTURE}, {"expires_at": None}, {"name": "other"}])
def test_an_ended_token_is_not_brought_back_or_renamed(api, trait, body):
    """A secret that was refused stays so, and the audit can be read later."""
    end = timezone.now() + timezone.timedelta(days=1) if trait == "revoked" else None
    token = TokenFactory(**({"revoked": True, "expires_at": end} if end else {"expired": True}))

    response = api("PATCH", f"tokens/{token.pk}", body)

    (field,) = body
    message = f"Must not be changed, because this token is {trait}. Create another token."
    assert errors_of(response) == [(f"#/{field}", "ended", message)]
    assert Token.objects.get().status == trait


def test_an_ended_token_gives_up_its_policy(api):
    """A policy that nobody else uses can then be deleted."""
    token = TokenFactory(policy=PolicyFactory(slug="old"), expired=True)

    assert api("PATCH", f"tokens/{token.pk}", {"policy": None, "name": token.name}).status_code == 200
    assert api("DELETE", "policies/old").status_code == 204


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_an_override_does_not_end_in_the_past(api, method):
    """It would be deleted within a minute, without a word."""
    present = OverrideFactory()
    token = TokenFactory(policy=present.limit.policy)
    body = {"limit": str(present.limit), "token": token.pk, "quota": 1, "reason": "x", "ends_at": PAST}
    path = "overrides"
    if method == "PATCH":
        path, body = f"overrides/{present.pk}", {"ends_at": PAST}

    assert errors_of(api(method, path, body)) == [("#/ends_at", "past", OVER)]


@pytest.mark.parametrize("holder", ["token", "project"])
def test_an_override_of_a_limit_that_does_not_apply_is_refused(api, holder):
    """It would do nothing, and nobody would be told."""
    LimitFactory(policy=PolicyFactory(slug="gold"), name="per-month")
    token = TokenFactory(project=ProjectFactory(slug="chat"), policy=PolicyFactory(slug="free"), name="ci")
    value, name, other = {
        "token": (token.pk, str(token), "the policy of its project"),
        "project": ("chat", "chat", "a policy of its tokens"),
    }[holder]

    response = api("POST", "overrides", {"limit": "gold/per-month", holder: value, "quota": 1, "reason": "x"})

    message = f"Must apply to {name}. Neither its policy nor {other} nor the global policy is gold."
    assert errors_of(response) == [("#/limit", "does_not_apply", message)]


@pytest.mark.parametrize("where", ["token", "project", "global"])
@pytest.mark.parametrize("holder", ["token", "project"])
def test_an_override_of_a_limit_that_applies_is_accepted(api, where, holder):
    """An enforcer looks at the same three policies, and for a project also at those of its tokens."""
    policy = LimitFactory(policy=PolicyFactory(slug="gold", everywhere=where == "global"), name="per-month").policy
    project = ProjectFactory(slug="chat", policy=policy if where == "project" else None)
    token = TokenFactory(project=project, policy=policy if where == "token" else None)
    body = {"limit": "gold/per-month", "quota": 1, "reason": "x"}

    response = api("POST", "overrides", {**body, holder: token.pk if holder == "token" else "chat"})

    assert response.status_code == 201


def test_a_second_override_of_a_limit_names_the_first(api):
    """Whoever is refused knows what to change."""
    present = OverrideFactory(quota=700)
    body = {"limit": str(present.limit), "token": present.token_id, "quota": 1, "reason": "x"}

    message = f"{present} already exists, with the quota 700 and the id {present.pk}. Change that."
    assert errors_of(api("POST", "overrides", body)) == [("#/limit", "unique", message)]
