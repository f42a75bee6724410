from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects import tasks
from controlplane.releases.publishing.models import OutboxEntry
from tests.factories import TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_token_that_ended_is_said_to_have():
    """The audit answers why a token stopped working, and its document is published anew."""
    token = TokenFactory(expired=True)

    assert tasks.expire_tokens() == 1
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_id, entry.channel) == ("token.expire", token.pk, "task")
    assert list(OutboxEntry.objects.values_list("kind", "object_id")) == [("token", token.digest)]


def test_an_end_is_said_once():
    """The task may run twice."""
    TokenFactory(expired=True)

    assert (tasks.expire_tokens(), tasks.expire_tokens()) == (1, 0)


def test_a_token_with_a_later_end_ends_again():
    """It was given more time, and that is over too."""
    token = TokenFactory(expired=True)
    tasks.expire_tokens()
    token.expires_at = timezone.now() - timedelta(seconds=1)
    token.save()

    assert tasks.expire_tokens() == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"expires_at": timezone.now() + timedelta(days=1)},
        {"expired": True, "revoked": True},
        {"expires_at": timezone.now() - timedelta(days=8)},
    ],
    ids=["no end", "not yet", "revoked before", "long ago"],
)
def test_other_tokens_are_left_alone(fields):
    """Only an end that has just come is news."""
    TokenFactory(**fields)

    assert tasks.expire_tokens() == 0
    assert not AuditEntry.objects.exists()


def test_an_ended_token_is_published_as_one(store, client_of_store):
    """An enforcer can still say "expired"; the key goes a day after the end."""
    token = TokenFactory(expired=True)

    tasks.expire_tokens()

    assert 0 < client_of_store.pttl(f"sg:{{doc}}:token:{token.digest}") <= 86_400_000
