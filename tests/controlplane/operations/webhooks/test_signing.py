"""The signatures of messages, also while a secret is rotated."""

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.operations.webhooks import actions
from controlplane.operations.webhooks.models import MOST_FORMER, OVERLAP

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_rotated_secret_counts_beside_the_former_for_a_day(webhook):
    destination = webhook()
    former = actions.secret(destination)
    with change(actor=Actor("ann", "admin")) as tx:
        present = actions.rotate(tx, destination)
    destination.refresh_from_db()
    now = destination.rotated_at

    assert present != former
    assert destination.secrets(now) == [present, former]
    assert destination.secrets(now + OVERLAP) == [present]


def test_a_secret_that_is_rotated_twice_in_a_day_goes_on_signing(webhook):
    """Because the receiver may still have the first one. A day after the last rotation, only the present one signs."""
    destination = webhook()
    secrets = [actions.secret(destination)]
    for _ in range(2):
        with change(actor=Actor("ann", "admin")) as tx:
            secrets.append(actions.rotate(tx, destination))
    destination.refresh_from_db()
    now = destination.rotated_at

    assert destination.secrets(now) == secrets[::-1]
    assert destination.secrets(now + OVERLAP) == secrets[-1:]
    for _ in range(10):
        with change(actor=Actor("ann", "admin")) as tx:
            actions.rotate(tx, destination)
    destination.refresh_from_db()
    assert len(destination.secrets(now)) == 1 + MOST_FORMER


def test_messages_are_signed_with_a_former_secret_key_too(webhook, settings):
    """While it is among the fallbacks, receivers need not be told at the same moment."""
    destination = webhook()
    former = actions.secret(destination)
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], "another-" * 10

    assert former in destination.secrets(timezone.now())
    assert actions.secret(destination) != former
