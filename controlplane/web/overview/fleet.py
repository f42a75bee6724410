"""The instances, as the first page shows them."""

from datetime import datetime

from django.utils.html import format_html

from controlplane.releases.publishing import publisher
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.fleet.models import Instance
from controlplane.web.kit.site import badge, instant, link_to
from controlplane.web.pages.fleet import state_of
from enforcement.store_calls.instances import DEGRADED, OK

INSTANCES_SHOWN = 12


def fleet_rows(fleet: Fleet, lost: list[Instance], now: datetime) -> list[dict[str, object]]:
    """Return the first rows of the table of instances as dictionaries, the lost ones and those with a problem first."""
    # A large fleet does not fit here.
    worst = sorted(fleet, key=lambda instance: (instance.state == OK, instance.revision, instance.id))
    gone = [_fleet_row(row, format_html("{} {}", badge("lost", "bad"), instant(row.seen_at, now))) for row in lost]
    here = [_fleet_row(row, state_of(row, None if fleet.unknown else True)) for row in worst]
    return [*gone, *here][:INSTANCES_SHOWN]


def summary(fleet: Fleet) -> str:
    """Return in words how many of the instances run the last revision."""
    if fleet.unknown:
        return "These ran when the store was last reached"
    last = publisher.last_revision()
    current = sum(row.revision >= last for row in fleet)
    return f"{current:,} of {len(fleet):,} run revision {last:,}" if fleet else "None"


def _fleet_row(row: Instance, state: str) -> dict[str, object]:
    alone = row.decisions.get("fallback", 0)
    fields = {"host": row.host, "revision": row.revision, "version": row.version}
    return {"link": link_to(row), "state": state, "alone": alone if row.state == DEGRADED else 0, **fields}
