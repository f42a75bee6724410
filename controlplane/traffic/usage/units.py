"""Which units requests have charged, and what is said of limits in other ones."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from django.conf import settings

from controlplane.core.optional import USAGE, optional
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.models import UsageRow
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import MONEY
from enforcement.model.units import AMOUNTS, USUAL, is_little, little, meant, never_charged

# The newest days of usage that are looked at. Without an index of units, each row takes some time.
MOST_READ = 100_000


def idle(units: Iterable[str]) -> set[str]:
    """Return those of the units that are neither usual nor ever charged, as far as the newest usage tells."""
    odd = set(units) - set(USUAL)
    return odd - charged_among(odd) if odd else set()


@optional(USAGE, set)  # nobody is told that a unit is never charged
def charged_among(units: Collection[str]) -> set[str]:
    """Return those of the units in which a request has had a cost."""
    newest = UsageRow.objects.filter(period="day").order_by("-at").values("pk")[:MOST_READ]
    rows = UsageRow.objects.filter(pk__in=newest, unit__in=units, cost__gt=0).order_by()
    return set(rows.values_list("unit", flat=True).distinct())


def advice(unit: str, *, money: str = "") -> str:
    """
    Return what to tell whoever writes a limit in a unit that :func:`idle` returns.

    Args:
        money: How the reader writes the unit of money. Empty: as REST does.
    """
    money = money or f"{MONEY}, millionths of {settings.CURRENCY}"
    intended = meant(unit, currency=settings.CURRENCY)
    return never_charged(unit, money if intended == MONEY else intended)


def zone_advice(limit: LimitValue, zones: Iterable[str]) -> str:
    """
    Return what to tell whoever writes a budget whose months are not those of the bills, or an empty string.

    Args:
        zones: Those of the projects whose requests the limit counts.
    """
    others = sorted(set(zones) - {limit.time_zone})
    if limit.unit != MONEY or limit.calendar in (None, "lifetime") or not others:
        return ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return (
        f"This budget counts in the time zone {limit.time_zone}, and the statements of its project in "
        f"{others[0]}{more}."
    )


def zones_of(*policies: Policy) -> dict[str, set[str]]:
    """Return by policy the time zones of the project that owns it, or of those that have a shared one."""
    zones = {policy.pk: {policy.project.time_zone} if policy.project else set[str]() for policy in policies}
    shared = [policy.pk for policy in policies if not (policy.project_id or policy._state.adding)]
    if shared:
        rows = Project.objects.filter(policy__in=shared).values_list("policy", "time_zone").distinct()
        for policy, zone in rows:
            zones[policy].add(zone)
    return zones


def warnings(policies: Sequence[Policy]) -> Iterator[tuple[int, str, str, str]]:
    """Yield what may be a mistake in saved policies: the place of the policy, a limit, a field of it and a sentence."""
    limits: list[tuple[int, Limit]] = [
        (at, limit) for at, policy in enumerate(policies) for limit in policy.limits.all()
    ]
    unused = idle(limit.unit for _, limit in limits)
    budgets = {at for at, limit in limits if limit.unit == MONEY and limit.calendar}
    zones = zones_of(*(policies[at] for at in sorted(budgets))) if budgets else {}
    for at, limit in limits:
        if limit.unit in unused:
            yield at, limit.name, "unit", advice(limit.unit)
        for name in AMOUNTS:
            number = getattr(limit, name)
            if number is not None and is_little(number, limit.unit):
                yield at, limit.name, name, little(number, settings.CURRENCY)
        with suppress(InvalidLimit):  # another program has written to the table
            if said := zone_advice(limit.as_value(), zones.get(policies[at].pk, ())):
                yield at, limit.name, "time_zone", said
