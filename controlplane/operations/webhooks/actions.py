"""
Actions on webhooks. Admin and API call these functions with an open change.

    with change(actor=actor, reason=reason) as tx:
        secret = rotate(tx, destination)
"""

from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.operations.webhooks.deliveries import enqueue_test
from controlplane.operations.webhooks.models import PENDING, Delivery, Destination
from controlplane.operations.webhooks.signing import secret_of


def secret(destination: Destination) -> str:
    """Return the present secret of a webhook, which is shown when it is made and when it is rotated."""
    return secret_of(destination.pk, destination.generation)


def rotate(tx: OpenChange, destination: Destination) -> str:
    """
    Give a webhook another secret with an audit entry, and return that secret.

    For 24 hours, messages are signed with the former one too. If that one is not a day old either, they are signed with
    the one before it as well, because the receiver may still have it.
    """
    row = Destination.objects.select_for_update().get(pk=destination.pk)
    before, now = row.as_record(), timezone.now()
    row.signs_from, row.generation, row.rotated_at = row.oldest(now), row.generation + 1, now
    row.save(update_fields=["signs_from", "generation", "rotated_at"])
    tx.record("destination.rotate", row, before=before, after=row.as_record())
    return secret(row)


def test(tx: OpenChange, destination: Destination) -> Delivery:
    """
    Save a test message to a webhook with an audit entry, and return its delivery.

    Raises:
        ValidationError: The webhook is not active, so nothing is sent to it.
    """
    if not destination.active:
        raise ValidationError({"active": ValidationError("Must be true, or nothing is sent.", code="inactive")})
    delivery = enqueue_test(destination, tx.actor.name)
    tx.record("destination.test", destination, before=None, after={"message": delivery.message_id})
    return delivery


def replay(tx: OpenChange, delivery: Delivery) -> Delivery:
    """
    Make a message due now with an audit entry, and return it. It keeps its id and its body.

    One that waits for its first attempt is due already, and stays as it is.

    Raises:
        ValidationError: The destination is not active, so nothing is sent to it.
    """
    row = Delivery.objects.select_for_update(of=("self",)).select_related("destination").get(pk=delivery.pk)
    if not row.destination.active:
        raise ValidationError({"destination": ValidationError("Must be active, or nothing is sent.", code="inactive")})
    before = row.as_record()
    if row.state == PENDING and row.attempts == 0:
        return row
    row.state, row.attempts, row.next_at, row.delivered_at = PENDING, 0, timezone.now(), None
    row.save(update_fields=["state", "attempts", "next_at", "delivered_at"])
    tx.record("delivery.replay", row, before=before, after=row.as_record())
    return row
