"""Changes of management keys. Admin, API and commands call these functions with an open change."""

from typing import Any

from django.utils import timezone

from controlplane.keys.models import ManagementKey
from controlplane.publishing.changes import Change


def issue_management_key(tx: Change, **fields: Any) -> tuple[ManagementKey, str]:
    """
    Save a new management key with its audit entry, and return it with its secret.

    Args:
        fields: name, scopes, projects and expires_at of the key.
    Raises:
        ValidationError: A scope is unknown or a field breaks a rule of the model.
    """
    key, secret = ManagementKey.objects.issue(**fields)
    tx.created(key)
    return key, secret


def revoke_management_key(tx: Change, key: ManagementKey) -> None:
    """
    Revoke the management key with an audit entry, so that REST refuses it, or do nothing if it is revoked already.
    """
    if key.revoked_at is None:
        before = key.as_record()
        key.revoke(timezone.now())
        tx.record("managementkey.revoke", key, before=before, after=key.as_record())
