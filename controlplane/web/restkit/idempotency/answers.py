"""
Makes a change once, however often it is asked for.

The row of an idempotency key is committed first, and is then locked by the transaction that makes the change and keeps
its response. So a process that is killed leaves either both or neither, and its lock is gone at once: the next attempt
answers with what was kept, or makes the change.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from django.db import DatabaseError, OperationalError, transaction
from django.utils import timezone

from controlplane.objects.keys.models import ManagementKey
from controlplane.web.restkit.idempotency.models import KeptAnswer

# PostgreSQL's "lock not available". SQLite has one writer at a time, so a repetition waits there and is then answered.
LOCKED = "55P03"


class ReusedKeyError(Exception):
    """Raised if an idempotency key was used for another request."""


class StillRunningError(Exception):
    """Raised if the first request with an idempotency key has not ended yet."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A response in the form in which it is kept.

    Attributes:
        body: JSON, or an empty string for a response without a body.
        change: Id of the change, or an empty string if there was none.
        reach: Ids of the projects that the owner's key could see then. None: all of them.
        repeated: Whether the change was made by an earlier request.
        read: Returns the answer as it is after the commit, for a change that reaches the store then. None: it is known.
    """

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    change: str = ""
    reach: list[str] | None = None
    repeated: bool = False
    read: "Callable[[], Answer] | None" = None


def answer_once(owner: ManagementKey, name: str, fingerprint: str, act: Callable[[], Answer]) -> Answer:
    """
    Return the answer of *act*, or that of an earlier request with the same key, which is then not repeated.

    Args:
        owner: Whose key it is.
        name: The idempotency key, at most 255 characters.
        fingerprint: SHA-256 of the request in hex.
        act: Makes the change in the open transaction. Its exceptions undo the change, and the next attempt runs again.

    Raises:
        ReusedKeyError: The key belongs to a different request of the last 24 hours.
        StillRunningError: Another process is making the change.
        Every exception of *act*, and of what it does after the commit.
    """
    KeptAnswer.objects.bulk_create([KeptAnswer(owner=owner, name=name)], ignore_conflicts=True)
    committed: list[KeptAnswer] = []
    try:
        with transaction.atomic():
            row, now = _locked(owner, name), timezone.now()
            if (status := row.kept_status(now)) is not None:
                if row.fingerprint != fingerprint:
                    raise ReusedKeyError
                return Answer(status, row.body, row.headers, row.change, row.reach, repeated=True)
            if row.is_ending(now):
                raise StillRunningError
            transaction.on_commit(lambda: committed.append(row))  # before what the change does after the commit
            answer = act()
            _keep(row, answer, fingerprint, now)
    except Exception:
        if committed:
            _forget(row)
        raise
    if answer.read is not None:
        answer = answer.read()
        _keep(row, answer, fingerprint, now)
    return answer


def _keep(row: KeptAnswer, answer: Answer, fingerprint: str, now: datetime) -> None:
    """Save an answer, or only that there will be one, if it is known after the commit."""
    row.fingerprint, row.created_at = fingerprint, now
    row.status = answer.status if answer.read is None else None
    row.body, row.headers, row.change, row.reach = answer.body, answer.headers, answer.change, answer.reach
    row.save()


def _forget(row: KeptAnswer) -> None:
    """Let the next attempt run at once, because what had to follow the commit has failed, and its client is told so."""
    with suppress(DatabaseError):
        KeptAnswer.objects.filter(pk=row.pk).update(fingerprint="", status=None)


def _locked(owner: ManagementKey, name: str) -> KeptAnswer:
    """Return the row, locked until the transaction ends, or raise StillRunningError."""
    rows = KeptAnswer.objects.select_for_update(nowait=True)
    try:
        return rows.get(owner=owner, name=name)
    except OperationalError as exc:
        if getattr(exc.__cause__, "sqlstate", None) == LOCKED:
            raise StillRunningError from exc
        raise
    except KeptAnswer.DoesNotExist as exc:  # pruned between the two statements
        raise StillRunningError from exc
