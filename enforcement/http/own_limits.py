"""Describe the limits of one consumer, with what is used and left of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from enforcement.model.keys import Keys
from enforcement.model.matching import Attributes, is_label
from enforcement.model.partitions import PartitionIndex
from enforcement.plan.binding import BoundLimit
from enforcement.plan.rules import Rule

OF_ONE_REQUEST: Final = frozenset({"method", "path"})
"""Attributes that say nothing about the other requests of a consumer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """
    The state of one counter in the store.

    Attributes:
        used: Permits that are charged now. More than the capacity after a settlement above the estimate.
        left: The greatest cost that would be admitted now.
        reset_us: Microseconds until no charge is felt any more. None: never.
        shared: Whether it is the overflow counter, which all values beyond the project's cap share.
    """

    used: int
    left: int
    reset_us: int | None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """
    One limit of a consumer.

    Attributes:
        rule: The limit, with its override applied.
        bound: The limit with its counter. None: it is partitioned by attributes that the request does not carry.
        partition: The attributes of the request and labels of the token that select the counter. Empty if the limit is
            not partitioned.
        reading: What the store says of the counter. None: there is no *bound*, or it was not read yet.
        unused_max: Permits that may lie unused in leases. 0: the limit is not leased.
    """

    rule: Rule
    bound: BoundLimit | None
    partition: Mapping[str, str] = field(default_factory=dict)
    reading: Reading | None = None
    unused_max: int = 0


@dataclass(frozen=True, slots=True)
class OwnLimits:
    """
    All limits of a consumer.

    Attributes:
        at_us: When the counters were read, by the store's clock, microseconds since the epoch.
        revision: The published revision that the limits come from.
    """

    at_us: int
    revision: int
    limits: Sequence[OwnLimit]


def own_limits(
    rules: Iterable[Rule], indexes: Sequence[PartitionIndex | None], keys: Keys, attributes: Attributes
) -> list[OwnLimit]:
    """
    Return the limits of a consumer, each bound to its counter if the request tells which one that is.

    A limit that matches only some requests is bound as well, because its counter does not depend on them.

    Args:
        indexes: For each rule, the partition index of its values. None if the rule has no partitions.
        attributes: Those of the request. ``method`` and ``path`` are not used.
    """
    return [_own_limit(rule, indexes[rule.index], keys, attributes) for rule in rules]


def _own_limit(rule: Rule, index: PartitionIndex | None, keys: Keys, attributes: Attributes) -> OwnLimit:
    names = rule.varies_by
    if not OF_ONE_REQUEST.isdisjoint(names) or not all(name in attributes for name in names):
        return OwnLimit(rule, None)
    rule = rule.of(attributes)
    bound = rule.bind(keys, attributes, index)
    if bound.limit.shadow:
        # Read like any other. A reading that no limit denies would register the values of a partition.
        bound = replace(bound, limit=replace(bound.limit, mode="enforce", published=True))
    partition = {name: (rule.labels if is_label(name) else attributes)[name] for name in rule.limit.partition_by}
    return OwnLimit(rule, bound, partition)
