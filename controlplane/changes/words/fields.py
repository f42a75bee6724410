"""Labels of the fields of objects, and their values in words. Those of limits are in enforcement.model.limit_fields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from controlplane.core.instants import exact
from controlplane.core.money import exact as money
from controlplane.core.money import permits
from enforcement.model.instants import duration
from enforcement.model.limit_fields import EMPTY
from enforcement.model.metered import DEFAULT_METERING, InvalidMetering, Metering

Record = Mapping[str, Any]
Path = tuple[str, ...]


def limit_of(record: Record) -> dict[str, object]:
    """Return the fields of the library's value of a limit in one of its records."""
    return {name: value for name, value in record.items() if name not in ("id", "policy", "position")}


class Names(Protocol):
    """What ids in records stand for."""

    def shown(self, value: str) -> str:
        """Return the name of what has this id, or the value itself."""

    def unit_of(self, limit: str) -> str:
        """Return the unit of a limit, such as "free/per-day"."""


Words = Callable[[object, Record, Names], str]


class NoNames:
    """Names for records without ids."""

    def shown(self, value: str) -> str:
        return value

    def unit_of(self, limit: str) -> str:
        return "requests"


@dataclass(frozen=True, slots=True)
class ObjectField:
    """
    A field of an object.

    Attributes:
        label: Its name for people.
        absent: What it means that the field is not set.
        values: Values with words of their own.
        words: Returns any other value as people read it. None: by its type.
    """

    label: str
    absent: str = "none"
    values: Mapping[object, str] = field(default_factory=dict)
    words: Words | None = None


def _permits(value: object, record: Record, names: Names) -> str:
    unit = names.unit_of(record["limit"]) if "limit" in record else "requests"
    return permits(value, unit) if isinstance(value, int) else str(value)


def _money(value: object, _record: Record, _names: Names) -> str:
    return money(value) if isinstance(value, int) else str(value)


def _rate(value: object, record: Record, names: Names) -> str:
    return _money(value, record, names) if "currency" in record else by_type("", value, names)


def _tokens(value: object, _record: Record, _names: Names) -> str:
    return f"{value:,} tokens"


def _floor(value: object, _record: Record, _names: Names) -> str:
    return f"down to {value:,} tokens"


def _seconds(value: object, _record: Record, _names: Names) -> str:
    return f"after {duration(value)}" if value and isinstance(value, int) else "at once"


METERING = {
    "estimate": ObjectField("Input estimate", values={"bound": "upper bound (denied if unbounded)"}),
    "default_cap": ObjectField("Default output cap", "standard", words=_tokens),
    "part_tokens": ObjectField("Tokens per {}", "standard", words=_tokens),
    "on_disconnect": ObjectField(
        "When the client disconnects", values={"free": "cancel the call", "drain": "read the response to the end"}
    ),
    "clamp_at_least": ObjectField("Reduce output caps", "never (deny instead)", words=_floor),
    "lost_after": ObjectField("Lost requests are settled as their estimates", words=_seconds),
}
_NO_POLICY = "none (these requests are denied)"
# Fields that mean the same for each kind of object.
COMMON = {
    "id": ObjectField("Id"),
    "managed_by": ObjectField("Managed by", "admin and API"),
    "project": ObjectField("Project"),
    "projects": ObjectField("Projects"),
    "within": ObjectField("In project", "all projects"),
    "labels": ObjectField("Label {}", "not set"),
    "expires_at": ObjectField("Expires", "never"),
    "ends_at": ObjectField("Ends", "never"),
    "revoked_at": ObjectField("Revoked", "no"),
    "ended_at": ObjectField("Ended", "no"),
    "began_at": ObjectField("Began"),
    "settled_at": ObjectField("Settled", "no"),
    "delivered_at": ObjectField("Delivered", "no"),
    "suspended_until": ObjectField("Suspended until", "not suspended"),
    "zone": ObjectField("Time zone", "UTC"),
    "time_zone": ObjectField("Time zone", "UTC"),
    "amount": ObjectField("Amount", words=_money),
    "sealed": ObjectField("Secret", "not set", words=lambda value, _record, _names: f"set (digest {value})"),
    "input": ObjectField("Input", words=_rate),
    "output": ObjectField("Output", words=_rate),
    "cached_input": ObjectField("Cached input", words=_rate),
    "cache_write": ObjectField("Cache write", words=_rate),
    "calls": ObjectField("Calls", words=_rate),
}
# Kinds whose records have rules for metered requests.
METERED = ("policy", "policydraft")
OWN = {
    "policy": {
        "project": ObjectField("Project", "all projects"),
        "is_global": ObjectField("Applies to", values={False: "its tokens and projects", True: "every request"}),
    },
    "project": {
        "anonymous_policy": ObjectField("Policy for requests without a token", _NO_POLICY),
        "token_policy": ObjectField("Policy for new tokens"),
        "active": ObjectField("Status", values={True: "active", False: "inactive (its tokens are denied)"}),
        "partition_cap": ObjectField("Values counted per limit", "the installation's"),
        "time_zone": ObjectField("Time zone of statements", "UTC"),
        "has_intake": ObjectField("Takes metered usage", "no"),
    },
    "override": {
        "quota": ObjectField("Quota", words=_permits),
        "burst": ObjectField("Burst", "the limit's", words=_permits),
        "partition": ObjectField("Values", "all"),
    },
    "token": {"policy": ObjectField("Policy", "that of its project")},
}


def metering_of(record: Record) -> dict[str, object]:
    """Return each rule for metered requests in the record of a policy, or of a draft, also if it has the default."""
    given = record.get("metering") or {}
    try:
        rules = Metering.from_json(given)
    except InvalidMetering:  # another program has written to the table, and enforcers have the defaults
        rules = DEFAULT_METERING
    return {name: getattr(rules, name) for name in METERING}


def field_of(kind: str, path: Path) -> ObjectField:
    """Return the field of an object to which a path leads. One that nobody knows has the label of its name."""
    if path[0] == "metering" and path[1:2] and path[1] in METERING:
        return METERING[path[1]]
    own = OWN.get(kind, {})
    return own.get(path[0]) or COMMON.get(path[0]) or ObjectField(" ".join(path).replace("_", " ").capitalize())


def label_of(kind: str, path: Path) -> str:
    """Return the label of a field of an object that is no limit."""
    return field_of(kind, path).label.format(path[-1].replace("_", " ") if path[0] == "metering" else path[-1])


def words_of(kind: str, path: Path, value: object, record: Record, names: Names) -> str:
    """
    Return the value of a field of an object that is no limit, as people read it.

    Args:
        path: The names on the way to the field, such as ``("labels", "tier")``.
        value: None for one that is not set.
        record: The record of the object that has the value.
    """
    found = field_of(kind, path)
    if value in EMPTY and not isinstance(value, bool):
        return found.absent
    if isinstance(value, str | bool) and value in found.values:
        return found.values[value]
    return (
        found.words(value, record, names) if found.words else by_type(path[-1] if len(path) == 1 else "", value, names)
    )


def by_type(name: str, value: object, names: Names) -> str:
    """Return a value as people read it, by its type and by the ending of the name of its field."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return duration(value) if name.endswith("_seconds") else f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {by_type('', one, names)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(by_type("", one, names) for one in value)
    return until(str(value)) if name.endswith(("_at", "_until")) else names.shown(str(value))


def until(instant: str) -> str:
    """Return an instant of a record as every page writes it. A record has the zone of whoever made the change."""
    try:
        at = datetime.fromisoformat(instant)
    except ValueError:
        return instant
    return exact(at) if at.tzinfo else instant
