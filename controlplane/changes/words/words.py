"""What a change changed, in words."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from controlplane.changes.words.change import ObjectChange
from controlplane.changes.words.differences import Difference, differences, limits_of
from controlplane.changes.words.fields import Names, Path, Record, until
from controlplane.changes.words.fields import label_of as label_of_object
from controlplane.changes.words.fields import words_of as words_of_object
from controlplane.core.money import exact as money
from controlplane.core.money import permits
from controlplane.core.partitions import with_values
from enforcement.model import limit_fields
from enforcement.model.partitions import DEFAULT_CAP

# Fields of an override that are one sentence.
IN_AN_OVERRIDE = ("quota", "burst", "ends_at", "partition")
ORDER = "Order of limits"
# Fields that say which object it is.
NAMING = ("id", "slug", "limit", "token", "project")
# Values of a new object of which nothing need be said.
USUAL = {"active": True, "time_zone": "UTC", "is_global": False, "has_intake": False, "partition_cap": DEFAULT_CAP}
# The value of a field whose object is not there.
MISSING = "not there"


def in_a_terminal(old: str, new: str) -> str:
    """Return two values as a terminal shows a change."""
    return f"{old} -> {new}"


@dataclass(frozen=True, slots=True)
class Line:
    """
    One thing that was changed.

    Attributes:
        part: The limit of a policy that it is about, or an empty string.
        text: What happened, if there is no value before and after.
        field: The label of the field that has another value, unless the values say it.
        old: The value before, or an empty string without one.
        new: The value after, or an empty string without one.
    """

    part: str = ""
    text: str = ""
    field: str = ""
    old: str = ""
    new: str = ""

    @property
    def what(self) -> str:
        """What the values belong to, such as "per-minute: Counted per", or an empty string."""
        return ": ".join(filter(None, (self.part, " ".join(filter(None, (self.text, self.field))))))

    def __str__(self) -> str:
        values = " → ".join(filter(None, (self.old, self.new)))
        return ": ".join(filter(None, (self.what, values)))


def lines(
    kind: str, before: Record | None, after: Record | None, names: Names, *, every_field: bool = False
) -> list[Line]:
    """
    Return what differs between two records of an object in words, at least one line.

    Args:
        kind: The type of the object, as in the audit.
        before: None for a new object.
        after: None for a deleted object.
        names: Those of what the records name by an id.
        every_field: Return a line for each field, also of what is new or gone.
    """
    if every_field:
        found = [_line(kind, one, before, after, names) for one in differences(kind, before, after)]
    elif before is None or after is None:
        found = list(_whole(before, after, names))
    else:
        found = list(_summed(kind, before, after, names))
    return found or [Line(text="as it was")]


def lines_of(one: ObjectChange, names: Names) -> list[Line]:
    """Return what becomes of an object in words, at least one line."""
    return lines(one.kind, one.before, one.after, names)


def lines_in_full(one: ObjectChange, names: Names) -> list[Line]:
    """Return what changes in an object, or each unusual field of a new one, in words. Nothing of a deleted one."""
    if one.before is not None:
        return lines_of(one, names) if one.after is not None else []
    return list(_new(one.kind, one.after or {}, names))


def lines_without(one: ObjectChange, fields: Collection[str], names: Names) -> list[Line]:
    """Return what changes in an object that stays there, in words, without some of its fields."""
    if one.before is None or one.after is None:
        return []
    found = (difference for difference in one.differences if difference.path[0] not in fields)
    return [_line(one.kind, difference, one.before, one.after, names) for difference in found]


def _new(kind: str, record: Record, names: Names) -> Iterator[Line]:
    left = (*NAMING, "limits", *(IN_AN_OVERRIDE if is_override(record) else ()))
    fields = {name: value for name, value in record.items() if name not in left and value != record.get("slug")}
    if is_override(record):
        yield Line(new=_quota(record, names.unit_of(record["limit"])))
    for one in differences(kind, {name: USUAL[name] for name in USUAL if name in fields}, fields):
        yield Line(
            field=label_of(kind, one.path, record), new=words_of_object(kind, one.path, one.after, record, names)
        )
    for name, limit in limits_of(record).items():
        yield Line(part=name, new=_limit_in_full(limit))


def _limit_in_full(limit: Record) -> str:
    """Return each field of a limit but its name in words, as far as they are unusual."""
    said = ("name", "id", "algorithm", *limit_fields.IN_THE_AMOUNT)
    counted = limit_fields.words_of(("algorithm",), limit["algorithm"], limit, money)
    more = [
        f"{limit_fields.label_of(path, limit)}: {limit_fields.words_of(path, value, limit, money)}"
        for path, value in limit_fields.flat(limit, defaults=False).items()
        if path[0] not in said and value not in limit_fields.EMPTY
    ]
    return ", ".join([f"{limit_fields.amount(limit, money)} ({counted})", *more])


def label_of(kind: str, path: Path, record: Record) -> str:
    """Return the label of the field of an object to which a path leads, without the name of a limit."""
    if path == ("limits",):
        return ORDER
    if path[0] == "limits":
        return limit_fields.label_of(path[2:], limits_of(record).get(path[1], {}))
    return label_of_object(kind, path)


def words_of(kind: str, path: Path, value: object, record: Record, names: Names) -> str:
    """
    Return the value of a field of an object as people read it.

    Args:
        value: None for one that is not set.
        record: The record that has the value.
    """
    if path == ("limits",):
        return ", ".join(value) if isinstance(value, list) else ""
    if path[0] == "limits":
        return limit_fields.words_of(path[2:], value, limits_of(record).get(path[1], {}), money)
    return words_of_object(kind, path, value, record, names)


def limit_in_words(limit: Record) -> str:
    """Return the record of a limit in words, such as "25 requests per minute, in shadow"."""
    said = limit_fields.amount(limit, money)
    return f"{said}, in shadow" if limit.get("mode") == "shadow" else said


def _line(kind: str, one: Difference, before: Record | None, after: Record | None, names: Names) -> Line:
    path = one.path
    part = path[1] if path[0] == "limits" and len(path) > 1 else ""
    states = [_state(record, part) for record in (before, after)]
    values = (one.before, one.after)
    old, new = (
        words_of(kind, path, value, record, names) if record is not None else MISSING
        for value, record in zip(values, states, strict=True)
    )
    if old == new:  # such as two instants of one minute
        old, new = map(str, values)
    shown = next(record for record in reversed(states) if record is not None)
    return Line(part, "", label_of(kind, path, shown), old, new)


def _state(record: Record | None, part: str) -> Record | None:
    """Return a record if the object, and the limit that is meant, are there."""
    return record if not part or part in limits_of(record) else None


def _whole(before: Record | None, after: Record | None, names: Names) -> Iterator[Line]:
    """Yield what is created or deleted, each limit in a line of its own."""
    text, present = ("created", after) if before is None else ("deleted", before)
    yield Line(text=text)
    for name, limit in limits_of(present).items():
        said = limit_in_words(limit)
        yield Line(part=name, new=said) if before is None else Line(part=name, old=said)
    if is_override(present):
        yield from _override(before, after, names)


def _summed(kind: str, before: Record, after: Record, names: Names) -> Iterator[Line]:
    """Yield the differences of two records, those together that people read as one."""
    said: set[tuple[str, ...]] = set()
    if is_override(after):
        yield from _override(before, after, names)
        said |= {(name,) for name in IN_AN_OVERRIDE}
    old, new = limits_of(before), limits_of(after)
    for one in differences(kind, before, after):
        path = one.path
        if path[:2] in said:
            continue
        if path[0] == "limits" and len(path) > 1 and not (path[1] in old and path[1] in new):
            said.add(path[:2])
            text, limit = ("added", new[path[1]]) if path[1] in new else ("removed", old[path[1]])
            words = limit_in_words(limit)
            yield Line(path[1], text, new=words) if text == "added" else Line(path[1], text, old=words)
        elif path[0] == "limits" and len(path) > 1:
            said.add(path[:2])
            for label, was, becomes in limit_fields.changes_in_words(old[path[1]], new[path[1]], money):
                yield Line(path[1], "", label, was, becomes)
        else:
            yield _line(kind, one, before, after, names)


def is_override(record: Record | None) -> bool:
    """Return whether a record is one of an override."""
    return record is not None and {"quota", "limit", "ends_at"} <= record.keys()


def _override(before: Record | None, after: Record | None, names: Names) -> Iterator[Line]:
    """Yield what an override says, with its end, if that differs."""
    said = [_quota(record, names.unit_of(record["limit"])) if record else "" for record in (before, after)]
    if said[0] != said[1]:
        yield Line(part=(after or before or {})["limit"], old=said[0], new=said[1])


def _quota(record: Record, unit: str) -> str:
    burst = f", bursts of {permits(record['burst'], unit)}" if record.get("burst") is not None else ""
    end = f"ends {until(record['ends_at'])}" if record.get("ends_at") else "never ends"
    return f"{permits(record['quota'], unit)}{with_values(record.get('partition', ''))}{burst}, {end}"
