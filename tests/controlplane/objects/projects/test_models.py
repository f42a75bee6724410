from datetime import UTC, datetime, timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.objects.projects.models import Token
from enforcement.model.tokens import digest, is_well_formed
from tests.factories import OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


def test_only_the_digest_of_a_secret_is_stored():
    """No clear-text token is stored anywhere."""
    token, secret = Token.objects.issue(project=ProjectFactory(), name="ci")

    stored = [str(value) for value in Token.objects.values_list().get(pk=token.pk)]

    assert is_well_formed(secret)
    assert not any(secret in value for value in stored)
    assert token.digest == digest(secret)
    assert token.prefix == secret[:12]


@pytest.mark.parametrize(
    ("traits", "status"), [({}, "active"), ({"revoked": True}, "revoked"), ({"expired": True}, "expired")]
)
def test_a_token_says_its_status(traits, status):
    """A token is active, revoked or expired."""
    assert TokenFactory(**traits).status == status


def test_live_tokens_are_neither_revoked_nor_expired():
    """What is over is not live."""
    live = TokenFactory()
    TokenFactory(revoked=True)
    TokenFactory(expired=True)

    assert list(Token.objects.live(timezone.now())) == [live]


def test_a_rotated_token_goes_on_for_the_overlap():
    """Rotation leaves the old token valid for the seconds that were asked for."""
    token = TokenFactory()

    issued, _ = Token.objects.rotate(token, overlap_seconds=3600)

    token.refresh_from_db()
    assert token.is_live
    assert timedelta(minutes=59) < token.expires_at - timezone.now() <= timedelta(hours=1)
    assert (issued.name, issued.project, issued.policy) == (token.name, token.project, token.policy)
    assert issued.digest != token.digest


def test_rotation_without_overlap_revokes_at_once():
    """An overlap of 0 ends the old token now."""
    token = TokenFactory()

    Token.objects.rotate(token, overlap_seconds=0)

    token.refresh_from_db()
    assert token.status == "revoked"


def test_rotation_never_lengthens_a_token():
    """A token that ends soon ends then, whatever the overlap."""
    soon = timezone.now() + timedelta(minutes=1)
    token = TokenFactory(expires_at=soon)

    Token.objects.rotate(token, overlap_seconds=3600)

    token.refresh_from_db()
    assert token.expires_at == soon


def test_rotation_keeps_the_life_span():
    """A token for thirty days is followed by one for thirty days, not by one for ever."""
    made = timezone.now() - timedelta(days=10)
    token = TokenFactory(created_at=made, expires_at=made + timedelta(days=30))

    issued, _ = Token.objects.rotate(token, overlap_seconds=60)

    assert timedelta(days=29) < issued.expires_at - timezone.now() <= timedelta(days=30)


def test_rotation_keeps_overrides():
    """The new token has the quota that the old one was granted."""
    override = OverrideFactory(quota=700)

    issued, _ = Token.objects.rotate(override.token, overlap_seconds=60)

    assert list(issued.overrides.values_list("limit", "quota")) == [(override.limit_id, 700)]


@pytest.mark.parametrize("traits", [{"revoked": True}, {"expired": True}])
def test_a_dead_token_cannot_be_rotated(traits):
    """Rotation does not bring a token back to life."""
    token = TokenFactory(**traits)

    with pytest.raises(ValidationError, match="Only an active token"):
        Token.objects.rotate(token, overlap_seconds=60)

    assert Token.objects.count() == 1


@pytest.mark.parametrize("overlap", [-1, 30 * 24 * 3600 + 1])
def test_an_overlap_has_bounds(overlap):
    """An overlap lasts between nothing and thirty days."""
    with pytest.raises(ValidationError, match="0 to 2592000"):
        Token.objects.rotate(TokenFactory(), overlap_seconds=overlap)


def test_a_token_cannot_take_another_projects_policy():
    """A policy that a project owns is of no use to others."""
    policy = PolicyFactory(project=ProjectFactory())

    with pytest.raises(ValidationError, match="another project"):
        TokenFactory(policy=policy)


@pytest.mark.parametrize("slug", ["", "Chat", "-chat", "chat_1", "a" * 64, "chat\n"])
def test_a_slug_has_one_spelling(slug):
    """A slug is 1 to 63 lower-case letters, digits and hyphens."""
    with pytest.raises(ValidationError) as refused:
        ProjectFactory(slug=slug)

    assert list(refused.value.message_dict) == ["slug"]


def test_two_changes_at_once_do_not_share_a_version():
    """A version is counted in SQL: a stale row adds to what is there."""
    project = ProjectFactory()
    stale = type(project).objects.get(pk=project.pk)

    project.advance()
    stale.advance()

    assert stale.version == 3


def test_a_record_holds_no_digest():
    """What an audit entry keeps of a token is of no use to a thief."""
    token = TokenFactory(expires_at=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))

    record = token.as_record()

    assert record == {
        "id": token.pk,
        "project": token.project_id,
        "name": token.name,
        "prefix": token.prefix,
        "policy": None,
        "expires_at": "2030-01-02T03:04:05+00:00",
        "revoked_at": None,
    }
