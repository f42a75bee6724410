"""
What people do in an emergency. Admin, API and tasks call these functions with an open change.

    with change(actor=actor, reason=reason) as tx:
        suspend(tx, token=token)
"""

from datetime import datetime

from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.core.transactions import take_turn
from controlplane.emergency.document import check_room
from controlplane.emergency.models import BreakGlass, Suspension
from controlplane.projects.models import Project, Token
from controlplane.publishing.changes import Actor, Change, change

TURN = "emergency"


def suspend(tx: Change, subject: Token | Project) -> Suspension:
    """Suspend a token or a project with an audit entry, and return its suspension, which may be older."""
    take_turn(TURN)
    owner = {subject._meta.model_name: subject}
    found, created = Suspension.objects.get_or_create(
        **owner, defaults={"reason": tx.reason[:500], "by": tx.actor.name}
    )
    if created:
        _record(tx, "suspend", subject)
    return found


def suspend_value(tx: Change, name: str, value: str, within: Project | None = None) -> Suspension:
    """
    Suspend a value of an attribute in a project, or in all of them, with an audit entry.

    Raises:
        ValidationError: No request can have such an attribute, the value is suspended already, or there are too many.
    """
    take_turn(TURN)
    row = Suspension(within=within, name=name, value=value, reason=tx.reason[:500], by=tx.actor.name)
    row.full_clean()
    row.save()
    check_room(within)
    tx.created(row)
    return row


def resume(tx: Change, suspension: Suspension) -> None:
    """End a suspension with an audit entry, or do nothing if somebody else has ended it."""
    take_turn(TURN)
    if not Suspension.objects.filter(pk=suspension.pk).exists():
        return
    subject = suspension.token or suspension.project
    if subject is None:
        tx.delete(suspension)
        return
    suspension.delete()
    _record(tx, "resume", subject)


def _record(tx: Change, deed: str, subject: Token | Project) -> None:
    kind, was = subject._meta.model_name, deed == "resume"
    subject = type(subject).objects.get(pk=subject.pk)
    before, after = ({**subject.as_record(), "suspended": suspended} for suspended in (was, not was))
    tx.record(f"{kind}.{deed}", subject, before=before, after=after)
    if kind == "project":
        tx.touch("emergency")


def break_glass(tx: Change, ends_at: datetime) -> BreakGlass:
    """
    Make every limit a shadow until *ends_at*, with an audit entry. A glass that is broken gets the new end.

    Raises:
        ValidationError: There is no reason, or the end is over or more than 24 hours from now.
    """
    if not tx.reason.strip():
        raise ValidationError({"reason": ValidationError("Must not be empty.", code="blank")})
    take_turn(TURN)
    _end(tx, timezone.now())
    glass = BreakGlass(ends_at=ends_at, reason=tx.reason[:500], by=tx.actor.name)
    glass.full_clean()
    glass.save()
    tx.record("breakglass.break", glass, before=None, after=glass.as_record())
    return glass


def mend_glass(tx: Change) -> bool:
    """Let every limit be enforced again, with an audit entry, and return whether the glass was broken."""
    take_turn(TURN)
    return _end(tx, timezone.now())


def _end(tx: Change, now: datetime) -> bool:
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
    with change(actor=Actor("end_glass", "task"), reason="its time is over") as tx:
        take_turn(TURN)
        glass = BreakGlass.present()
        return glass is not None and glass.ends_at <= now and _end(tx, now)
