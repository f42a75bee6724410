"""Check the costs of a request, and which limits get a cost from them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from typing import Final

from enforcement.model.checks import integer_rule, shown
from enforcement.model.limits import UNIT_RULE, Limit, is_unit
from enforcement.model.metered import cost_name
from enforcement.model.sizes import MAX_NUMBER

Costs = int | Mapping[str, int]
"""
A number of requests, or permits by unit. A unit that is left out costs 0, but ``requests`` cost 1 then.

A meter names a limit that has rules of its own by :func:`~enforcement.model.metered.cost_name`, not by its unit.
"""

REQUESTS: Final = "requests"
_DIGEST_LENGTH: Final = 16
_DIGITS: Final = frozenset("0123456789abcdef")


@lru_cache(256)
def _is_name(name: str) -> bool:
    """Return whether costs may have this name, which is a unit or begins with one."""
    unit, _, digest = name.rpartition(":")
    has_rules = len(digest) == _DIGEST_LENGTH and _DIGITS.issuperset(digest)
    return is_unit(unit if has_rules else name)


def check_costs(costs: Costs) -> Costs:
    """
    Return *costs* unchanged, or raise ValueError if they are not valid.

    Raises:
        ValueError: A cost is not an integer from 0 to 2**53 - 1, or the name of a unit breaks a rule.
    """
    if type(costs) is dict or isinstance(costs, Mapping):
        for unit, cost in costs.items():
            if not isinstance(unit, str) or not _is_name(unit):
                raise ValueError(f"costs: each unit must be {UNIT_RULE}, got {shown(unit)}.")
            if type(cost) is not int or not 0 <= cost <= MAX_NUMBER:
                _check_cost(f"costs[{unit!r}]", cost)
    else:
        _check_cost("costs", costs)
    return costs


def own_costs(costs: Costs) -> Costs:
    """Return costs that stay as they are if the caller changes its mapping. They need not be valid."""
    if isinstance(costs, int):  # as most are; to look for a mapping takes seven times as long
        return costs
    return dict(costs) if type(costs) is dict or isinstance(costs, Mapping) else costs


def check_units(limits: Iterable[Limit], costs: Costs) -> None:
    """
    Raise ValueError for costs that limits in code would not count, because no unit of theirs is named.

    Args:
        costs: Costs that passed :func:`check_costs`.
    Raises:
        ValueError: A cost above 0 has a unit other than ``requests`` that no limit counts, or no limit gets a cost.
    """
    limits = tuple(limits)
    units = {limit.unit for limit in limits}
    if isinstance(costs, Mapping):
        own = {cost_name(limit) for limit in limits}
        for unit, cost in costs.items():
            if cost and unit not in units and unit != REQUESTS and unit not in own:
                rule = f"must be 0, because no limit of this call counts {unit!r}"
                raise ValueError(f"costs[{unit!r}]: {rule}, got {cost}. The limits count {_listed(units)}.")
    if not any(names(limit.unit, costs) or names(cost_name(limit), costs) for limit in limits):
        rule = f"must name a unit of the limits, which count {_listed(units)}"
        raise ValueError(f"costs: {rule}, got {shown(costs)}. 0 is a cost too.")


def names(unit: str, costs: int | Container[str]) -> bool:
    """
    Return whether *costs* give a cost for a unit, as a plain 0 does for every unit, and any costs do for requests.
    """
    return unit == REQUESTS or (costs == 0 if isinstance(costs, int) else unit in costs)


def _check_cost(name: str, cost: object) -> None:
    if type(cost) is not int or not 0 <= cost <= MAX_NUMBER:
        raise ValueError(f"{name}: {integer_rule(cost, 0, MAX_NUMBER)}.")


def _listed(units: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(units)))
