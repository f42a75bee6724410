"""The JSON Schema of policy files. Editors complete and check files with it. ``validate`` has all the rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from enforcement.cli.remote.files.fields import GLOBAL, OVERRIDE, POLICY, PROJECT, REQUIRED, TOKEN_OVERRIDE, FileField
from enforcement.cli.remote.files.policy_file import MAX_OVERRIDES, MAX_POLICIES, MAX_TOKEN_OVERRIDES, VERSION
from enforcement.model.calendars import CALENDARS
from enforcement.model.limits import ALGORITHMS, CONSISTENCIES, MAX_WINDOW_SECONDS, MODES, STORE_FAILURES
from enforcement.model.metered import (
    CHARGE_AS,
    DENY,
    DISCONNECTS,
    ESTIMATES,
    MAX_LOST_AFTER,
    MAX_OUTPUT_CAP,
    MAX_PART_TOKENS,
    MAX_WEIGHT,
    MONEY,
    PARTS,
    TOKEN_UNITS,
    UNMETERED,
)
from enforcement.model.sizes import (
    MAX_LIMITS_PER_POLICY,
    MAX_MATCH_RULES,
    MAX_NUMBER,
    MAX_PARTITIONS,
    MAX_PATTERN_LENGTH,
    MAX_PATTERNS_PER_RULE,
)

ADDRESS: Final = "/static/controlplane/policy-file.schema.json"
"""Where a control plane has it."""
_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": MAX_NUMBER}
_COUNT_OR_NONE: Final = {**_COUNT, "type": ["integer", "null"]}
_PATTERN: Final = {"type": "string", "maxLength": MAX_PATTERN_LENGTH}
_CAP: Final = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_OUTPUT_CAP}
_ATTRIBUTE: Final = "^[a-z][a-z0-9._-]{0,63}$"


def _choice(values: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _integers(names: Iterable[str], most: int) -> dict[str, Any]:
    return _closed({name: {"type": "integer", "minimum": 0, "maximum": most} for name in names})


def _if(name: str, value: Mapping[str, Any], then: Mapping[str, Any], otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rule for those mappings whose field has a value, and another one for the rest."""
    condition = {"properties": {name: dict(value)}, "required": [name]}
    return {"if": condition, "then": {"properties": dict(then)}, "else": {"properties": dict(otherwise)}}


def _given(name: str, kind: str) -> dict[str, Any]:
    return {"properties": {name: {"type": kind}}, "required": [name]}


def _anchor(pattern: str, most: int = 0) -> dict[str, Any]:
    """Return the rule for an anchor, which is an integer only if there is a largest one. An empty string is none."""
    pattern = f"^$|{pattern}"
    if not most:
        return {"type": ["string", "null"], "pattern": pattern}
    return {"type": ["integer", "string", "null"], "minimum": 1, "maximum": most, "pattern": pattern}


def _lists(pattern: str, **rules: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string", "pattern": pattern}, **rules}


def _closed(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """Return the schema of a mapping that has no other names."""
    found = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return {**found, "required": required} if required else found


def _of_fields(fields: Mapping[str, FileField]) -> dict[str, Any]:
    required = [name for name, field in fields.items() if field.default is REQUIRED]
    return _closed({name: dict(field.schema) for name, field in fields.items()}, required)


_ATTRIBUTES: Final = {
    "type": "object",
    "maxProperties": MAX_MATCH_RULES,
    "propertyNames": {"pattern": _ATTRIBUTE},
    "additionalProperties": {
        "anyOf": [
            _PATTERN,
            {"type": "array", "items": _PATTERN, "minItems": 1, "maxItems": MAX_PATTERNS_PER_RULE},
        ]
    },
}
_NONE: Final = {"type": "null"}
# The rules between fields, as far as a schema can say them.
_TOGETHER: Final = [
    {"anyOf": [_given("window_seconds", "integer"), _given("calendar", "string")]},
    _if(
        "calendar",
        {"type": "string"},
        {"window_seconds": _NONE, "algorithm": {"const": ALGORITHMS[0]}},
        {"time_zone": {"const": "UTC"}, "anchor": _NONE, "rollover": _NONE},
    ),
    _if("calendar", {"enum": ["minute", "hour", "lifetime"]}, {"anchor": _NONE}, {}),
    _if("calendar", {"const": "day"}, {"anchor": _anchor(r"^([01]\d|2[0-3]):[0-5]\d$")}, {}),
    _if("calendar", {"const": "year"}, {"anchor": _anchor(r"^(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")}, {}),
    _if("calendar", {"const": "week"}, {"anchor": _anchor("^0*[1-7]$", 7)}, {}),
    _if("calendar", {"const": "month"}, {"anchor": _anchor(r"^0*([1-9]|[12]\d|3[01])$", 31)}, {}),
    _if("calendar", {"const": "lifetime"}, {"rollover": _NONE}, {}),
    _if("algorithm", {"const": "token_bucket"}, {}, {"burst": _NONE}),
    _if("algorithm", {"const": "concurrency"}, {"consistency": {"const": CONSISTENCIES[0]}}, {}),
    _if("rollover", {"type": "integer"}, {"consistency": {"const": CONSISTENCIES[0]}}, {}),
    _if("unit", {"enum": list(TOKEN_UNITS)}, {}, {"weights": {"maxProperties": 0}}),
    _if("unit", {"const": MONEY}, {}, {"unpriced": {"const": DENY}}),
    _if("unit", {"enum": [*TOKEN_UNITS, MONEY]}, {}, {"unmetered": {"const": DENY}}),
]
_CLASSES: Final = dict.fromkeys(name for names in TOKEN_UNITS.values() for name in names)
LIMIT: Final = {
    **_closed(
        {
            "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"},
            "algorithm": {**_choice(ALGORITHMS), "default": ALGORITHMS[0]},
            "quota": {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER},
            "window_seconds": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_WINDOW_SECONDS},
            "calendar": {"type": ["string", "null"], "enum": [*CALENDARS, None]},
            "time_zone": {"type": "string", "default": "UTC"},
            "anchor": {"type": ["integer", "string", "null"]},
            "burst": _COUNT_OR_NONE,
            "rollover": _COUNT_OR_NONE,
            "unit": {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,31}$", "default": "requests"},
            "partition_by": _lists(_ATTRIBUTE, maxItems=MAX_PARTITIONS, uniqueItems=True),
            "match": _closed(
                {
                    "methods": _lists("^[A-Z]{1,16}$", maxItems=MAX_MATCH_RULES),
                    "path": {**_PATTERN, "pattern": r"^([/*?\[]|$)"},
                    "attributes": _ATTRIBUTES,
                }
            ),
            "mode": {**_choice(MODES), "default": MODES[0]},
            "consistency": {**_choice(CONSISTENCIES), "default": CONSISTENCIES[0]},
            "on_store_failure": {**_choice(STORE_FAILURES), "default": STORE_FAILURES[0]},
            "charge_on": _lists("^[1-5](xx|[0-9]{2})$"),
            "weights": _integers(_CLASSES, MAX_WEIGHT),
            "unpriced": {
                "anyOf": [
                    _choice(UNMETERED),
                    _closed({CHARGE_AS: {**_PATTERN, "minLength": 1}}, [CHARGE_AS]),
                ]
            },
            "unmetered": _choice(UNMETERED),
        },
        ["name", "quota"],
    ),
    "allOf": _TOGETHER,
}
METERING: Final = _closed(
    {
        "estimate": _choice(ESTIMATES),
        "default_cap": _CAP,
        "part_tokens": _integers(PARTS, MAX_PART_TOKENS),
        "on_disconnect": _choice(DISCONNECTS),
        "clamp_at_least": _CAP,
        "lost_after": {"type": "integer", "minimum": 0, "maximum": MAX_LOST_AFTER},
    }
)


def schema() -> dict[str, Any]:
    """Return the schema as a new dictionary."""
    policy = _of_fields(POLICY)
    policy["properties"]["limits"]["maxItems"] = MAX_LIMITS_PER_POLICY
    top = {
        "apiVersion": {"const": VERSION},
        "project": _of_fields(PROJECT),
        "shared": {"const": True, "description": "In place of a project: its policies are shared by all projects."},
        "policies": {"type": "array", "items": policy, "maxItems": MAX_POLICIES},
        "global": {**GLOBAL.schema, "description": "With shared only. If left out, the choice stays as it is."},
        "overrides": {"type": "array", "items": _of_fields(OVERRIDE), "maxItems": MAX_OVERRIDES},
        "token_overrides": {
            "type": "array",
            "items": _of_fields(TOKEN_OVERRIDE),
            "maxItems": MAX_TOKEN_OVERRIDES,
            "description": "The overrides of tokens of the project. If left out, they stay as they are.",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Policy file of Sluicegate",
        **_closed(top, ["apiVersion"]),
        "oneOf": [
            {"required": ["project"], "properties": {"global": False}},
            {"required": ["shared"], "properties": {"overrides": False, "token_overrides": False}},
        ],
        "$defs": {"limit": LIMIT, "metering": METERING},
    }


def text() -> str:
    """Return the text of the schema."""
    return json.dumps(schema(), indent=2) + "\n"
