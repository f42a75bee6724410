"""A check of the saved limits, for what only an earlier release accepted."""

from typing import Any

from django.core import checks
from django.db import DatabaseError

from controlplane.objects.policies.models import Limit
from enforcement.model.calendars import is_host_zone


@checks.register("limits", deploy=True)
def time_zones_are_the_same(**_: Any) -> list[checks.CheckMessage]:
    """Hosts disagree on the windows of a limit with the zone of the host, which only release 0.2 accepted."""
    try:
        rows = [*Limit.objects.exclude(time_zone="UTC").select_related("policy")]
    except DatabaseError:
        return []  # it is reported where it is needed, and before the first migration there is no table
    hint = "Set the IANA name of a time zone, like Europe/Berlin."
    return [
        checks.Warning(f"{row}: the time zone {row.time_zone} may differ on each host.", hint, id="sluicegate.W008")
        for row in rows
        if is_host_zone(row.time_zone)
    ]
