"""Say in an OpenAPI document how the requests to an operation may be denied."""

from __future__ import annotations

from typing import Any, Final

_PROBLEM: Final = {
    "title": "Problem",
    "description": "A problem (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "policy": {"type": "string", "description": "The policy whose limit denies. Absent for a limit in code."},
        "limit": {"type": "string", "description": "The limit that denies."},
        "decision": {"type": "string", "description": "The id of the decision, to be given to the operator."},
        "violated-policies": {"type": "array", "items": {"type": "string"}},
    },
}
_DENIAL_FIELDS: Final = {
    "Sluicegate-Decision": {"description": "The id of the decision.", "schema": {"type": "string"}},
    "Sluicegate-Denial": {"description": "The reason of the denial.", "schema": {"type": "string"}},
}
_FIELDS: Final = {
    **_DENIAL_FIELDS,
    "Retry-After": {"description": "Seconds until the same request can pass.", "schema": {"type": "integer"}},
    "RateLimit-Policy": {"description": "The limits.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of the limits.", "schema": {"type": "string"}},
}
_DESCRIPTIONS: Final = {
    "401": "No token, or one that is not valid",
    "403": "The project is not active",
    "429": "Too many requests",
    "503": "The limit cannot be checked now",
}


def describe_denials(schema: dict[str, Any], responses: dict[str, Any], *, by_token: bool) -> None:
    """
    Add the possible denials of an operation to its OpenAPI *responses*, except for those that are documented already.

    Args:
        schema: The whole document. The schema of the problem is added to it.
        responses: The responses of the operation.
        by_token: Whether the operation needs a token, which may be missing or not valid.
    """
    schema.setdefault("components", {}).setdefault("schemas", {}).setdefault("SluicegateProblem", _PROBLEM)
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/SluicegateProblem"}}}
    for status, text in _DESCRIPTIONS.items():
        if by_token or status in ("429", "503"):
            headers = _FIELDS if status in ("429", "503") else _DENIAL_FIELDS
            responses.setdefault(status, {"description": text, "headers": headers, "content": content})
