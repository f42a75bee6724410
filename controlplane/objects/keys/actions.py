"""Changes of management keys. Admin, API and commands call these functions with an open change."""

from datetime import datetime
from typing import Any

from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.keys.models import ManagementKey


def issue_management_key(tx: OpenChange, **fields: Any) -> tuple[ManagementKey, str]:
    """
    Save a new management key with its audit entry, and return it with its secret.

    Args:
        fields: name, scopes, all_projects, projects, networks and expires_at of the key.
    Raises:
        ValidationError: A scope is unknown or a field breaks a rule of the model.
    """
    key, secret = ManagementKey.objects.issue(**fields)
    tx.created(key)
    return key, secret


def rotate_management_key(
    tx: OpenChange, key: ManagementKey, overlap_seconds: int = 0, latest: datetime | None = None
) -> tuple[ManagementKey, str]:
    """
    Save a key that replaces *key*, write the audit entries, and return the new key with its secret.

    The old key ends after *overlap_seconds*. With 0 it is revoked at once. The new key ends at *latest* at the latest,
    or when its life span ends. With None, only its life span counts.

    Raises:
        ValidationError: The key is revoked or expired, or was rotated before, or the overlap is not from 0 to 30 days.
    """
    before = key.as_record()
    issued, secret = ManagementKey.objects.rotate(key, overlap_seconds, latest)
    tx.record("managementkey.rotate", key, before=before, after={**key.as_record(), "replaced_by": issued.pk})
    tx.created(issued)
    return issued, secret


def revoke_management_key(tx: OpenChange, key: ManagementKey) -> None:
    """
    Revoke the management key with an audit entry, so that REST refuses it, or do nothing if it is revoked already.
    """
    if key.revoked_at is None:
        before = key.as_record()
        key.revoke(timezone.now())
        tx.record("managementkey.revoke", key, before=before, after=key.as_record())
