import pytest

from controlplane.changes.change.transaction import change
from controlplane.objects.keys.actions import revoke_management_key
from controlplane.objects.keys.models import ManagementKey
from tests.controlplane.recorded import audited_actions, outbox
from tests.factories import ManagementKeyFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_management_key_is_revoked_without_a_publication(actor, store):
    """Enforcers do not know management keys."""
    key = ManagementKeyFactory()

    with change(actor=actor) as tx:
        revoke_management_key(tx, key)

    assert ManagementKey.objects.get().status == "revoked"
    assert (tx.revision, audited_actions(), outbox()) == (None, ["managementkey.revoke"], set())
