from datetime import datetime, timedelta

from django.db.models import QuerySet

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.projects.models import Token

ACTION = "token.expire"
# The longest time for which a worker may have been down. Tokens that expired earlier are not recorded.
LOOK_BACK = timedelta(days=7)
AT_ONCE = 1000


def expire_tokens(now: datetime) -> int:
    """
    Write an audit entry for each newly expired token, at most AT_ONCE, publish these tokens, and return their number.

    Enforcers refuse an expired token by themselves, so nothing depends on when this runs.
    """
    ended = Token.objects.filter(expires_at__lte=now, expires_at__gt=now - LOOK_BACK, revoked_at=None)
    if not _unrecorded(ended):
        return 0  # most runs end here, without a transaction, which on SQLite would block other writers
    with change(actor=Actor("expire_tokens", "task"), reason="expired") as tx:
        # Locked before the audit is read again, so a second task at the same time waits and then finds the entries.
        tokens = _unrecorded(ended.select_for_update())[:AT_ONCE]
        for token in tokens:
            tx.record(ACTION, token, before=token.as_record(), after=token.as_record())
    return len(tokens)


def _unrecorded(ended: QuerySet[Token]) -> list[Token]:
    """Return the tokens without an audit entry for their present end. An entry for an earlier end does not count."""
    tokens = {token.pk: token for token in ended.order_by("expires_at", "pk")}
    entries = AuditEntry.objects.filter(action=ACTION, object_id__in=ended.order_by().values("pk"))
    for object_id, end in entries.values_list("object_id", "after__expires_at"):
        if object_id in tokens and tokens[object_id].as_record()["expires_at"] == end:
            del tokens[object_id]
    return list(tokens.values())
