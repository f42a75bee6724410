"""What a change of a policy does to each of its limits, in words."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.changes.words.change import ObjectChange
from controlplane.changes.words.describe import sentence
from controlplane.changes.words.differences import differences
from controlplane.changes.words.fields import NoNames, Record
from controlplane.changes.words.words import label_of, words_of
from controlplane.core.money import exact as money
from controlplane.core.money import permits
from enforcement.model.limit_fields import BY_NAME, FIELDS, MORE, Field
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.metered import FULL_WEIGHT
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
# Effects that may deny requests that passed before. They require a reason.
DENYING = (TIGHTER, ENFORCED, NEW, CHANGED, REFUSED)
# Effects that a candidate can measure beside the limit as it was.
BESIDE = (TIGHTER, CHANGED)
EFFECTS = (*FELT, NEW_SHADOW, WATCHED, SAME)
# What a change holds for that only says what happens during an outage.
IN_AN_OUTAGE = "while the store is unavailable"


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
        if limit is None:
            return "not there"
        record, also = limit.to_json(), (BY_NAME[name] for name in self._unsaid)
        more = [f"{one.label_in(record)}: {one.in_words(record, money)}" for one in also]
        return "; ".join([sentence(limit, self.holder), *more])

    @property
    def _unsaid(self) -> list[str]:
        """The fields that differ and that the sentence of a limit leaves out, or all of them if it is the same."""
        if self.before is None or self.after is None:
            return []
        old, new = (values_of(limit) for limit in (self.before, self.after))
        names = [name for name in old if old[name] != new[name]]
        is_silent = sentence(self.before) == sentence(self.after)
        return [name for name in names if is_silent or not BY_NAME[name].measurable]

    @property
    def numbers(self) -> str:
        """The quota before and after the change, such as "25 becomes 10", or an empty string if it stays."""
        if self.before is None or self.after is None or self.before.quota == self.after.quota:
            return ""
        was, becomes = (permits(limit.quota, limit.unit) for limit in (self.before, self.after))
        return f"{was} becomes {becomes}"

    @property
    def is_listed(self) -> bool:
        """Whether a review shows it. What is enforced may be the same nevertheless."""
        return self.before != self.after

    @property
    def is_measurable(self) -> bool:
        """Whether a limit in shadow would show what the change does."""
        if self.before is None or self.after is None:
            return True
        return any(BY_NAME[name].measurable for name in differing(self.before, self.after))

    @property
    def seen(self) -> tuple[object, ...]:
        """What a confirmation of the change confirms."""
        limits = [limit and limit.to_json() for limit in (self.before, self.after)]
        return self.name, json.dumps(limits, sort_keys=True), self.effect, self.note

    @property
    def is_felt(self) -> bool:
        return self.effect in FELT

    @property
    def can_start_in_shadow(self) -> bool:
        """Whether the limit may be counted first, beside what is enforced now."""
        if self.effect in BESIDE:
            return self.is_measurable and len(self.name) + len(CANDIDATE) <= MAX_NAME_LENGTH
        return self.effect == NEW


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field before and after a change, beside the changes of limits, whose attributes it has."""

    name: str
    was: str
    becomes: str
    effect: str
    note: str = ""
    numbers: str = ""
    before: None = None
    after: None = None
    can_start_in_shadow: bool = False
    is_measurable: bool = False
    is_listed: bool = True

    @property
    def is_felt(self) -> bool:
        return self.effect in FELT

    @property
    def seen(self) -> tuple[object, ...]:
        """What a confirmation of the change confirms."""
        return self.name, self.was, self.becomes, self.effect, self.note


def effects(one: ObjectChange) -> list[LimitChange | FieldChange]:
    """Return what the change of a policy does: to each limit, also to one that stays, and by its other rules."""
    before, after = one.before or {"limits": []}, one.after or {"limits": []}
    return [*changes_of(before["limits"], after["limits"]), *field_changes(before, after)]


def changes_of(before: Sequence[Record], after: Sequence[Record]) -> list[LimitChange]:
    """Return what becomes of each limit, in the order after the change, from the limits of two records of a policy."""
    old, new = _by_name(before), _by_name(after)
    return [_change(name, old.get(name), new.get(name)) for name in dict.fromkeys([*new, *old])]


def _change(name: str, before: Limit | None, after: Limit | None) -> LimitChange:
    only_outages = before and after and differing(before, after) == ["on_store_failure"]
    return LimitChange(name, before, after, effect(before, after), note=IN_AN_OUTAGE if only_outages else "")


def field_changes(before: Record, after: Record) -> Iterator[FieldChange]:
    """Yield what becomes of the order of the limits and of each rule for metered requests, from two records."""
    kind, names = "policy", NoNames()
    for one in differences(kind, before, after):
        if one.path[0] == "metering" or one.path == ("limits",):
            was, becomes = (words_of(kind, one.path, value, before, names) for value in (one.before, one.after))
            what = CHANGED if one.path[0] == "metering" else SAME
            yield FieldChange(label_of(kind, one.path, before), was, becomes, what)


def _by_name(limits: Sequence[Record]) -> dict[str, Limit]:
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
    names = differing(before, after)
    if before.shadow is not after.shadow:
        return ENFORCED if before.shadow else SHADOWED
    if not names or before.shadow:
        return WATCHED if names else SAME
    old, new = _normal(before), _normal(after)
    moves = {_move(BY_NAME[name], old[name], new[name]) for name in names}
    return CHANGED if CHANGED in moves else TIGHTER if TIGHTER in moves else LOOSER


def _move(field: Field, old: Any, new: Any) -> str:
    """Return whether another value of a field denies more, less, or something else."""
    if not field.order:
        return CHANGED
    if field.order != MORE:
        old, new = (field.order.index(value) for value in (old, new))
    return TIGHTER if new < old else LOOSER


def differing(before: Limit, after: Limit) -> list[str]:
    """Return the names of the fields, besides the mode, by which two limits decide in another way."""
    old, new = _normal(before), _normal(after)
    return [name for name in old if old[name] != new[name]]


def values_of(limit: Limit) -> dict[str, Any]:
    """Return the value of each field of a limit as in JSON, also if it is the default, without name and mode."""
    record = limit.to_json()
    return {field.name: field.value_in(record) for field in FIELDS if field.name not in ("name", "mode")}


def _normal(limit: Limit) -> dict[str, object]:
    """Return the values of a limit, of those that decide the same only one."""
    values = values_of(limit)
    weights = {name: weight for name, weight in values["weights"].items() if weight != FULL_WEIGHT}
    return {
        **values,
        "burst": limit.quota if limit.burst is None else limit.burst,
        "rollover": limit.rollover or 0,
        "weights": weights,
    }


def _beginning_or_end(before: Limit | None, after: Limit | None) -> str:
    if after is not None:
        return NEW_SHADOW if after.shadow else NEW
    assert before is not None
    return SAME if before.shadow else REMOVED


def headline(policy: str, changes: Sequence[LimitChange | FieldChange]) -> str:
    """Return what a change does to a policy, such as "free gets tighter: 25 becomes 10 (per-minute)"."""
    felt = [change for change in changes if change.is_felt] or [one for one in changes if one.effect != SAME]
    if not felt:
        listed = any(change.is_listed for change in changes)
        return f"{policy} enforces the same as before" if listed else f"{policy} stays as it is"
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
    if isinstance(first, FieldChange):
        return f"{policy} changes ({first.name}){more}"
    what = f": {first.numbers} ({first.name})" if first.numbers else f" ({first.name})"
    verb = "changes" if first.effect == CHANGED else f"gets {first.effect}"
    return f"{policy} {verb}{what}{more}"
