"""The JSON Schema of policy files. Editors complete and check files with it. ``validate`` has all the rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from enforcement.cli.remote.files.fields import GLOBAL, OVERRIDE, POLICY, PROJECT, REQUIRED, TOKEN_OVERRIDE, FileField
from enforcement.cli.remote.files.policy_file import MAX_OVERRIDES, MAX_TOKEN_OVERRIDES, VERSION
from enforcement.model.calendars import CALENDARS
from enforcement.model.limits import ALGORITHMS, CONSISTENCIES, MAX_NUMBER, MAX_WINDOW_SECONDS, MODES, STORE_FAILURES
from enforcement.model.metered import DISCONNECTS, ESTIMATES, MAX_OUTPUT_CAP, PARTS, UNMETERED
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY

ADDRESS: Final = "/static/controlplane/policy-file.schema.json"
"""Where a control plane has it."""
_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": MAX_NUMBER}
_STRINGS: Final = {"type": "array", "items": {"type": "string"}}
_CAP: Final = {"type": "integer", "minimum": 1, "maximum": MAX_OUTPUT_CAP}


def _choice(values: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _closed(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """Return the schema of a mapping that has no other names."""
    found = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return {**found, "required": required} if required else found


def _of_fields(fields: Mapping[str, FileField]) -> dict[str, Any]:
    required = [name for name, field in fields.items() if field.default is REQUIRED]
    return _closed({name: dict(field.schema) for name, field in fields.items()}, required)


_ATTRIBUTES: Final = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
    },
}
LIMIT: Final = _closed(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"},
        "algorithm": {**_choice(ALGORITHMS), "default": ALGORITHMS[0]},
        "quota": {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER},
        "window_seconds": {"type": "integer", "minimum": 1, "maximum": MAX_WINDOW_SECONDS},
        "calendar": _choice(tuple(CALENDARS)),
        "time_zone": {"type": "string"},
        "anchor": {"type": ["integer", "string"]},
        "burst": _COUNT,
        "rollover": _COUNT,
        "unit": {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,31}$", "default": "requests"},
        "partition_by": {**_STRINGS, "maxItems": 4},
        "match": _closed({"methods": _STRINGS, "path": {"type": "string"}, "attributes": _ATTRIBUTES}),
        "mode": {**_choice(MODES), "default": MODES[0]},
        "consistency": {**_choice(CONSISTENCIES), "default": CONSISTENCIES[0]},
        "on_store_failure": {**_choice(STORE_FAILURES), "default": STORE_FAILURES[0]},
        "charge_on": _STRINGS,
        "weights": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        "unpriced": {"anyOf": [_choice(UNMETERED), _closed({"charge_as": {"type": "string"}}, ["charge_as"])]},
        "unmetered": _choice(UNMETERED),
    },
    ["name", "quota"],
)
METERING: Final = _closed(
    {
        "estimate": _choice(ESTIMATES),
        "default_cap": _CAP,
        "part_tokens": _closed({name: {"type": "integer", "minimum": 0} for name in PARTS}),
        "on_disconnect": _choice(DISCONNECTS),
        "clamp_at_least": _CAP,
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
        "policies": {"type": "array", "items": policy},
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
        "oneOf": [{"required": ["project"]}, {"required": ["shared"]}],
        "$defs": {"limit": LIMIT, "metering": METERING},
    }


def text() -> str:
    """Return the text of the schema."""
    return json.dumps(schema(), indent=2) + "\n"


__all__ = ["ADDRESS", "schema", "text"]
