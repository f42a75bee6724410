"""The JSON Schema of the rules for metered requests, of the OpenAPI document and of policy files."""

from __future__ import annotations

from typing import Final

from enforcement.model.limit_fields import Schema, closed
from enforcement.model.metered import (
    DISCONNECTS,
    ESTIMATES,
    MAX_LOST_AFTER,
    MAX_OUTPUT_CAP,
    MAX_PART_TOKENS,
    PARTS,
    USUAL_LOST_AFTER,
    USUAL_OUTPUT_CAP,
)

_OUTPUT_CAP: Final[Schema] = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_OUTPUT_CAP}

METERING: Final[Schema] = {
    **closed(
        {
            "estimate": {
                "type": "string",
                "enum": list(ESTIMATES),
                "default": ESTIMATES[0],
                "description": "With bound, the most that the input can be is reserved, and what has no bound is "
                "denied.",
            },
            "default_cap": {
                **_OUTPUT_CAP,
                "description": "Output tokens of a request that names no cap. If left out, the `default_cap` of the "
                f"price of its model, else {USUAL_OUTPUT_CAP}.",
            },
            "part_tokens": {
                **closed({name: {"type": "integer", "minimum": 0, "maximum": MAX_PART_TOKENS} for name in PARTS}),
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
        }
    ),
    "description": "How requests are metered that a limit of tokens or money counts.",
}
