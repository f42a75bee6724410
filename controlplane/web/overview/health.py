"""The conditions of the installation and its instances, as the first page shows them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db import models
from django.utils.html import format_html

from controlplane.operations.health.conditions import Condition
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.fleet.models import Instance
from controlplane.web.kit.site import badge, change_url, instant, link_to, list_url
from controlplane.web.pages.fleet import state_of
from enforcement.store_calls.instances import DEGRADED, OK

INSTANCES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Fact:
    """A condition with its state as a badge, its detail as HTML, and the address of what it is about."""

    name: str
    text: str
    kind: str
    detail: str
    url: str

    @property
    def state(self) -> str:
        return badge(self.text, self.kind)


def facts_of(conditions: Iterable[Condition], now: datetime) -> list[Fact]:
    """Return conditions as a page shows them."""
    return [Fact(one.name, one.text, one.level.value, _detail(one, now), _url(one)) for one in conditions]


def _detail(one: Condition, now: datetime) -> str:
    return format_html("{} {}.", one.detail, instant(one.since, now)) if one.since else one.detail


def _url(one: Condition) -> str:
    if one.about is None:
        return ""
    return change_url(one.about) if isinstance(one.about, models.Model) else list_url(one.about)


def fleet_rows(fleet: Fleet, lost: list[Instance], now: datetime) -> list[dict[str, object]]:
    """Return the first rows of the table of instances as dictionaries, the lost ones and those with a problem first."""
    # A large fleet does not fit here.
    worst = sorted(fleet, key=lambda instance: (instance.state == OK, instance.revision, instance.id))
    gone = [_fleet_row(row, format_html("{} {}", badge("lost", "bad"), instant(row.seen_at, now))) for row in lost]
    here = [_fleet_row(row, state_of(row, None if fleet.unknown else True)) for row in worst]
    return [*gone, *here][:INSTANCES_SHOWN]


def _fleet_row(row: Instance, state: str) -> dict[str, object]:
    alone = row.decisions.get("fallback", 0)
    fields = {"host": row.host, "revision": row.revision, "version": row.version}
    return {"link": link_to(row), "state": state, "alone": alone if row.state == DEGRADED else 0, **fields}
