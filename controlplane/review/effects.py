"""What a change of a policy does to each of its limits, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.core.money import permits
from controlplane.policies.describe import sentence
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.sizes import MAX_NAME_LENGTH

# The shadow limit that measures another quota beside an enforced limit has its name and this behind it.
CANDIDATE = ".candidate"

TIGHTER, LOOSER, ENFORCED, SHADOWED = "tighter", "looser", "enforced", "shadow only"
# Of requests without a token, which are refused if there is no policy for them.
ADMITTED, REFUSED = "admitted", "refused"
NEW, NEW_SHADOW, REMOVED, CHANGED, WATCHED, SAME = (
    "new",
    "new, in shadow",
    "removed",
    "changed",
    "changed, in shadow",
    "same",
)
# Effects on what is denied. Of the others enforcers deny as much as before.
FELT = (TIGHTER, LOOSER, ENFORCED, SHADOWED, NEW, REMOVED, CHANGED, ADMITTED, REFUSED)
# Effects of which a request may be denied that passed before, so somebody has to say why.
DENYING = (TIGHTER, ENFORCED, NEW, CHANGED, REFUSED)
# Effects that a candidate can measure beside the limit as it was.
BESIDE = (TIGHTER, CHANGED)
EFFECTS = (*FELT, NEW_SHADOW, WATCHED)
_NUMBERS = ("quota", "burst", "rollover")


@dataclass(frozen=True, slots=True)
class LimitChange:
    """
    A limit before and after a change. One of the two is None if the limit is new or removed.

    Attributes:
        holder: Whose requests the limit counts together, in words.
        note: When the change holds, or for whom, in words. Empty: from now on, for everybody concerned.
    """

    name: str
    before: Limit | None
    after: Limit | None
    effect: str
    holder: str = "each token or project"
    note: str = ""

    @property
    def was(self) -> str:
        """The limit before the change, in words."""
        return self._words(self.before)

    @property
    def becomes(self) -> str:
        """The limit after the change, in words."""
        return self._words(self.after)

    def _words(self, limit: Limit | None) -> str:
        return "not there" if limit is None else sentence(limit, self.holder)

    @property
    def is_felt(self) -> bool:
        return self.effect in FELT

    @property
    def can_start_in_shadow(self) -> bool:
        """Whether the limit may be counted first, beside what is enforced now."""
        if self.effect in BESIDE:
            return len(self.name) + len(CANDIDATE) <= MAX_NAME_LENGTH
        return self.effect == NEW


def changes_of(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[LimitChange]:
    """Return what becomes of each limit, in the order after the change, from the limits of two records of a policy."""
    old, new = _by_name(before), _by_name(after)
    names = dict.fromkeys([*new, *old])
    return [LimitChange(name, old.get(name), new.get(name), effect(old.get(name), new.get(name))) for name in names]


def _by_name(limits: Sequence[Mapping[str, Any]]) -> dict[str, Limit]:
    found = {}
    for limit in limits:
        try:
            value = Limit.from_json(limit, published=True)
        except InvalidLimit:  # another program has written to the table; enforcers do not have it either
            continue
        found[value.name] = value
    return found


def effect(before: Limit | None, after: Limit | None) -> str:
    """Return the effect of a change on one limit. A shadow limit denies nothing, as a missing one."""
    if before is None or after is None:
        return _beginning_or_end(before, after)
    if before == after:
        return SAME
    if before.shadow and after.shadow:
        return WATCHED
    if before.shadow or after.shadow:
        return ENFORCED if before.shadow else SHADOWED
    if _without_numbers(before) != _without_numbers(after):
        return CHANGED
    numbers = [
        (before.quota, after.quota),
        (before.capacity, after.capacity),
        (before.rollover or 0, after.rollover or 0),
    ]
    if any(new < old for old, new in numbers):
        return TIGHTER
    return LOOSER if any(new > old for old, new in numbers) else CHANGED


def _beginning_or_end(before: Limit | None, after: Limit | None) -> str:
    if after is not None:
        return NEW_SHADOW if after.shadow else NEW
    assert before is not None
    return SAME if before.shadow else REMOVED


def _without_numbers(limit: Limit) -> dict[str, Any]:
    # How a limit is counted in the fleet, and what an outage does, denies no more and no less while all is well.
    ignored = (*_NUMBERS, "consistency", "on_store_failure", "name")
    return {name: value for name, value in limit.to_json().items() if name not in ignored}


def headline(policy: str, changes: Sequence[LimitChange]) -> str:
    """Return what a change does to a policy, such as "free gets tighter: 25 becomes 10 (per-minute)"."""
    felt = [change for change in changes if change.is_felt] or [one for one in changes if one.effect != SAME]
    if not felt:
        return f"{policy} stays as it is"
    first = felt[0]
    more = f", and {len(felt) - 1} more" if len(felt) > 1 else ""
    texts = {
        ENFORCED: f"{policy}: {first.name} is enforced",
        SHADOWED: f"{policy}: {first.name} stops denying",
        NEW: f"{policy} gets a new limit: {first.name}",
        NEW_SHADOW: f"{policy} gets a new limit in shadow: {first.name}",
        REMOVED: f"{policy} loses {first.name}",
        WATCHED: f"{policy}: the shadow limit {first.name} changes",
    }
    if first.effect in texts:
        return texts[first.effect] + more
    if first.before is None or first.after is None:  # a field that is no limit
        return f"{policy} changes ({first.name}){more}"
    was, becomes = (permits(limit.quota, limit.unit) for limit in (first.before, first.after))
    numbers = f"{was} becomes {becomes}"
    what = f": {numbers} ({first.name})" if first.before.quota != first.after.quota else f" ({first.name})"
    verb = "changes" if first.effect == CHANGED else f"gets {first.effect}"
    return f"{policy} {verb}{what}{more}"
