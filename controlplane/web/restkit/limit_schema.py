"""The schema of a limit in the OpenAPI document."""

from typing import Any

from enforcement.model.limit_schema import limit_schema
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY

NAME = "Limit"
REFERENCE = {"$ref": f"#/components/schemas/{NAME}"}
LIMIT = limit_schema(rest=True)
LIMITS: dict[str, Any] = {"type": "array", "items": REFERENCE, "maxItems": MAX_LIMITS_PER_POLICY}
