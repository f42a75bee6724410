"""
Actions in an emergency, such as the kill switch for a token, a project or a value of an attribute.

Admin, API and tasks call these functions with an open change.

    with change(actor=actor, reason=reason) as tx:
        suspend(tx, token, ends_at)
"""

from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core import store
from controlplane.core.transactions import take_turn
from controlplane.objects.emergency.document import check_room
from controlplane.objects.emergency.models import MAX_GLASS, BreakGlass, EndedSuspension, Suspended, Suspension
from controlplane.objects.projects.models import Project, Token, isoformat

TURN = "emergency"
OVER = "its time is over"
ENDED_AT_ONCE = 500


def suspend(tx: OpenChange, subject: Token | Project, ends_at: datetime | None = None) -> Suspension:
    """
    Suspend a token or a project with an audit entry, and return its suspension, which may be older.

    One that is suspended already stays so, with its reason and its end.

    Raises:
        ValidationError: The end is over.
    """
    take_turn(TURN)
    owner = {str(subject._meta.model_name): subject}
    _end_those_over(tx, Suspension.objects.filter(**owner), timezone.now())
    if suspension := Suspension.objects.filter(**owner).first():
        return suspension
    made = Suspension(**owner, ends_at=ends_at, reason=tx.reason[:500], by=tx.actor.name)
    made.clean()
    made.save()
    _record(tx, "suspend", subject, {"suspended": False}, _suspended(made))
    return made


def suspend_value(
    tx: OpenChange, name: str, value: str, within: Project | None = None, ends_at: datetime | None = None
) -> Suspension:
    """
    Suspend a value of an attribute in a project, or in all of them, with an audit entry.

    Raises:
        ValidationError: No request can have such an attribute, the end is over, the value is suspended already, or
            there are too many.
    """
    take_turn(TURN)
    same = Suspension.objects.filter(within=within, name=name, value=value, token=None, project=None)
    _end_those_over(tx, same, timezone.now())
    row = Suspension(within=within, name=name, value=value, ends_at=ends_at, reason=tx.reason[:500], by=tx.actor.name)
    row.full_clean()
    row.save()
    check_room(within)
    tx.created(row)
    return row


def resume(tx: OpenChange, suspension: Suspended) -> None:
    """End a suspension with an audit entry, and keep it as history. Do nothing if somebody else has ended it."""
    take_turn(TURN)
    if present := Suspension.objects.filter(pk=suspension.pk).first():
        _end_suspension(tx, present, timezone.now())


def set_end(tx: OpenChange, suspension: Suspension, ends_at: datetime | None) -> bool:
    """
    Give a suspension another end with an audit entry, unless it has this one, and return whether it is in force.

    One that somebody has resumed meanwhile stays resumed.

    Raises:
        ValidationError: The end is over, or there is no room for it.
    """
    take_turn(TURN)
    present = Suspension.objects.filter(pk=suspension.pk).first()
    if present is None:
        return False
    if present.ends_at == ends_at:
        return True
    before, was = present.as_record(), _suspended(present)
    present.ends_at = ends_at
    present.clean()
    present.save(update_fields=["ends_at"])
    if subject := present.token or present.project:
        _record(tx, "suspend", subject, was, _suspended(present))
    else:
        check_room(present.within)
        tx.updated(present, before)
    return True


def end_suspensions(now: datetime) -> int:
    """
    Take back the suspensions whose end is over, and return their number.

    Enforcers have lifted them by themselves, so nothing depends on when this runs.
    """
    rows = Suspension.objects.order_by("ends_at", "pk")
    if not rows.filter(ends_at__lte=now).exists():
        return 0  # most runs end here, without a transaction, which on SQLite would block other writers
    both = by_both_clocks(now)
    if both is None or not (over := rows.filter(ends_at__lte=both)).exists():
        return 0
    with change(actor=Actor("end_suspensions", "task"), reason=OVER) as tx:
        take_turn(TURN)
        return _end_those_over(tx, over[:ENDED_AT_ONCE], both)


def by_both_clocks(now: datetime) -> datetime | None:
    """
    Return the earlier of this host's time and the store's, or None if the store does not answer.

    Enforcers go by the clock of the store. A host whose clock is ahead must not let in sooner what is suspended, also
    while the store is away: what it takes back then is published when the store is back.
    """
    present = store.now()
    return present and min(now, present)


def _end_those_over(tx: OpenChange, rows: QuerySet[Suspension], now: datetime) -> int:
    over = [row for row in rows.select_related("token", "project", "within") if not row.is_in_force(now)]
    for row in over:
        _end_suspension(tx, row, now)
    return len(over)


def _end_suspension(tx: OpenChange, suspension: Suspension, now: datetime) -> None:
    ended_at = min(filter(None, (now, suspension.ends_at)))
    EndedSuspension.of(suspension, ended_at, tx.actor.name).save()
    subject, was = suspension.token or suspension.project, _suspended(suspension)
    if subject is None:
        tx.delete(suspension)
        return
    suspension.delete()
    _record(tx, "resume", subject, was, {"suspended": False})


def _suspended(suspension: Suspension) -> dict[str, Any]:
    """Return what the audit entry of a token or project says of its suspension."""
    end = {"suspended_until": isoformat(suspension.ends_at)} if suspension.ends_at else {}
    return {"suspended": True, **end}


def _record(tx: OpenChange, deed: str, subject: Token | Project, was: dict[str, Any], now: dict[str, Any]) -> None:
    kind = subject._meta.model_name
    subject = type(subject).objects.get(pk=subject.pk)
    before, after = ({**subject.as_record(), **state} for state in (was, now))
    tx.record(f"{kind}.{deed}", subject, before=before, after=after)
    if kind == "project":
        tx.touch("emergency")


def end_after(length: timedelta) -> datetime:
    """
    Return the end of a glass that is broken now for *length*, by the clock of the store.

    By the clock of a host that is some minutes behind, a short one would be over before it begins.
    """
    now = timezone.now()
    return min((store.now() or now) + length, now + MAX_GLASS)


def break_glass(tx: OpenChange, ends_at: datetime) -> BreakGlass:
    """
    Make every limit a shadow until *ends_at*, with an audit entry. A glass that is broken gets the new end.

    It begins at once by the clock of the store, although this host's may be ahead. An end that is more than 24 hours
    from then for that reason comes so much sooner.

    Raises:
        ValidationError: There is no reason, or the end is over or more than 24 hours from now.
    """
    if not tx.reason.strip():
        raise ValidationError({"reason": ValidationError("Must not be empty.", code="blank")})
    now = timezone.now()
    began = by_both_clocks(now) or now
    take_turn(TURN)
    _end(tx, now)
    latest = began + MAX_GLASS if ends_at <= now + MAX_GLASS else ends_at
    glass = BreakGlass(began_at=began, ends_at=min(ends_at, latest), reason=tx.reason[:500], by=tx.actor.name)
    glass.full_clean()
    glass.save()
    tx.record("breakglass.break", glass, before=None, after=glass.as_record())
    return glass


def mend_glass(tx: OpenChange) -> bool:
    """Let every limit be enforced again, with an audit entry, and return whether the glass was broken."""
    take_turn(TURN)
    return _end(tx, timezone.now())


def _end(tx: OpenChange, now: datetime) -> bool:
    glass = BreakGlass.present()
    if glass is None:
        return False
    before = glass.as_record()
    glass.ended_at, glass.ended_by = min(now, glass.ends_at), tx.actor.name
    glass.save(update_fields=["ended_at", "ended_by"])
    tx.record("breakglass.mend", glass, before=before, after=glass.as_record())
    return True


def end_glass(now: datetime) -> bool:
    """
    Take back the document of a glass whose end is over, and return whether there was one.

    Enforcers have ended it by themselves, so nothing depends on when this runs.
    """
    if not BreakGlass.objects.filter(ended_at=None, ends_at__lte=now).exists():
        return False  # most runs end here, without a transaction, which on SQLite would block other writers
    both = by_both_clocks(now)
    if both is None or not BreakGlass.objects.filter(ended_at=None, ends_at__lte=both).exists():
        return False
    with change(actor=Actor("end_glass", "task"), reason=OVER) as tx:
        take_turn(TURN)
        glass = BreakGlass.present()
        return glass is not None and glass.ends_at <= both and _end(tx, both)
