"""The effects of an emergency on a request: suspensions, and a broken glass."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import chain

from django.db.models import Q
from django.utils import timezone

from controlplane.core.instants import exact
from controlplane.objects.emergency.models import BreakGlass, EndedSuspension, Suspended, Suspension, SuspensionQuerySet
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain.question import Case
from enforcement.model.matching import LABEL_PREFIX
from enforcement.plan.rules import Subject

type Suspensions = SuspensionQuerySet[Suspension] | SuspensionQuerySet[EndedSuspension]


def glass_at(at: datetime) -> BreakGlass | None:
    """Return the broken glass under which no limit denied at an instant, or None."""
    broken = BreakGlass.objects.filter(began_at__lte=at, ends_at__gt=at)
    return broken.filter(Q(ended_at=None) | Q(ended_at__gt=at)).first()


def suspension_of(case: Case, present: Subject | None) -> str:
    """Return in words what of a request like that of the case is suspended now, or an empty string."""
    labels = present.token.labels if present and present.token else {}
    found = next(_found(Suspension.objects.in_force(timezone.now()), case, labels), None)
    if found is None:
        return ""
    end = f" until {exact(found.ends_at)}" if found.ends_at else ", until somebody resumes it"
    return f"{_subject(found)} is suspended{end} ({found.reason})"


def suspension_then(case: Case) -> str:
    """Return in a sentence what of the request of a case was suspended at its time, or an empty string."""
    labels, at = case.token.labels if case.token else {}, case.at
    ended = EndedSuspension.objects.filter(at__lte=at, ended_at__gte=at)
    found = next(chain(_found(Suspension.objects.filter(at__lte=at), case, labels), _found(ended, case, labels)), None)
    if found is None:
        return ""
    end = f"until {exact(found.ends_at)}" if found.ends_at else "without an end"
    what = _subject(found)
    return f"{what[0].upper()}{what[1:]} was suspended {end} by {found.by}: {found.reason.rstrip('.')}."


def _found(rows: Suspensions, case: Case, labels: Mapping[str, str]) -> Iterator[Suspended]:
    """Yield those of the suspensions that a request like that of a case falls under, its own one first."""
    token, project = case.token, case.project
    if token:
        yield from rows.filter(token=token)
    if project:
        yield from rows.filter(project=project)
        yield from _values(rows, project, {**case.attributes, **_of_labels(labels)})


def _subject(found: Suspended) -> str:
    return f"the value {found.value} of {found.name}" if found.kind == "value" else f"the {found.kind}"


def suspended_labels(token: Token, now: datetime) -> list[Suspended]:
    """Return the suspensions in force of the labels of a token."""
    return list(_values(Suspension.objects.in_force(now), token.project, _of_labels(token.labels)))


def _of_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {LABEL_PREFIX + name: value for name, value in labels.items()}


def _values(rows: Suspensions, project: Project, known: Mapping[str, str]) -> Iterator[Suspended]:
    """Yield the suspensions of a value that one of these attributes has."""
    found = rows.of_values(project).filter(name__in=known) if known else ()
    yield from (row for row in found if known[row.name] == row.value)
