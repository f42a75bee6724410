"""Objects that end within a week, with counts and the next of each kind."""

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Model, Q, QuerySet

from controlplane.core.tables.counting import capped
from controlplane.objects.emergency.models import ALL_PROJECTS, Suspension, concerning
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.scope import is_operator
from controlplane.objects.projects.models import Project, Token
from controlplane.web.kit.filters import ENDING, ENDING_AND_USED, EndsFilter
from controlplane.web.kit.site import instant, link_to, list_url

WITHIN = timedelta(days=7)
USED = timedelta(days=1)
FEW = 500
# Counted no further, because the tokens in use may be few of the many that end.
MOST = 1_000


def ending(user: Any, projects: QuerySet[Project], now: datetime) -> list[dict[str, object]]:
    """Return a row for each kind of object of *projects* that ends soon and that the user may see."""
    until, result, everything = now + WITHIN, [], is_operator(user)
    if user.has_perm("projects.view_token"):
        # With both ends, because the index of ends has also all tokens that ended long ago.
        soon = Token.objects.filter(revoked_at=None, expires_at__gt=now, expires_at__lte=until)
        tokens = soon if everything else soon.filter(project__in=projects)
        result.append(_row("Tokens", tokens, "expires_at", ENDING, now))
        used = tokens.filter(last_used_at__gte=now - USED)
        result.append(_row("Tokens in use", used, "expires_at", ENDING_AND_USED, now, "seen in the last 24 hours"))
    if user.has_perm("policies.view_override"):
        own = Q() if everything else Q(token__project__in=projects) | Q(project__in=projects)
        overrides = Override.objects.filter(own, ends_at__gt=now, ends_at__lte=until)
        result.append(_row("Overrides", overrides.select_related("limit__policy"), "ends_at", ENDING, now))
    suspended = Suspension.objects.filter(ends_at__gt=now, ends_at__lte=until)
    if not everything:
        suspended = suspended.filter(concerning(projects) | ALL_PROJECTS)
    if suspended.exists():  # rarer than the others, which say so if there are none
        result.append(_row("Suspensions", suspended, "ends_at", "", now))
    if user.has_perm("projects.view_managementkey"):
        keys = ManagementKey.objects.live(now).filter(expires_at__lte=until)
        result.append(_row("Management keys", keys, "expires_at", ENDING, now))
    return result


def _row(title: str, rows: QuerySet, column: str, choice: str, now: datetime, note: str = "") -> dict[str, object]:
    """Return the title, the number with a link to the list, and the next one."""
    count = capped(rows, MOST)
    next_one = _first(rows, column, count)
    return {
        "title": title,
        "note": note,
        "count": count,
        "shown": f"{count:,}",
        "url": list_url(rows.model, f"?{EndsFilter.parameter_name}={choice}" if choice else ""),
        "next": link_to(next_one) if next_one else "",
        "ends": instant(getattr(next_one, column), now) if next_one else "",
    }


def _first[M: Model](rows: QuerySet[M], column: str, count: int) -> M | None:
    """Return the row with the lowest value of a column, or None if *count*, the number of the rows, is 0."""
    if count > FEW:
        return rows.order_by(column, "pk").first()
    # Sorted here, because the database would look for few rows of a project in the order of the ends of all.
    ends = [(end, pk) for pk, end in rows.order_by().values_list("pk", column)] if count else []
    return rows.filter(pk=min(ends)[1]).first() if ends else None
