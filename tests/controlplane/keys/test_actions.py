import pytest

from controlplane.keys.actions import revoke_management_key
from controlplane.keys.models import ManagementKey
from controlplane.policies.models import AuditEntry
from controlplane.publishing.changes import change
from controlplane.publishing.models import OutboxEntry
from tests.factories import ManagementKeyFactory

pytestmark = pytest.mark.django_db(transaction=True)


def outbox() -> set[tuple[str, str]]:
    return set(OutboxEntry.objects.values_list("kind", "object_id"))


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


def test_a_management_key_is_revoked_without_a_publication(actor, store):
    """Enforcers do not know management keys."""
    key = ManagementKeyFactory()

    with change(actor=actor) as tx:
        revoke_management_key(tx, key)

    assert ManagementKey.objects.get().status == "revoked"
    assert (tx.revision, actions(), outbox()) == (None, ["managementkey.revoke"], set())
