"""The fields in which two records of one object differ."""

from collections.abc import Iterator
from typing import Any

NOTHING = "—"
# Fields that differ after every change.
IGNORED = ("version",)

Record = dict[str, Any] | None


def differences(before: Record, after: Record) -> list[tuple[str, str, str]]:
    """
    Return (field, old, new) as strings for each field that differs.

    A field of a limit is named by the limit, as in ``limits.per-minute.quota``.
    """
    return [(name, _as_text(old), _as_text(new)) for name, old, new in changed_fields(before, after)]


def changed_fields(before: Record, after: Record) -> list[tuple[str, Any, Any]]:
    """Return what :func:`differences` returns with the values themselves, None for one that is not there."""
    old, new = dict(_flat(before or {})), dict(_flat(after or {}))
    names = dict.fromkeys([*old, *new])
    return [
        (name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name) and name not in IGNORED
    ]


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
            for item in value:
                yield from _flat(item, f"{prefix}{name}.{item['name']}.")
        else:
            yield prefix + name, value


def _as_text(value: Any) -> str:
    if value in (None, "", [], {}):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
