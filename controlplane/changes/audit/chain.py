"""
The chain of digests over the audit entries, by which a changed, deleted or inserted entry is found.

Entries are sealed some seconds after they were committed, so that writers do not wait for each other. They are sealed
in the order of their ids, which is that of their time. An entry that was committed late follows with the next number.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any, Protocol

from django.db import connection, transaction
from django.db.models import Exists, Min, OuterRef, QuerySet

from controlplane.changes.audit.models import AuditEntry, AuditSeal
from controlplane.core.transactions import take_turn

# Goes into each digest, so that a later way to compute it can be told from this one.
FORMAT = 1
FIELDS = (
    *("actor", "channel", "action", "object_type", "object_id", "object_label"),
    *("before", "after", "reason", "request_id", "change", "project"),
)
BEGINNING = "0" * 64
# Writers that commit in another order than that of their ids are usually done by then.
SETTLED_AFTER = timedelta(seconds=10)
# No change takes longer to commit. An entry that appears later was inserted by somebody else, and is never sealed.
LATEST_COMMIT = timedelta(hours=1)
AT_ONCE = 1000
# In one run of the task, some seconds of work. After an upgrade, several runs seal the old entries.
MOST_IN_A_RUN = 20 * AT_ONCE


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain, which people note elsewhere. Without any seal, the number is 0."""

    number: int = 0
    digest: str = BEGINNING

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


@dataclass(frozen=True, slots=True)
class Broken:
    """
    A row that is not as it was sealed.

    Attributes:
        number: Its number in the chain, or None for an entry that was never sealed.
        entry_id: The id of the audit entry, or an empty string if the seal itself is missing.
        reason: What is wrong, in a sentence.
    """

    number: int | None
    entry_id: str
    reason: str

    def __str__(self) -> str:
        place = "not in the chain" if self.number is None else f"number {self.number}"
        return f"{self.entry_id or 'no entry'} ({place}): {self.reason}"


def digest_of(entry: AuditEntry, number: int, previous: str) -> str:
    """Return the digest of an audit entry at its place in the chain, as 64 hexadecimal characters."""
    at = entry.at.astimezone(UTC).isoformat(timespec="microseconds")
    content = [FORMAT, number, previous, entry.pk, at, *(getattr(entry, name) for name in FIELDS)]
    # The databases return the members of JSON objects in different orders.
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def head() -> Head:
    """Return the end of the chain."""
    last = AuditSeal.objects.order_by("-number").first()
    return Head(last.number, last.digest) if last else Head()


def seal(now: datetime, most: int = MOST_IN_A_RUN) -> int:
    """
    Seal the entries that are committed and not sealed yet, at most *most* of them, and return their number.

    Of two runs at the same time, the second waits and continues where the first has ended.
    """
    count = 0
    while count < most:
        with transaction.atomic():
            take_turn("audit chain")
            sealed = _seal_some(now)
        count += sealed
        if sealed < AT_ONCE:
            break
    return count


def _seal_some(now: datetime) -> int:
    """Seal the next entries within the open transaction, and return their number."""
    end = head()
    rows = _unsealed().filter(at__lte=now - SETTLED_AFTER)
    newest = AuditEntry.objects.filter(pk__in=AuditSeal.objects.order_by("-number").values("entry_id")[:1]).first()
    if newest is not None:
        rows = rows.filter(at__gt=newest.at - LATEST_COMMIT)
    seals = []
    for number, entry in enumerate(rows.order_by("pk")[:AT_ONCE], start=end.number + 1):
        end = Head(number, digest_of(entry, number, end.digest))
        seals.append(AuditSeal(number=number, entry_id=entry.pk, digest=end.digest))
    AuditSeal.objects.bulk_create(seals)
    return len(seals)


def _unsealed() -> QuerySet[AuditEntry]:
    return AuditEntry.objects.filter(~Exists(AuditSeal.objects.filter(entry_id=OuterRef("pk"))))


def verify(now: datetime, noted: Iterable[Head] = ()) -> Iterator[Broken]:
    """
    Yield each row that is not as it was sealed.

    Args:
        noted: Ends of the chain that were noted earlier. Without one, it cannot be found if somebody deletes the last
            seals with their entries, or computes the whole chain anew.
    """
    wanted = {one.number: one.digest for one in noted}
    last = _anchor()
    for seals in batched(AuditSeal.objects.filter(number__gt=last.number).iterator(chunk_size=AT_ONCE), AT_ONCE):
        entries = AuditEntry.objects.in_bulk([one.entry_id for one in seals])
        for one in seals:
            yield from _check(one, entries.get(one.entry_id), last)
            last = Head(one.number, one.digest)
            if wanted.pop(one.number, one.digest) != one.digest:
                yield Broken(one.number, one.entry_id, "The chain ends differently from what was noted.")
    for number in sorted(number for number in wanted if number > last.number):
        yield Broken(number, "", "The chain was longer when its end was noted.")
    for entry in _unsealed().filter(at__lt=now - LATEST_COMMIT - timedelta(minutes=10)).order_by("pk").iterator():
        if last.number:
            yield Broken(None, entry.pk, "The entry was inserted later than its time, or nothing seals entries.")


def _check(one: AuditSeal, entry: AuditEntry | None, last: Head) -> Iterator[Broken]:
    """Yield what is wrong with one seal and its entry, which follow the seal *last*."""
    if one.number != last.number + 1:
        missing = f"{last.number + 1} to {one.number - 1}" if one.number > last.number + 2 else f"{last.number + 1}"
        yield Broken(last.number + 1, "", f"The seals with the numbers {missing} were deleted.")
    elif entry is None:
        yield Broken(one.number, one.entry_id, "The entry was deleted.")
    elif digest_of(entry, one.number, last.digest) != one.digest:
        yield Broken(one.number, one.entry_id, "The entry, its seal or the seal before it was changed.")


def _anchor() -> Head:
    """
    Return the seal after which the chain is checked. That is the last one of what was pruned, if the audit says so.
    """
    first = AuditSeal.objects.first()
    if first is None or AuditEntry.objects.filter(pk=first.entry_id).exists():
        return Head()
    pruned = AuditEntry.objects.filter(action=PRUNED, after__number=first.number, after__digest=first.digest)
    return Head(first.number, first.digest) if pruned.exists() else Head()


PRUNED = "audit.prune"


class Pruned:
    """The part of the audit that was deleted, as a change records it."""

    pk = "audit"

    class _meta:
        model_name = "audit"

    def __str__(self) -> str:
        return "the audit"

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers do not know the audit."""
        yield from ()


class Recording(Protocol):
    """The open change in which the audit is pruned."""

    def record(self, action: str, obj: Any, *, before: None, after: dict[str, object]) -> object: ...


def prune(tx: Recording, before: datetime) -> int:
    """
    Delete the sealed entries at the beginning of the chain that are older than *before*, and return their number.

    The seal of the last one stays, and the audit records its digest, so that the rest of the chain can be checked.
    """
    take_turn("audit chain")
    remaining = AuditEntry.objects.filter(at__gte=before).values("pk")
    first_kept = AuditSeal.objects.filter(entry_id__in=remaining).aggregate(number=Min("number"))["number"]
    last = AuditSeal.objects.filter(number__lt=first_kept or head().number + 1).order_by("-number").first()
    if last is None:
        return 0
    count = _delete(last.number)
    if count:
        end = {"number": last.number, "digest": last.digest}
        after = {**end, "entries": count, "before": before.isoformat()}
        tx.record(PRUNED, Pruned(), before=None, after=after)
    return count


def _delete(number: int) -> int:
    """Delete the entries up to a number of the chain and the seals before it, and return the number of entries."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # For this transaction only. The triggers refuse to delete sealed entries without it.
            cursor.execute("SET LOCAL sluicegate.prune_audit = 'on'")
    count = 0
    sealed = AuditSeal.objects.filter(number__lte=number).values_list("entry_id", flat=True)
    for some in batched(sealed.iterator(chunk_size=AT_ONCE), AT_ONCE):
        rows = AuditEntry.objects.filter(pk__in=some)
        count += rows._raw_delete(rows.db)  # delete() refuses it, as nobody else may delete entries
    AuditSeal.objects.filter(number__lt=number).delete()
    return count
