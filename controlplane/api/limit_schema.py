"""A limit as the OpenAPI document shows it: the rules of enforcement.model.limits, as far as a schema can say them."""

from typing import Any

from enforcement.model.limits import ALGORITHMS, CALENDARS, CONSISTENCIES, MAX_LIMITS_PER_POLICY, MODES, STORE_FAILURES

MAX_NUMBER = 2**53 - 1
NAME = "Limit"
REFERENCE = {"$ref": f"#/components/schemas/{NAME}"}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
_PATTERN = {"type": "string", "maxLength": 256}

LIMIT: dict[str, Any] = {
    "type": "object",
    "description": "What it counts, how many, in which window, and whom it falls on.",
    "additionalProperties": False,
    "required": ["name", "quota"],
    "properties": {
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$",
            "description": "Its identity within the policy: a limit that keeps its name keeps its usage and overrides.",
            "example": "per-minute",
        },
        "algorithm": {"type": "string", "enum": list(ALGORITHMS), "default": "fixed_window"},
        "quota": {**_NUMBER, "description": "Permits a window; 0 denies all.", "example": 100},
        "window_seconds": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": 31_622_400,
            "description": "Required, unless there is a calendar. Of a concurrency limit the life of a slot.",
            "example": 60,
        },
        "calendar": {
            "type": ["string", "null"],
            "enum": [*CALENDARS, None],
            "description": "In place of window_seconds, for fixed_window only.",
        },
        "time_zone": {"type": "string", "maxLength": 64, "default": "UTC", "description": "IANA name; of a calendar."},
        "anchor": {
            "oneOf": [
                {"type": "integer", "minimum": 1, "maximum": 31},
                {"type": "string", "pattern": r"^[0-9]{2}[:-][0-9]{2}$"},
                {"type": "null"},
            ],
            "description": 'Begin of a calendar window: month 1-31, week 1-7 (Monday 1), day "HH:MM", year "MM-DD".',
        },
        "burst": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": MAX_NUMBER,
            "description": "Capacity of a token_bucket; null: its quota.",
        },
        "unit": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$", "default": "requests"},
        "partition_by": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z][a-z0-9._-]{0,63}$"},
            "maxItems": 4,
            "uniqueItems": True,
            "description": "Attributes of a request that get a counter for each of their values.",
            "example": ["ip"],
        },
        "match": {
            "type": "object",
            "additionalProperties": False,
            "description": "The requests it falls on; empty: all.",
            "properties": {
                "methods": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]{1,16}$"}, "maxItems": 16},
                "path": {**_PATTERN, "description": "A glob over the whole path."},
                "attributes": {
                    "type": "object",
                    "maxProperties": 16,
                    "propertyNames": {"pattern": "^[a-z][a-z0-9._-]{0,63}$"},
                    "additionalProperties": {
                        "oneOf": [_PATTERN, {"type": "array", "items": _PATTERN, "minItems": 1, "maxItems": 64}]
                    },
                    "description": "A value, a glob, or a list of values, for each name.",
                },
            },
        },
        "mode": {"type": "string", "enum": list(MODES), "default": "enforce", "description": "shadow: only watches."},
        "consistency": {"type": "string", "enum": list(CONSISTENCIES), "default": "strict"},
        "on_store_failure": {"type": "string", "enum": list(STORE_FAILURES), "default": "local"},
        "charge_on": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[1-5](xx|[0-9]{2})$"},
            "description": "Response classes or codes that are charged; empty: every request, at once.",
        },
    },
}
LIMITS = {"type": "array", "items": REFERENCE, "maxItems": MAX_LIMITS_PER_POLICY}
