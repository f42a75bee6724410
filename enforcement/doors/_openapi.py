"""What OpenAPI documents of a denial: the statuses it may have, its body and its header fields."""

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
        "violated-policies": {"type": "array", "items": {"type": "string"}},
    },
}
_FIELDS: Final = {
    "Retry-After": {"description": "Seconds until the same request can pass.", "schema": {"type": "integer"}},
    "RateLimit-Policy": {"description": "The limits.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of them.", "schema": {"type": "string"}},
}
_TEXTS: Final = {
    "401": "No token, or one that is not valid",
    "403": "The project is not active",
    "429": "Too many requests",
    "503": "The limit cannot be checked now",
}


def describe_denials(schema: dict[str, Any], responses: dict[str, Any], *, by_token: bool) -> None:
    """
    Add to an operation's *responses* the denials that are not documented yet, and to *schema* what they refer to.

    Args:
        by_token: Whether the request needs a token, which may be none or no longer valid.
    """
    schema.setdefault("components", {}).setdefault("schemas", {}).setdefault("SluicegateProblem", _PROBLEM)
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/SluicegateProblem"}}}
    for status, text in _TEXTS.items():
        if by_token or status in ("429", "503"):
            headers = _FIELDS if status in ("429", "503") else {}
            responses.setdefault(status, {"description": text, "headers": headers, "content": content})
