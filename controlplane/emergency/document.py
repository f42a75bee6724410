"""The document of an emergency, made from rows in SQL."""

from typing import Any

from controlplane.core.instants import microseconds
from controlplane.emergency.models import BreakGlass, Suspension
from enforcement.model.documents import SCHEMA
from enforcement.model.sizes import MAX_ITEMS_PER_LIST

# More would not fit beside the values. The other suspended projects are refused too, as inactive.
PROJECTS_NAMED = 500


def emergency_document() -> dict[str, Any] | None:
    """
    Return the document, or None if nothing is suspended but tokens, and the glass is whole.

    It depends on rows alone, and not on the time. Otherwise the store would differ from SQL as soon as a glass ends.
    """
    suspended = Suspension.objects.filter(token=None).order_by("at", "pk")
    projects = suspended.exclude(project=None).values_list("project", flat=True)[:PROJECTS_NAMED]
    values = suspended.filter(project=None).values("within", "name", "value")[:MAX_ITEMS_PER_LIST]
    rows = [{"project": row["within"], "name": row["name"], "value": row["value"]} for row in values]
    glass = BreakGlass.present()
    found = {"break_glass": glass and _glass(glass), "projects": list(projects), "values": rows}
    return {"schema": SCHEMA, **found} if any(found.values()) else None


def _glass(glass: BreakGlass) -> dict[str, int | None]:
    return {"began_at_us": microseconds(glass.began_at), "ends_at_us": microseconds(glass.ends_at)}
