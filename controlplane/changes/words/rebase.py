"""A change that was made, taken back from what its object is by now."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controlplane.changes.words.change import ObjectChange
from controlplane.changes.words.fields import Record
from controlplane.changes.words.words import label_of
from enforcement.model import limit_fields

MISSING = object()
# Fields that differ after every change, or whose parts are looked at one by one.
UNSAID = ("id", "version", "limits")


def rebased(done: ObjectChange, now: Record, fields: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """
    Return the record that an object gets back from a change, and what stays, in sentences.

    A field or a limit gets the value from before if it still is as the change left it. Otherwise it was changed since.

    Args:
        done: Has a record before and after.
        now: The present record.
        fields: The fields besides the limits that can be changed back.
    """
    before, after = done.before or {}, done.after or {}
    wanted, kept = _merge(before, after, now, fields)
    stays = [f"{_label(done, now, name)} of {done.label} stays, because it was changed since." for name in kept]
    others = dict.fromkeys([*before, *after]).keys() - {*fields, *UNSAID}
    changed = [name for name in sorted(others) if before.get(name) != after.get(name)]
    stays += [f"{_label(done, now, name)} of {done.label} is not undone here." for name in changed]
    if "limits" in now:
        old, new, present = (record.get("limits", []) for record in (before, after, now))
        wanted["limits"], kept = _limits(old, new, present, done.label)
        stays += kept
    return wanted, stays


def _label(done: ObjectChange, record: Record, name: str) -> str:
    return label_of(done.kind, (name,), record)


def _limits(before: list[Record], after: list[Record], now: list[Record], of: str) -> tuple[list[Record], list[str]]:
    """Return the limits that a policy gets back, and what stays of them, in sentences."""
    old, new, present = ({limit["name"]: limit for limit in limits} for limits in (before, after, now))
    wanted, changed = _merge(old, new, present, dict.fromkeys([*old, *new]))
    kept = []
    for name in changed:
        if not (name in old and name in new and name in present):
            kept.append(f"{of}/{name} stays, because it was changed since.")
            continue
        fields = dict.fromkeys([*old[name], *new[name]])
        wanted[name], left = _merge(old[name], new[name], present[name], fields)
        labels = [limit_fields.label_of((one,), present[name]) for one in left]
        kept += [f"{label} of {of}/{name} stays, because it was changed since." for label in labels]
    # A limit that comes back comes back to its place.
    order = {name: place for place, name in enumerate(dict.fromkeys([*old, *wanted]))}
    return sorted(wanted.values(), key=lambda limit: order[limit["name"]]), kept


def _merge[T](
    old: Mapping[str, T], new: Mapping[str, T], present: Mapping[str, T], names: Iterable[str]
) -> tuple[dict[str, T], list[str]]:
    """Return the present record with what differs between two others as in the first, and the names of what stays."""
    wanted, kept = dict(present), []
    for name in names:
        former, left, is_now = (record.get(name, MISSING) for record in (old, new, present))
        if former in (left, is_now):
            continue
        if is_now != left:
            kept.append(name)
        elif name in old:
            wanted[name] = old[name]
        else:
            del wanted[name]
    return wanted, kept
