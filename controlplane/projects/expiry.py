from datetime import datetime, timedelta

from django.db.models import QuerySet

from controlplane.policies.models import AuditEntry
from controlplane.projects.models import Token
from controlplane.publishing.changes import Actor, change

ACTION = "token.expire"
# A worker may have been down for so long; what expired earlier is old news.
LOOK_BACK = timedelta(days=7)
AT_ONCE = 1000


def expire_tokens(now: datetime) -> int:
    """
    Say in the audit which tokens have ended, once each, publish that, and return how many.

    Enforcers refuse a token from its end on by themselves: nothing depends on when this runs.
    """
    ended = Token.objects.filter(expires_at__lte=now, expires_at__gt=now - LOOK_BACK, revoked_at=None)
    if not _unsaid(ended):
        return 0  # most runs: no transaction, which on SQLite would keep others from writing
    with change(actor=Actor("expire_tokens", "task"), reason="its end has come") as tx:
        # Locked before the audit is read again: a second task at the same time waits, and then finds the entries.
        tokens = _unsaid(ended.select_for_update())[:AT_ONCE]
        for token in tokens:
            tx.record(ACTION, token, before=token.as_record(), after=token.as_record())
    return len(tokens)


def _unsaid(ended: QuerySet[Token]) -> list[Token]:
    """Leave out the tokens of whose end, this one and not an earlier one, the audit speaks."""
    tokens = {token.pk: token for token in ended.order_by("expires_at", "pk")}
    entries = AuditEntry.objects.filter(action=ACTION, object_id__in=ended.order_by().values("pk"))
    for object_id, end in entries.values_list("object_id", "after__expires_at"):
        if object_id in tokens and tokens[object_id].as_record()["expires_at"] == end:
            del tokens[object_id]
    return list(tokens.values())
