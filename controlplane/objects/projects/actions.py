"""
Changes of tokens. Admin, API and commands call these functions with an open change.

    with change(actor=actor, reason=reason) as tx:
        token, secret = issue_token(tx, project=project, name="ci")
"""

from collections.abc import Sequence
from itertools import batched
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from controlplane.changes.change.transaction import AT_ONCE, OpenChange
from controlplane.objects.projects.models import Token


def issue_token(tx: OpenChange, **fields: Any) -> tuple[Token, str]:
    """
    Save a new token with its audit entry, and return it with its secret.

    Args:
        fields: project, name, policy, labels and expires_at of the token. Without a policy, it gets that of the new
            tokens of the project.
    Raises:
        ValidationError: A field breaks a rule of the model.
    """
    token, secret = Token.objects.issue(**fields)
    tx.created(token)
    return token, secret


def issue_tokens(tx: OpenChange, tokens: Sequence[Token]) -> list[str]:
    """Save new tokens, which are clean, with their audit entries and few statements, and return their secrets."""
    secrets = [token.set_secret("live") for token in tokens]
    Token.objects.bulk_create(tokens, batch_size=AT_ONCE)
    tx.record_many("token.create", ((token, None, token.as_record()) for token in tokens))
    return secrets


def rotate_token(tx: OpenChange, token: Token, overlap_seconds: int = 0) -> tuple[Token, str]:
    """
    Save a token that replaces *token*, write the audit entries, and return the new token with its secret.

    The old token ends after *overlap_seconds*. With 0 it is revoked at once.

    Raises:
        ValidationError: The token is revoked or expired, or the overlap is not from 0 to 30 days.
    """
    before = token.as_record()
    issued, secret = Token.objects.rotate(token, overlap_seconds)
    tx.record("token.rotate", token, before=before, after={**token.as_record(), "replaced_by": issued.pk})
    tx.created(issued)
    return issued, secret


def revoke_token(tx: OpenChange, token: Token) -> None:
    """Revoke the token with an audit entry, so that every proxy refuses it, or do nothing if it is revoked already."""
    if token.revoked_at is None:
        before, now = token.as_record(), timezone.now()
        token.retire(now, now)
        tx.record("token.revoke", token, before=before, after=token.as_record())


def revoke_tokens(tx: OpenChange, tokens: QuerySet[Token]) -> int:
    """Revoke those of the tokens that are not revoked yet, with few statements, and return their number."""
    now, count = timezone.now(), 0
    for some in batched(locked_tokens(tokens, revoked_at=None), AT_ONCE):
        before = [token.as_record() for token in some]
        for token in some:
            token.revoked_at = now
        Token.objects.filter(pk__in=[token.pk for token in some]).update(revoked_at=now)
        tx.record_many("token.revoke", zip(some, before, (token.as_record() for token in some), strict=True))
        count += len(some)
    return count


def delete_tokens(tx: OpenChange, tokens: QuerySet[Token]) -> int:
    """Delete and record tokens with their overrides, with few statements, and return their number."""
    count = 0
    for some in batched(locked_tokens(tokens), AT_ONCE):
        tx.record_deleted(some)
        overrides = some[0].overrides.model.objects.filter(token__in=some)
        tx.record_deleted(overrides.select_related("limit__policy", "token"))
        Token.objects.filter(pk__in=[token.pk for token in some]).delete()
        count += len(some)
    return count


def locked_tokens(tokens: QuerySet[Token], **conditions: Any) -> list[Token]:
    """Return the tokens that meet the conditions, locked, so that nobody else revokes and records them too."""
    # The queryset of a list may be distinct or have joins, which a lock forbids, so it is a subquery. The conditions
    # are outside, because PostgreSQL checks only those again after it has waited for a lock.
    rows = Token.objects.select_for_update().filter(pk__in=tokens.order_by().values("pk"), **conditions)
    return list(rows.order_by("pk"))
