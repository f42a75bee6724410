"""What an emergency changes for a request: suspensions, and a glass that is broken."""

from collections.abc import Mapping
from datetime import datetime

from django.db.models import Q

from controlplane.emergency.models import BreakGlass, Suspension
from controlplane.explain.question import Case
from controlplane.projects.models import Project, Token
from enforcement.model.matching import LABEL_PREFIX
from enforcement.plan.rules import Subject


def glass_at(at: datetime) -> BreakGlass | None:
    """Return the broken glass under which no limit denied at an instant, or None."""
    broken = BreakGlass.objects.filter(began_at__lte=at, ends_at__gt=at)
    return broken.filter(Q(ended_at=None) | Q(ended_at__gt=at)).first()


def suspension_of(case: Case, present: Subject | None) -> str:
    """Return in words what of a request like that of the case is suspended now, or an empty string."""
    token, project = case.token, case.project
    if token and Suspension.objects.filter(token=token).exists():
        return "the token is suspended"
    if project is None:
        return ""
    if Suspension.objects.filter(project=project).exists():
        return "the project is suspended"
    labels = present.token.labels if present and present.token else {}
    known: Mapping[str, str] = {**case.attributes, **{LABEL_PREFIX + name: value for name, value in labels.items()}}
    found = _suspended_value(project, known)
    return f"the value {found[1]} of {found[0]} is suspended" if found else ""


def suspended_label(token: Token) -> tuple[str, str] | None:
    """Return the name and the value of a suspended label of a token, or None if it has none."""
    known = {LABEL_PREFIX + name: value for name, value in token.labels.items()}
    return _suspended_value(token.project, known)


def _suspended_value(project: Project, known: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the name and the value of the first of these attributes whose value is suspended, or None."""
    values = Suspension.objects.filter(Q(within=None) | Q(within=project), token=None, project=None)
    rows = values.filter(name__in=known).values_list("name", "value") if known else ()
    return next(((name, value) for name, value in rows if known[name] == value), None)


__all__ = ["glass_at", "suspended_label", "suspension_of"]
