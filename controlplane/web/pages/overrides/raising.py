"""The limits of a token or project that an override can raise, with their quota and use."""

from dataclasses import dataclass, field
from datetime import datetime

from controlplane.changes.words.describe import amount
from controlplane.core.money import permits, quantity
from controlplane.core.optional import COUNTERS, optional
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain import live_counters
from enforcement.model.limits import InvalidLimit
from enforcement.store_calls.inspection import LiveCounter

# From this share on, a limit is near.
NEAR_PERCENT = 80


@dataclass(slots=True)
class Offer:
    """
    One limit that can be raised.

    Attributes:
        limit: The limit of the policy.
        override: The override that sets its quota now, or None.
        counts_nothing: What the page says if nothing is charged in its unit.
        counter: Its counter now. None if the store is unavailable, or if each attribute value has a counter.
    """

    limit: Limit
    override: Override | None = None
    counter: LiveCounter | None = None
    counts_nothing: str = ""

    @property
    def quota(self) -> int:
        """The quota in force."""
        return self.override.quota if self.override else self.limit.quota

    @property
    def policy_quota(self) -> str:
        """The quota of the policy, as people read it."""
        return permits(self.limit.quota, self.limit.unit)

    @property
    def share(self) -> int | None:
        """How many per cent of the quota are used, or None if that is unknown."""
        if self.counter is None or self.counter.used is None or not self.quota:
            return None
        # Rounded down, as on the page of the token, so that 100 % says that nothing is left.
        return 100 * self.counter.used // self.quota

    @property
    def is_near(self) -> bool:
        return self.share is not None and self.share >= NEAR_PERCENT

    @property
    def amount(self) -> str:
        """The quota in force with its window, such as "60 requests per minute"."""
        try:
            return amount(self.limit.as_value(quota=self.quota))
        except InvalidLimit:  # another program has written to the table
            return quantity(self.quota, self.limit.unit)

    @property
    def used(self) -> str:
        """How much is used now, in words."""
        if self.counter is None:
            return "use unknown"
        if self.counter.used is None:
            return "a counter for each value of an attribute"
        return f"{permits(self.counter.used, self.limit.unit)} used, {self.share or 0} %"


@dataclass(slots=True)
class Offers:
    """
    The limits that can be raised for one token or project.

    Attributes:
        rows: The limits that can be raised, the nearest one first.
        elsewhere: Policies whose limits several tokens or projects share, each with what it belongs to.
        is_away: Whether the use is unknown, because the store is unavailable.
    """

    rows: list[Offer] = field(default_factory=list)
    elsewhere: list[tuple[Policy, str]] = field(default_factory=list)
    is_away: bool = False


def offers(holder: Token | Project, now: datetime) -> Offers:
    """Return the limits of a token or project. Those that it shares with others are named as such."""
    result = Offers()
    own = [holder.policy_id] if isinstance(holder, Token) else [holder.policy_id, holder.anonymous_policy_id]
    limits = Limit.objects.filter(policy__in=filter(None, own)).select_related("policy")
    overrides = {override.limit_id: override for override in _in_force(holder, now)}
    found, result.is_away = _counters(holder)
    for limit in limits:
        counter = found.get((limit.policy.slug, limit.name))
        result.rows.append(Offer(limit, overrides.get(limit.pk), counter))
    result.rows.sort(key=lambda offer: (-(offer.share or -1), offer.limit.policy.slug, offer.limit.position))
    if isinstance(holder, Token) and holder.project.policy and holder.project.policy_id not in own:
        result.elsewhere.append((holder.project.policy, "project"))
    everywhere = Policy.objects.filter(is_global=True).exclude(pk__in=filter(None, own)).first()
    if everywhere:
        result.elsewhere.append((everywhere, "global"))
    return result


def _in_force(holder: Token | Project, now: datetime) -> list[Override]:
    # Those for one value of a partition are changed by their own form.
    rows = holder.overrides.filter(partition="").exclude(ends_at__lte=now)
    return list(rows.select_related("limit__policy", "token", "project"))


@optional(COUNTERS, lambda holder: ({}, True))
def _counters(holder: Token | Project) -> tuple[dict[tuple[str, str], LiveCounter], bool]:
    """Return the counters of a holder by policy and limit, and whether they cannot be read."""
    scopes = ("token",) if isinstance(holder, Token) else ("project", "anonymous")
    try:
        rows = live_counters.counters_of(holder)
    except live_counters.Forgotten:  # a token that expired long ago
        return {}, False
    return {(row.policy, row.limit): row for row in reversed(rows) if row.scope in scopes}, False
