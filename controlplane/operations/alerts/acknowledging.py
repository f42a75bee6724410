"""Who takes care of what needs a hand, and what nobody wants to hear of for some time."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError

from controlplane.changes.change.transaction import OpenChange
from controlplane.operations.alerts.models import RAISED, Acknowledgement, AlertEvent, AlertRule

LONGEST_MUTE = timedelta(days=7)
# An acknowledgement of what nobody knows the beginning of, which may be over and back.
LONGEST = timedelta(days=1)


def subject_of_event(rule: str, subject: str) -> str:
    """Return the key of what an event is about, as a condition has it."""
    return f"alert|{rule}|{subject}"


def answer(tx: OpenChange, given: Acknowledgement, now: datetime) -> None:
    """
    Save that something is acknowledged or muted, in place of what was said of it before.

    Raises:
        ValidationError: It is muted for more than 7 days, or until a time that is over.
    """
    if given.state == Acknowledgement.MUTED and not (given.until and now < given.until <= now + LONGEST_MUTE):
        raise ValidationError({"until": "Must be in the future, and at most 7 days from now."})
    given.by, given.at = tx.actor.name[:200], now
    given.full_clean(validate_unique=False)
    former = Acknowledgement.objects.select_for_update().filter(pk=given.subject).first()
    given.save()
    if former is None:
        tx.created(given)
    else:
        tx.updated(given, former.as_record())


def take_back(tx: OpenChange, subject: str) -> None:
    """Show something again that was acknowledged or muted. Nothing happens if it was neither."""
    row = Acknowledgement.objects.select_for_update().filter(pk=subject).first()
    if row is not None:
        tx.delete(row)


def in_force(subjects: Collection[str], now: datetime) -> dict[str, Acknowledgement]:
    """Return what was said of these subjects and is not over, by subject."""
    rows = Acknowledgement.objects.filter(subject__in=subjects).exclude(until__lte=now)
    return {row.subject: row for row in rows}


def forget(rule: AlertRule, subject: str) -> None:
    """Let an acknowledgement end with what it was of. What is muted stays so until its time."""
    subject = subject_of_event(rule.pk, subject)
    Acknowledgement.objects.filter(pk=subject, state=Acknowledgement.ACKNOWLEDGED).delete()


def to_be_told(rule: AlertRule, events: Iterable[AlertEvent], now: datetime) -> list[AlertEvent]:
    """Return the events that are news also to whoever has acknowledged or muted what they are about."""
    by_subject = [(event, subject_of_event(rule.pk, event.subject)) for event in events]
    known = in_force([subject for _, subject in by_subject], now)
    return [event for event, subject in by_subject if _is_news(event, known.get(subject))]


def _is_news(event: AlertEvent, said: Acknowledgement | None) -> bool:
    return said is None or (event.state == RAISED and event.level > said.weight)


def prune(now: datetime) -> int:
    """Delete what was said so long ago that it is not in force any more, and return the number of rows."""
    return Acknowledgement.objects.filter(until__lt=now - LONGEST_MUTE).delete()[0]
