"""The document of an emergency, made from rows in SQL."""

from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import F

from controlplane.core.instants import microseconds
from controlplane.objects.emergency.models import BreakGlass, Suspension
from controlplane.objects.projects.models import Project
from enforcement.model.documents import SCHEMA
from enforcement.model.sizes import MAX_ITEMS_PER_LIST
from enforcement.model.strict_json import dumps

VALUE = ("within", "name", "value", "ends_at")
# More would not fit beside the values. The others are refused too, as inactive. Those with an end come
# first, because an enforcer that does not know the end goes on refusing them until the control plane resumes them.
PROJECTS_NAMED = 250
# For all suspended values. The rest of the document's 65,536 bytes is for the projects and for the glass, which must
# always fit, also in an emergency in which many values are suspended already.
MOST_BYTES = 40_000
# For those of one project, so that no tenant uses up what is there for all.
MOST_BYTES_OF_A_PROJECT = 10_000


def emergency_document() -> dict[str, Any] | None:
    """
    Return the document, or None if nothing is suspended but tokens, and the glass is whole.

    It depends on rows alone, and not on the time. Otherwise the store would differ from SQL as soon as a glass ends.
    """
    suspended = Suspension.objects.filter(token=None).exclude(project=None)
    suspended = suspended.order_by(F("ends_at").asc(nulls_last=True), "at", "pk")
    projects = list(suspended.values_list("project", "ends_at", "project__active")[:PROJECTS_NAMED])
    endless = [project for project, ends_at, _ in projects if ends_at is None]
    ending = [_ending(project, ends_at, active) for project, ends_at, active in projects if ends_at is not None]
    glass = BreakGlass.present()
    found = {"break_glass": glass and _glass(glass), "projects": endless, "values": _values()}
    # Left out if it is empty, because an enforcer of an earlier state refuses a document with this field.
    found |= {"ending_projects": ending} if ending else {}
    return {"schema": SCHEMA, **found} if any(found.values()) else None


def _ending(project: str, ends_at: datetime, active: bool) -> dict[str, Any]:
    """Return a suspended project with its end, and what it is then, which its own document does not say yet."""
    return {"id": project, "ends_at_us": microseconds(ends_at), "active": active}


def _values() -> list[dict[str, Any]]:
    values = Suspension.objects.filter(token=None, project=None).order_by("at", "pk")
    return [
        {"project": within, "name": name, "value": it, **({"ends_at_us": microseconds(ends_at)} if ends_at else {})}
        for within, name, it, ends_at in values.values_list(*VALUE)
    ]


def check_room(within: Project | None) -> None:
    """
    Do nothing if all suspended values fit into the document, and those in the project *within* into its part of it.

    Raises:
        ValidationError: One has to be resumed first.
    """
    values = _values()
    own = [value for value in values if within and value["project"] == within.pk]
    if _length(own) > MOST_BYTES_OF_A_PROJECT:
        raise _too_many("in this project ")
    if len(values) > MAX_ITEMS_PER_LIST or _length(values) > MOST_BYTES:
        raise _too_many("")


def _length(values: list[dict[str, Any]]) -> int:
    return len(dumps({"values": values}).encode())


def _too_many(where: str) -> ValidationError:
    way_out = "Resume some of them first, or suspend a token or a project."
    message = f"Too many values are suspended {where}already. {way_out}"
    return ValidationError({"value": ValidationError(message, code="too_many")})


def _glass(glass: BreakGlass) -> dict[str, int | None]:
    return {"began_at_us": microseconds(glass.began_at), "ends_at_us": microseconds(glass.ends_at)}
