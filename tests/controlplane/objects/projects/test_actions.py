import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.projects.actions import issue_token, revoke_token, rotate_token
from tests.controlplane.recorded import audited_actions
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_issued_token_is_known_to_enforcers(actor, store, token_document):
    """A token works as soon as its secret is shown."""
    project = ProjectFactory()

    with change(actor=actor) as tx:
        token, secret = issue_token(tx, project=project, name="ci")

    assert secret.startswith("sg_live_")
    assert token_document(token.digest) == {
        "schema": 1,
        "id": token.pk,
        "project": project.pk,
        "name": "ci",
        "policy": None,
        "revoked": False,
        "expires_at_us": None,
        "overrides": [],
    }


def test_a_revoked_token_is_refused_everywhere(actor, store, token_document):
    """Enforcers are told that it is revoked: its holder reads why."""
    token = TokenFactory()

    with change(actor=actor, reason="leaked") as tx:
        revoke_token(tx, token)

    assert token_document(token.digest)["revoked"] is True
    assert audited_actions() == ["token.revoke"]


def test_revoking_twice_is_revoking_once(actor):
    """A repeated request changes nothing and leaves no second trace."""
    token = TokenFactory(revoked=True)
    revoked_at = token.revoked_at

    with change(actor=actor) as tx:
        revoke_token(tx, token)

    token.refresh_from_db()
    assert token.revoked_at == revoked_at
    assert audited_actions() == []


def test_rotation_publishes_both_tokens(actor, store, token_document):
    """The new token works and the old one has its end, in one revision."""
    token = TokenFactory()

    with change(actor=actor) as tx:
        issued, _ = rotate_token(tx, token, overlap_seconds=60)

    assert tx.revision == 1
    assert token_document(issued.digest)["expires_at_us"] is None
    assert token_document(token.digest)["expires_at_us"] > timezone.now().timestamp() * 1e6
    assert audited_actions() == ["token.rotate", "token.create"]
