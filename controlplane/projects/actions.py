"""
Changes of tokens and management keys. Admin, API and commands call these functions with an open change.

    with change(actor=actor, reason=reason) as tx:
        token, secret = issue_token(tx, project=project, name="ci")
"""

from typing import Any

from django.utils import timezone

from controlplane.projects.models import ManagementKey, Token
from controlplane.publishing.changes import Change


def issue_token(tx: Change, **fields: Any) -> tuple[Token, str]:
    """
    Save a new token with its audit entry, and return it with its secret.

    Args:
        fields: project, name, policy and expires_at of the token.
    Raises:
        ValidationError: A field breaks a rule of the model.
    """
    token, secret = Token.objects.issue(**fields)
    tx.created(token)
    return token, secret


def rotate_token(tx: Change, token: Token, overlap_seconds: int = 0) -> tuple[Token, str]:
    """
    Replace a token, and return the new one with its secret.

    The old token ends after *overlap_seconds*. With 0 it is revoked at once.

    Raises:
        ValidationError: The token is revoked or expired, or the overlap is not from 0 to 30 days.
    """
    before = token.as_record()
    issued, secret = Token.objects.rotate(token, overlap_seconds)
    tx.record("token.rotate", token, before=before, after={**token.as_record(), "replaced_by": issued.pk})
    tx.created(issued)
    return issued, secret


def revoke_token(tx: Change, token: Token) -> None:
    """Revoke the token, so that every proxy refuses it. Do nothing if it is revoked already."""
    if token.revoked_at is None:
        before, now = token.as_record(), timezone.now()
        token.retire(now, now)
        tx.record("token.revoke", token, before=before, after=token.as_record())


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
    """Revoke the management key, so that REST refuses it. Do nothing if it is revoked already."""
    if key.revoked_at is None:
        before = key.as_record()
        key.revoke(timezone.now())
        tx.record("managementkey.revoke", key, before=before, after=key.as_record())
