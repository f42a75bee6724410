"""Describe a denial in the shape that the SDKs of a provider read, so that they show its sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_ANTHROPIC_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""The types of errors that have one of their own. Others are the client's or the server's."""


def _openai(status: int, code: str, unit: str, sentence: str) -> dict[str, Any]:
    if status == 429:
        kind, code = "tokens" if unit == "tokens" else "requests", "rate_limit_exceeded"
    elif status == 401:
        kind, code = "invalid_request_error", "invalid_api_key"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def _anthropic(status: int, code: str, unit: str, sentence: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": sentence}}


_SHAPES: Final[dict[str, Callable[[int, str, str, str], dict[str, Any]]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
}


def error_body(preset: str, status: int, code: str, unit: str, sentence: str) -> dict[str, Any] | None:
    """
    Return the body of a denial for a provider's SDK, or None if no preset of a provider is named.

    Args:
        preset: Presets joined by ``+``. The first that names a provider counts.
        status: The HTTP status.
        code: The reason of the denial.
        unit: The unit of the limit that denies, or "".
        sentence: What the SDK shows.
    Returns:
        None if no preset names a provider, so that the body is a problem (RFC 9457).
    """
    shape = next((_SHAPES[name] for name in preset.split("+") if name in _SHAPES), None)
    return None if shape is None else shape(status, code, unit, sentence)


__all__ = ["error_body"]
