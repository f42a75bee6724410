"""Find the limits that apply to a token, and bind them to counters once the attributes of a request are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from enforcement.model.documents import Override, Policy, Project, Token
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

    project: Project
    token: Token | None
    policies: Mapping[str, Policy]
    global_policy: str | None
    anonymous: bool = False

    def attached(self) -> list[tuple[str, str, str, str | None]]:
        """Return the scope, hash tag and holder of each place where a policy may be attached, and its policy's id."""
        project, token = self.project, self.token
        found: list[tuple[str, str, str, str | None]] = [("global", GLOBAL_TAG, "", self.global_policy)]
        if not self.anonymous:
            found.append(("project", project.id, project.id, project.policy))
        if token is None:
            found.append(("anonymous", project.id, project.id, project.anonymous_policy))
        else:
            found.append(("token", project.id, token.id, token.policy))
        return found


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One limit that may apply to a token, before the attributes of a request are known.

    Attributes:
        labels: The labels of the token that the limit looks at, named as attributes.
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
    project: Project
    labels: FrozenMapping[str] = NO_LABELS
    varies_by: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "varies_by", without_labels(self.limit.partition_by))

    @property
    def has_one_counter(self) -> bool:
        """Whether the limit has one counter for all requests of the subject."""
        return not self.varies_by and all(name in self.labels for name in self.limit.partition_by)

    def bind(self, keys: Keys, attributes: Attributes, partitions: PartitionIndex | None = None) -> BoundLimit:
        """
        Return a new :class:`BoundLimit`, the limit with its counter for these attributes.

        Args:
            attributes: Those of the request. They include each attribute in :attr:`varies_by`.
            partitions: The result of :meth:`partitions`. None leaves the value out of the store's register.
        """
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

        Returns:
            None if the limit is not partitioned by attributes of requests.
        """
        if not self.varies_by:
            return None
        key, overflowed = keys.census(self.tag, ("census", self.project.id, self.policy.id, self.limit.name))
        shared = counter_name(self.limit, ("overflow", self.project.id, *self.identity))
        return PartitionIndex(
            key, overflowed, keys.scope(self.tag) + shared, self.project.partition_cap, life_us(self.limit)
        )


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
    overrides = [*(token.overrides if token else ()), *project.overrides]
    rules: list[Rule] = []
    for scope, tag, holder, policy_id in subject.attached():
        policy = subject.policies.get(policy_id or "")
        for limit in policy.limits if policy else ():
            assert policy is not None
            labels = _labels_of(limit, subject, scope)
            if labels is None:
                continue
            override = _override_for(overrides, policy, limit, now_us)
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


def _override_for(overrides: Sequence[Override], policy: Policy, limit: Limit, now_us: int) -> Override | None:
    """Return the first override of a limit that has not ended, or None. *overrides* starts with those of the token."""
    for override in overrides:
        if (override.policy, override.limit) != (policy.id, limit.name):
            continue
        if override.ends_at_us is None or now_us < override.ends_at_us:
            return override
    return None
