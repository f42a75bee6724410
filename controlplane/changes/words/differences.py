"""The fields in which two records of one object differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from controlplane.changes.words.fields import METERED, METERING, Path, Record, limit_of, metering_of
from enforcement.model import limit_fields
from enforcement.model.limit_fields import EMPTY

# Fields that differ after every change.
IGNORED = ("version",)


@dataclass(frozen=True, slots=True)
class Difference:
    """
    A field with another value than before.

    Attributes:
        path: The names on the way to it, such as ``("limits", "per-minute", "match", "path")``. The order of the limits
            is the field ``("limits",)``, and its values are their names.
        before, after: The values. None: it is not set, or its object is not there.
    """

    path: Path
    before: object
    after: object

    @property
    def name(self) -> str:
        """The field as REST names it, such as ``limits.per-minute.quota``."""
        return ".".join(self.path)


def differences(kind: str, before: Record | None, after: Record | None) -> list[Difference]:
    """
    Return a difference for each field in which two records differ, limits by their names.

    A record leaves out defaults, which are filled in if the field belongs to an object or limit that is in both.

    Args:
        kind: The type of the object, as in the audit.
        before, after: None if the object is not there.
    """
    is_changed = before is not None and after is not None
    old, new = (dict(_flat(kind, record or {}, is_changed)) for record in (before, after))
    found = [*_differing(old, new)]
    former, latter = limits_of(before), limits_of(after)
    for name in dict.fromkeys([*former, *latter]):
        both = name in former and name in latter
        was, becomes = (limit_fields.flat(limit_of(limits.get(name, {})), defaults=both) for limits in (former, latter))
        found += [Difference(("limits", name, *one.path), one.before, one.after) for one in _differing(was, becomes)]
    kept = [[name for name in one if name in other] for one, other in ((former, latter), (latter, former))]
    return found + ([Difference(("limits",), [*former], [*latter])] if kept[0] != kept[1] else [])


def limits_of(record: Record | None) -> dict[str, Record]:
    """Return the limits in a record of a policy, by their names, in their order."""
    return {limit["name"]: limit for limit in (record or {}).get("limits") or ()}


def _differing(old: Mapping[Path, object], new: Mapping[Path, object]) -> Iterator[Difference]:
    for path in dict.fromkeys([*old, *new]):
        was, becomes = old.get(path), new.get(path)
        if was != becomes and not (was in EMPTY and becomes in EMPTY):
            yield Difference(path, was, becomes)


def _flat(kind: str, record: Record, is_changed: bool) -> Iterator[tuple[Path, object]]:
    for name, value in record.items():
        if name in ("limits", "metering") or name in IGNORED:
            continue
        yield from _parts((name,), value)
    if kind in METERED:
        rules = metering_of(record) if is_changed else record.get("metering") or {}
        for name in METERING:
            yield from _parts(("metering", name), rules.get(name))


def _parts(path: Path, value: object) -> Iterator[tuple[Path, object]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, one in value.items():
        yield from _parts((*path, name), one)
