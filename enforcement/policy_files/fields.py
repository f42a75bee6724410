"""The fields of a policy file, with the rule and the default of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from enforcement.model.calendars import is_host_zone, is_zone
from enforcement.model.checks import integer_rule, is_integer, shown
from enforcement.model.limit_fields import NULLABLE
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.matching import check_partition
from enforcement.model.metered import InvalidMetering, Metering
from enforcement.model.partitions import DEFAULT_CAP, MAX_CAP
from enforcement.model.sizes import MAX_NUMBER, MAX_PARTITION_VALUE_LENGTH, MAX_PARTITIONS

SLUG_PATTERN: Final = "[a-z0-9][a-z0-9-]{0,62}"
_SLUG: Final = re.compile(SLUG_PATTERN, re.ASCII)
# Controls, separators of lines, and characters without a width or of another direction. The control plane refuses them.
HIDDEN: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\\ud800-\\udfff\U000e0000-\U000e007f]"
)
TOKEN_ID_PATTERN: Final = "tok_[0-9a-z]{1,36}"
_TOKEN_ID: Final = re.compile(TOKEN_ID_PATTERN, re.ASCII)
_LINES: Final = dict.fromkeys(map(ord, "\n\r\t"), " ")
REQUIRED: Final = object()
"""In place of a default."""


class InvalidField(ValueError):
    """
    A value that breaks the rule of its field.

    Attributes:
        path: The field inside the value that is wrong. Empty for the value itself.
    """

    def __init__(self, reason: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.path = path


class FileField(NamedTuple):
    """
    A field of a policy file.

    Attributes:
        read: Returns a value in its canonical form, or raises InvalidField.
        default: The value if the field is left out. :data:`REQUIRED` if it must not be.
        schema: The JSON Schema of a value.
    """

    read: Callable[[Any], Any]
    default: object
    schema: Mapping[str, object]


def read_slug(value: object) -> str:
    """Return the slug of a project or policy. Raises InvalidField."""
    if not isinstance(value, str) or not _SLUG.fullmatch(value):
        rule = "Must be 1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit"
        raise InvalidField(f"{rule}, got {shown(value)}.")
    return value


def _slug_or_none(value: object) -> str | None:
    return None if value is None else read_slug(value)


def _partition(value: object) -> dict[str, str]:
    try:
        return dict(check_partition(value)) if value != {} else {}
    except ValueError as exc:
        raise InvalidField(f"{str(exc)[0].upper()}{str(exc)[1:]}.") from exc


def _text(most: int, *, lines: bool = False, empty: bool = False) -> Callable[[object], str]:
    """Return a reader of strings of at most *most* characters that people see."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise InvalidField(f"Must be a string, got {shown(value)}. Put it in quotes.")
        if len(value) > most or (not empty and not value.strip()):
            raise InvalidField(f"Must have {0 if empty else 1} to {most} characters, got {len(value)}.")
        found = HIDDEN.search(value.translate(_LINES) if lines else value)
        if found:
            raise InvalidField(f"Must have printable characters only, but contains U+{ord(found[0]):04X}.")
        return value

    return read


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidField(f"Must be true or false, got {shown(value)}.")
    return value


def _integer(least: int, most: int) -> Callable[[object], int]:
    def read(value: Any) -> int:
        if not is_integer(value, least, most):
            rule = integer_rule(value, least, most)
            raise InvalidField(f"{rule[0].upper()}{rule[1:]}.")
        number: int = value
        return number

    return read


def _zone(value: object) -> str:
    if not isinstance(value, str) or not is_zone(value) or is_host_zone(value):
        raise InvalidField(f"Must be the IANA name of a time zone, like Europe/Berlin, got {shown(value)}.")
    return value


def _instant(value: object) -> str:
    """Return an instant in UTC, as REST writes it."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) and len(value) > 10 else None
        in_utc = instant.astimezone(UTC) if instant and instant.tzinfo else None
    except (ValueError, OverflowError):  # the latter near the years 1 and 9999
        in_utc = None
    if in_utc is None:
        raise InvalidField(
            f"Must be an RFC 3339 time with an offset, such as 2026-12-01T12:00:00Z, got {shown(value)}."
        )
    return in_utc.isoformat().replace("+00:00", "Z")


def _or_none(read: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else read(value)


def _limit_name(value: object) -> str:
    slug, _, name = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not name or not _SLUG.fullmatch(slug):
        raise InvalidField(
            f"Must be the slug of a policy and the name of a limit, such as free/per-minute, got {shown(value)}."
        )
    return str(value)


def _token_id(value: object) -> str:
    # It is not shown, because it may be a secret.
    if not isinstance(value, str) or not _TOKEN_ID.fullmatch(value):
        raise InvalidField("Must be the id of a token, which begins with tok_.")
    return value


def read_metering(value: object) -> dict[str, Any]:
    """Return the rules for metered requests without their defaults. Raises InvalidField."""
    try:
        found = Metering.from_json(value).to_json()
    except InvalidMetering as exc:
        raise InvalidField(exc.reason, () if exc.field == "metering" else (exc.field,)) from exc
    return {name: _sorted(found[name]) for name in sorted(found)}


def read_limit(value: object, *, published: bool = False) -> dict[str, Any]:
    """
    Return a limit without its defaults, as REST takes it.

    Args:
        published: Whether it comes from a control plane, which may have saved it under earlier rules.
    Raises:
        InvalidField: It breaks a rule.
    """
    if not isinstance(value, Mapping):
        raise InvalidField(f"Must be a mapping, got {shown(value)}.")
    given = {name: one for name, one in value.items() if one is not None or name not in NULLABLE}
    if given.get("name") == "":
        raise InvalidField("Must not be empty.", ("name",))  # in code, such a limit is named after its rate
    try:
        limit = Limit.from_json({"algorithm": "fixed_window", **given}, published=published)
    except InvalidLimit as exc:
        # A match as a whole is named twice, as a field of the limit and of itself.
        path = () if exc.field == "limit" else tuple(dict.fromkeys(exc.field.split(".")))
        raise InvalidField(exc.reason, path) from exc
    found = {name: one if name == "match" else _sorted(one) for name, one in limit.to_json().items()}
    if "attributes" in found.get("match", {}):
        found["match"]["attributes"] = _sorted(found["match"]["attributes"])
    return found


def _sorted(value: Any) -> Any:
    """Return a value with the names of each mapping in it in order, but lists as they are."""
    if not isinstance(value, Mapping):
        return value
    return {name: _sorted(value[name]) for name in sorted(value)}


_REFERENCE: Final = {"type": ["string", "null"], "pattern": f"^{SLUG_PATTERN}$"}
_NAME: Final = {"type": "string", "pattern": r"\S", "maxLength": 200}

_LIMIT_NAME: Final = {"type": "string", "pattern": f"^{SLUG_PATTERN}/.", "description": "policy-slug/limit-name"}

PROJECT: Final = {
    "slug": FileField(read_slug, REQUIRED, {"type": "string", "pattern": f"^{SLUG_PATTERN}$"}),
    "name": FileField(_text(200), None, {**_NAME, "description": "If left out, the slug."}),
    "policy": FileField(_slug_or_none, None, {**_REFERENCE, "description": "The policy of the whole project."}),
    "anonymous_policy": FileField(
        _slug_or_none, None, {**_REFERENCE, "description": "The policy of requests without a token."}
    ),
    "token_policy": FileField(_slug_or_none, None, {**_REFERENCE, "description": "The policy of new tokens."}),
    "active": FileField(_boolean, True, {"type": "boolean", "default": True}),
    "partition_cap": FileField(
        _integer(1, MAX_CAP), DEFAULT_CAP, {"type": "integer", "minimum": 1, "maximum": MAX_CAP, "default": DEFAULT_CAP}
    ),
    "time_zone": FileField(_zone, "UTC", {"type": "string", "default": "UTC"}),
}
POLICY: Final = {
    "slug": FileField(read_slug, REQUIRED, {"type": "string", "pattern": f"^{SLUG_PATTERN}$"}),
    "name": FileField(_text(200), None, {**_NAME, "description": "If left out, the slug."}),
    "description": FileField(_text(4000, lines=True, empty=True), "", {"type": "string", "maxLength": 4000}),
    "metering": FileField(read_metering, {}, {"$ref": "#/$defs/metering"}),
    "limits": FileField(lambda value: value, REQUIRED, {"type": "array", "items": {"$ref": "#/$defs/limit"}}),
}
_PARTITION: Final = {
    "type": "object",
    "maxProperties": MAX_PARTITIONS,
    "propertyNames": {"pattern": "^[a-z][a-z0-9._-]{0,63}$"},
    "additionalProperties": {"type": "string", "minLength": 1, "maxLength": MAX_PARTITION_VALUE_LENGTH},
    "description": "Values of what the limit is partitioned by, such as label.team: web. If left out, every value.",
}
OVERRIDE: Final = {
    "limit": FileField(
        _limit_name,
        REQUIRED,
        _LIMIT_NAME,
    ),
    "partition": FileField(_partition, {}, _PARTITION),
    "quota": FileField(_integer(0, MAX_NUMBER), REQUIRED, {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}),
    "burst": FileField(
        _or_none(_integer(1, MAX_NUMBER)), None, {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_NUMBER}
    ),
    "reason": FileField(_text(500), REQUIRED, {"type": "string", "pattern": r"\S", "maxLength": 500}),
    "ends_at": FileField(_or_none(_instant), None, {"type": ["string", "null"], "format": "date-time"}),
}

TOKEN_OVERRIDE: Final = {
    "token": FileField(_token_id, REQUIRED, {"type": "string", "pattern": f"^{TOKEN_ID_PATTERN}$"}),
    **OVERRIDE,
}
GLOBAL: Final = FileField(
    _slug_or_none,
    None,
    {**_REFERENCE, "description": "The policy of every request of every project, or null for none."},
)


def override_key(override: Mapping[str, Any]) -> str:
    """Return what names an override: its limit, the token if it is of one, and the values that it is for."""
    limit, token = override["limit"], override.get("token")
    named = f"{limit} of {token}" if token else str(limit)
    values = [f"{name} = {value}" for name, value in sorted(override.get("partition", {}).items())]
    return f"{named} with {', '.join(values)}" if values else named


def without_defaults(values: Mapping[str, object], fields: Mapping[str, FileField]) -> dict[str, Any]:
    """Return values in the order of their fields, without those that have the default."""
    found = {name: values[name] for name in fields if name in values and values[name] != fields[name].default}
    if found.get("name") == found.get("slug"):
        found.pop("name", None)
    return found


def with_defaults(values: Mapping[str, object], fields: Mapping[str, FileField]) -> dict[str, Any]:
    """Return values with the default of each field that they leave out, as REST takes them."""
    found = {name: values.get(name, field.default) for name, field in fields.items()}
    if "name" in fields and not found["name"]:
        found["name"] = found["slug"]
    return found
