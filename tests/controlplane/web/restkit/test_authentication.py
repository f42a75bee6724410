from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from controlplane.objects.keys.models import ManagementKey
from enforcement.model import tokens
from tests.factories import ManagementKeyFactory, TokenFactory

pytestmark = pytest.mark.django_db


def test_without_a_key_nothing_is_shown(call):
    """Deny by default, and say what is wanted."""
    response = call("GET", "projects")

    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert response["WWW-Authenticate"] == 'Bearer realm="sluicegate"'


def refused(call, header: str) -> tuple[int, str, str]:
    response = call("GET", "projects", authorization=header)
    return response.status_code, response["WWW-Authenticate"], response.json()["detail"]


def test_unknown_revoked_and_expired_keys_are_told_the_same(call):
    """Nobody learns which keys there are."""
    secrets = [
        tokens.mint("mgmt"),
        ManagementKeyFactory(revoked=True).secret,
        ManagementKeyFactory(expired=True).secret,
    ]

    answers = {refused(call, f"Bearer {secret}") for secret in secrets}

    challenge = 'Bearer realm="sluicegate", error="invalid_token"'
    assert answers == {(401, challenge, "This key is unknown, revoked or expired.")}


@pytest.mark.parametrize(
    "secret",
    ["", "x", "sg_mgmt_" + "a" * 49, tokens.mint("mgmt")[:-1] + "!", tokens.mint("mgmt") + " x", "' OR 1=1 --"],
    # Named, since every run mints other keys and pytest's workers have to agree on the names of the tests.
    ids=["empty", "short", "checksum", "character", "longer", "sql"],
)
def test_a_key_that_was_never_minted_is_not_looked_up(call, secret, django_assert_num_queries):
    """The checksum answers before the database is asked."""
    with django_assert_num_queries(0):
        assert refused(call, f"Bearer {secret}")[0] == 401


def test_another_scheme_is_refused(call, key):
    """A key in the wrong place is no key."""
    assert refused(call, f"Basic {key.secret}")[0] == 401


def test_the_scheme_is_read_without_regard_to_case(call, key):
    """RFC 9110, 11.1."""
    assert call("GET", "projects", authorization=f"bearer {key.secret}").status_code == 200


def test_the_token_of_a_project_opens_nothing(call):
    """It is told apart, so that its holder knows what to do."""
    token = TokenFactory()

    status, _, detail = refused(call, f"Bearer {token.secret}")

    assert (status, detail) == (401, "This is a token of a project. Send a management key, which begins sg_mgmt_.")


def test_a_session_of_the_admin_opens_nothing():
    """So no page of another site can write here in an administrator's name."""
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("ann", password="x"))

    assert client.get("/api/v1/projects").status_code == 401


def test_the_secret_is_nowhere_in_an_error(call, key):
    """Not in the body and not in a header."""
    response = call("GET", f"projects?secret={key.secret}", key=key)

    assert key.secret not in str(response.headers)
    assert key.secret not in response.content.decode()


def test_the_last_use_is_written_once_a_minute(api, key):
    """A key in steady use costs no write a request."""
    api("GET", "projects")
    first = ManagementKey.objects.get().last_used_at

    api("GET", "projects")

    assert first is not None
    assert ManagementKey.objects.get().last_used_at == first


def test_a_use_a_minute_later_is_written(api, key):
    """The time moves on."""
    before = timezone.now() - timedelta(seconds=61)
    ManagementKey.objects.update(last_used_at=before)

    api("GET", "projects")

    assert ManagementKey.objects.get().last_used_at > before


def test_a_key_without_the_scope_is_told_which_one_it_lacks(call):
    """RFC 6750, 3.1."""
    key = ManagementKeyFactory(scopes=["projects:read"])

    response = call("POST", "projects", {"slug": "chat", "name": "Chat"}, key=key)

    assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
    challenge = 'Bearer realm="sluicegate", error="insufficient_scope", scope="projects:write"'
    assert response["WWW-Authenticate"] == challenge
