"""The schema of a limit in the OpenAPI document, with the rules that a JSON schema can express."""

from collections.abc import Iterable
from typing import Any

from enforcement.metering.estimate import DEFAULT_CAP
from enforcement.model.calendars import CALENDARS
from enforcement.model.limits import ALGORITHMS, CONSISTENCIES, MODES, STORE_FAILURES
from enforcement.model.metered import (
    CHARGE_AS,
    DENY,
    DISCONNECTS,
    ESTIMATES,
    FULL_WEIGHT,
    MAX_LOST_AFTER,
    MAX_OUTPUT_CAP,
    MAX_PART_TOKENS,
    MAX_WEIGHT,
    PARTS,
    TOKEN_UNITS,
    UNMETERED,
    USUAL_LOST_AFTER,
)
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY, MAX_NUMBER

NAME = "Limit"
REFERENCE = {"$ref": f"#/components/schemas/{NAME}"}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
_PATTERN = {"type": "string", "maxLength": 256}
_OUTPUT_CAP = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_OUTPUT_CAP}


def _integers(names: Iterable[str], most: int) -> dict[str, Any]:
    properties = {name: {"type": "integer", "minimum": 0, "maximum": most} for name in names}
    return {"type": "object", "additionalProperties": False, "properties": properties}


LIMIT: dict[str, Any] = {
    "type": "object",
    "description": "What is counted, how many are allowed, in which window, and for which requests.",
    "additionalProperties": False,
    "required": ["name", "quota"],
    "properties": {
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$",
            "description": "Identifies the limit in its policy. A limit that keeps its name keeps usage and overrides.",
            "example": "per-minute",
        },
        "algorithm": {"type": "string", "enum": list(ALGORITHMS), "default": "fixed_window"},
        "quota": {**_NUMBER, "description": "Permits in each window. 0 denies every request.", "example": 100},
        "window_seconds": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": 31_622_400,
            "description": "Required without a calendar. For concurrency, the lifetime of a slot.",
            "example": 60,
        },
        "calendar": {
            "type": ["string", "null"],
            "enum": [*CALENDARS, None],
            "description": "Used in place of window_seconds, with fixed_window only.",
        },
        "time_zone": {"type": "string", "maxLength": 64, "default": "UTC", "description": "IANA name, for a calendar."},
        "anchor": {
            "oneOf": [
                {"type": "integer", "minimum": 1, "maximum": 31},
                {"type": "string", "pattern": r"^[0-9]{2}[:-][0-9]{2}$"},
                {"type": "null"},
            ],
            "description": 'Start of a calendar window: month 1-31, week 1-7 (Monday 1), day "HH:MM", year "MM-DD".',
        },
        "burst": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": MAX_NUMBER,
            "description": "Capacity of a token_bucket. If null, the quota.",
        },
        "rollover": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": MAX_NUMBER,
            "description": "With a calendar other than lifetime, how many unspent permits at most a window leaves to "
            "the next. If null, none.",
        },
        "unit": {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,31}$", "default": "requests"},
        "partition_by": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z][a-z0-9._-]{0,63}$"},
            "maxItems": 4,
            "uniqueItems": True,
            "description": "Attributes of a request, or labels of its token such as label.team. Each of their values "
            "has a counter of its own.",
            "example": ["ip"],
        },
        "match": {
            "type": "object",
            "additionalProperties": False,
            "description": "The requests to which the limit applies. If empty, all.",
            "properties": {
                "methods": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]{1,16}$"}, "maxItems": 16},
                "path": {
                    **_PATTERN,
                    "pattern": r"^([/*?\[]|$)",
                    "description": "A glob that matches the whole path and begins with / or a wildcard. If empty, "
                    "every path.",
                },
                "attributes": {
                    "type": "object",
                    "maxProperties": 16,
                    "propertyNames": {"pattern": "^[a-z][a-z0-9._-]{0,63}$"},
                    "additionalProperties": {
                        "oneOf": [_PATTERN, {"type": "array", "items": _PATTERN, "minItems": 1, "maxItems": 64}]
                    },
                    "description": "For each name a value, a glob, or a list of values.",
                },
            },
        },
        "mode": {
            "type": "string",
            "enum": list(MODES),
            "default": "enforce",
            "description": "A shadow limit never denies.",
        },
        "consistency": {"type": "string", "enum": list(CONSISTENCIES), "default": "strict"},
        "on_store_failure": {"type": "string", "enum": list(STORE_FAILURES), "default": "local"},
        "charge_on": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[1-5](xx|[0-9]{2})$"},
            "description": "Response classes or codes that are charged. If empty, each request is charged at once.",
        },
        "weights": {
            **_integers(TOKEN_UNITS["tokens"], MAX_WEIGHT),
            "description": f"For a unit of tokens, what a token of each class counts, per mille. If a class is left "
            f"out, {FULL_WEIGHT}.",
            "example": {"cached_input": 100},
        },
        "unpriced": {
            "oneOf": [
                {"type": "string", "enum": list(UNMETERED)},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": [CHARGE_AS],
                    "properties": {CHARGE_AS: {**_PATTERN, "minLength": 1}},
                },
            ],
            "default": DENY,
            "description": "For micros, what happens to a request for a model that has no price.",
        },
        "unmetered": {
            "type": "string",
            "enum": list(UNMETERED),
            "default": DENY,
            "description": "For tokens and micros, what happens to a request that no meter can read.",
        },
    },
}
METERING: dict[str, Any] = {
    "type": "object",
    "description": "How requests are metered that a limit of tokens or money counts.",
    "additionalProperties": False,
    "properties": {
        "estimate": {
            "type": "string",
            "enum": list(ESTIMATES),
            "default": ESTIMATES[0],
            "description": "With bound, the most that the input can be is reserved, and what has no bound is denied.",
        },
        "default_cap": {
            **_OUTPUT_CAP,
            "description": "Output tokens of a request that names no cap. If left out, the `default_cap` of the price "
            f"of its model, else {DEFAULT_CAP}.",
        },
        "part_tokens": {
            **_integers(PARTS, MAX_PART_TOKENS),
            "description": "Tokens of a part of a request that is not text, by its kind.",
            "example": {"image": 1000},
        },
        "on_disconnect": {
            "type": "string",
            "enum": list(DISCONNECTS),
            "description": "What happens to an answer whose client left. With drain, it is read to its end, within "
            "bounds, for the usage that the provider reports. With free, the call is cancelled. If left out, drain "
            "with estimate bound, else free.",
        },
        "clamp_at_least": {
            **_OUTPUT_CAP,
            "description": "Lower the cap of a request to what its limits have left, but not below this number.",
        },
        "lost_after": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_LOST_AFTER,
            "default": USUAL_LOST_AFTER,
            "description": "Seconds after which a metered reservation that its process has lost is settled as its "
            "estimate. 0: as soon as it is found. 604800: only by hand, as its record is gone then.",
        },
    },
}
LIMITS = {"type": "array", "items": REFERENCE, "maxItems": MAX_LIMITS_PER_POLICY}
