"""The JSON Schema of policy files. Editors complete and check files with it. ``validate`` has all the rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from enforcement.model.limit_fields import closed
from enforcement.model.limit_schema import limit_schema
from enforcement.model.metering_schema import METERING
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY
from enforcement.policy_files.fields import GLOBAL, OVERRIDE, POLICY, PROJECT, REQUIRED, TOKEN_OVERRIDE, FileField
from enforcement.policy_files.policy_file import MAX_OVERRIDES, MAX_POLICIES, MAX_TOKEN_OVERRIDES, VERSION

ADDRESS: Final = "/static/controlplane/policy-file.schema.json"
"""Where a control plane has it."""


def _of_fields(fields: Mapping[str, FileField]) -> dict[str, Any]:
    required = [name for name, field in fields.items() if field.default is REQUIRED]
    return closed({name: dict(field.schema) for name, field in fields.items()}, *required)


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
        **closed(top, "apiVersion"),
        "oneOf": [
            {"required": ["project"], "properties": {"global": False}},
            {"required": ["shared"], "properties": {"overrides": False, "token_overrides": False}},
        ],
        "$defs": {"limit": limit_schema(), "metering": METERING},
    }


def text() -> str:
    """Return the text of the schema."""
    return json.dumps(schema(), indent=2) + "\n"
