"""Find the limits that apply to a token, and bind them to counters once the attributes of a request are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from enforcement.model.documents import OverrideDocument, Policy, ProjectDocument, TokenDocument
from enforcement.model.keys import GLOBAL_TAG, Identity, Keys, counter_name, earlier_name, name_of
from enforcement.model.limits import Limit
from enforcement.model.matching import LABEL_PREFIX, NO_LABELS, Attributes, is_label, without_labels
from enforcement.model.metered import FrozenMapping
from enforcement.model.partitions import PartitionIndex, life_us
from enforcement.plan.binding import BoundLimit


class Subject(NamedTuple):
    """
    The documents that apply to one token at one revision.

    Attributes:
        token: None for requests without a token, and for the project as a whole.
        anonymous: Whether they are those of requests without a token.
    """

    project: ProjectDocument
    token: TokenDocument | None
    policies: Mapping[str, Policy]
    global_policy: str | None
    anonymous: bool = False

    def attached(self) -> list[tuple[str, str, str, str | None]]:
        """Return the scope, hash tag and holder of each place where a policy may be attached, and its policy's id."""
        project, token = self.project, self.token
        result: list[tuple[str, str, str, str | None]] = [("global", GLOBAL_TAG, "", self.global_policy)]
        if not self.anonymous:
            result.append(("project", project.id, project.id, project.policy))
        if token is None:
            result.append(("anonymous", project.id, project.id, project.anonymous_policy))
        else:
            result.append(("token", project.id, token.id, token.policy))
        return result


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One limit that may apply to a token, before the attributes of a request are known.

    Attributes:
        labels: The labels of the token that the limit looks at, named as attributes.
        raised: The overrides for some values of attributes that only a request has. The first that fits is applied.
        varies_by: What the limit is partitioned by that only a request has, which is all but labels.
    """

    limit: Limit
    scope: str
    tag: str
    identity: Identity
    policy: Policy
    override_id: str | None
    ends_at_us: int | None
    index: int
    project: ProjectDocument
    labels: FrozenMapping[str] = NO_LABELS
    raised: tuple[OverrideDocument, ...] = ()
    varies_by: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "varies_by", without_labels(self.limit.partition_by))

    @property
    def has_one_counter(self) -> bool:
        """Whether the limit has one counter for all requests of the subject."""
        return not self.varies_by and all(name in self.labels for name in self.limit.partition_by)

    @property
    def ends_us(self) -> list[int]:
        """When each of its overrides ends that has an end, in microseconds since the epoch."""
        ends = (self.ends_at_us, *(override.ends_at_us for override in self.raised))
        return [end for end in ends if end is not None]

    def of(self, attributes: Attributes) -> Rule:
        """Return the rule for these attributes of a request, whose values may have an override of their own."""
        for override in self.raised:
            if override.is_for({**attributes, **self.labels}):
                return self._with(override)
        return self

    def _with(self, override: OverrideDocument) -> Rule:
        own = next(limit for limit in self.policy.limits if limit.name == self.limit.name)
        limit = replace(override.apply(own), mode=self.limit.mode, published=True)
        return replace(self, limit=limit, override_id=override.id, ends_at_us=override.ends_at_us, raised=())

    def bind(self, keys: Keys, attributes: Attributes, partitions: PartitionIndex | None = None) -> BoundLimit:
        """
        Return a new :class:`BoundLimit`, the limit with its counter for these attributes.

        Args:
            attributes: Those of the request. They include each attribute in :attr:`varies_by`.
            partitions: The result of :meth:`partitions`. None leaves the value out of the store's register.
        """
        if self.raised:
            found = self.of(attributes)
            bound = replace(found, raised=()).bind(keys, attributes, partitions)
            return replace(bound, common=(self.limit, self.override_id))
        limit, identity, value, earlier = self.limit, self.identity, "", ""
        if limit.partition_by:
            # Names are part of the key. Otherwise another attribute with equal values would continue the old counters.
            named = ((name, self._value(name, attributes)) for name in limit.partition_by)
            identity = (*identity, *chain.from_iterable(named))
            if partitions:
                value = name_of(identity)
                earlier = keys.scope(self.tag) + earlier_name(limit, identity) if limit.durable else ""
        key = keys.scope(self.tag) + counter_name(limit, identity)
        origin = (self.scope, self.policy.id, self.policy.slug, self.override_id, self.index)
        return BoundLimit(limit, key, *origin, partitions, value, earlier=earlier, labels=self.labels)

    def _value(self, name: str, attributes: Attributes) -> str:
        return (self.labels if is_label(name) else attributes)[name]

    def overflow(self, partitions: PartitionIndex) -> BoundLimit:
        """Return a new :class:`BoundLimit`, the limit with its overflow counter."""
        origin = (self.scope, self.policy.id, self.policy.slug, self.override_id, self.index)
        return BoundLimit(self.limit, partitions.overflow, *origin, overflow=True)

    def partitions(self, keys: Keys) -> PartitionIndex | None:
        """
        Return the index in which the store registers the values of this limit's partition, or None if it has none.

        Each project has a register of its own, even for a global limit. So a client that invents values can only fill
        the register of its own project.

        Labels need no register, because only operators set them, and each value belongs to a token.
        """
        if not self.varies_by:
            return None
        key, overflowed = keys.census(self.tag, ("census", self.project.id, self.policy.id, self.limit.name))
        shared = counter_name(self.limit, ("overflow", self.project.id, *self.identity))
        life = max(life_us(rule.limit) for rule in (self, *map(self._with, self.raised)))
        return PartitionIndex(key, overflowed, keys.scope(self.tag) + shared, self.project.partition_cap, life)


def rules_of(subject: Subject, now_us: int) -> tuple[Rule, ...]:
    """
    Return a rule for each limit that applies to a subject, with its override applied.

    Those of a token come from the global policy, the policy of its project and its own policy, in this order. Requests
    without a token have the global policy and the anonymous policy of the project, and a project as a whole has all
    three. A policy that is not published adds no limits. The reader of the documents reports it. Overrides that have
    ended by *now_us* are ignored, and so are limits that the labels of the token do not fit. A project as a whole has
    tokens with any labels.
    """
    project, token = subject.project, subject.token
    overrides = [*_in_order(token.overrides if token else ()), *_in_order(project.overrides)]
    rules: list[Rule] = []
    for scope, tag, holder, policy_id in subject.attached():
        policy = subject.policies.get(policy_id or "")
        for limit in policy.limits if policy else ():
            assert policy is not None
            labels = _labels_of(limit, subject, scope)
            if labels is None:
                continue
            override, raised = _override_for(overrides, policy, limit, labels, now_us)
            if override is not None:
                limit = override.apply(limit)
            rules.append(
                Rule(
                    limit,
                    scope,
                    tag,
                    (scope, holder, policy.id, limit.name),
                    policy,
                    override.id if override else None,
                    override.ends_at_us if override else None,
                    len(rules),
                    project,
                    labels,
                    raised,
                )
            )
    return tuple(rules)


def as_shadow(limit: Limit) -> Limit:
    """Return a limit that counts as this one does, and denies nothing."""
    return limit if limit.shadow else replace(limit, mode="shadow", published=True)


def _labels_of(limit: Limit, subject: Subject, scope: str) -> FrozenMapping[str] | None:
    """Return the labels that a limit looks at, named as attributes, or None if it does not apply because of them."""
    names = [name for name in (*limit.partition_by, *limit.match.attributes) if is_label(name)]
    if not names:
        return NO_LABELS
    if subject.token is None:
        return None if subject.anonymous or scope == "anonymous" else NO_LABELS
    given = {LABEL_PREFIX + name: value for name, value in subject.token.labels.items()}
    if any(name not in given for name in names) or not limit.match.fits(given):
        return None
    return FrozenMapping({name: given[name] for name in names})


def _override_for(
    overrides: Sequence[OverrideDocument], policy: Policy, limit: Limit, labels: Attributes, now_us: int
) -> tuple[OverrideDocument | None, tuple[OverrideDocument, ...]]:
    """
    Return the override of a limit for all requests, or None, and those that come before it for some of them.

    Args:
        overrides: Those of the token come before those of its project. Of each, those for more values of the partition
            come first.
        labels: Those of the token that the limit looks at, named as attributes.
    """
    raised: list[OverrideDocument] = []
    for override in overrides:
        if (override.policy, override.limit) != (policy.id, limit.name):
            continue
        if override.ends_at_us is not None and now_us >= override.ends_at_us:
            continue
        if not override.partition:
            return override, tuple(raised)
        names = tuple(override.partition)
        if any(name not in limit.partition_by for name in names):
            continue  # the limit had another partition when the override was made
        if any(labels.get(name) != override.partition[name] for name in names if is_label(name)):
            continue
        if not without_labels(names):
            return override, tuple(raised)
        raised.append(override)
    return None, tuple(raised)


def _in_order(overrides: Sequence[OverrideDocument]) -> Sequence[OverrideDocument]:
    """Return the overrides of one holder with those for more values of the partition first."""
    return sorted(overrides, key=lambda override: -len(override.partition)) if overrides else overrides
