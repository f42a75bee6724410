"""Describe a denial in the shape that the SDKs of a provider read, so that they show its sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_ANTHROPIC_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""The types of errors that have one of their own. Others are the client's or the server's."""

_GOOGLE_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_AWS_TYPES: Final = {
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
}
_RETRY_INFO: Final = "type.googleapis.com/google.rpc.RetryInfo"
_REQUEST_INFO: Final = "type.googleapis.com/google.rpc.RequestInfo"
_RETRYING: Final = frozenset({"openai", "anthropic"})

MAX_SDK_WAIT_MS: Final = 60_000
"""The longest wait for which an SDK is told to try again by itself. For a longer one, its caller gets the error."""


def _openai(status: int, code: str, unit: str, sentence: str) -> dict[str, object]:
    if status == 429:
        kind, code = "tokens" if unit == "tokens" else "requests", "rate_limit_exceeded"
    elif status == 401:
        kind, code = "invalid_request_error", "invalid_api_key"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def _anthropic(status: int, code: str, unit: str, sentence: str) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": sentence}}


def _gemini(status: int, code: str, unit: str, sentence: str) -> dict[str, object]:
    name = _GOOGLE_STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    return {"error": {"code": status, "message": sentence, "status": name}}


def _bedrock(status: int, code: str, unit: str, sentence: str) -> dict[str, object]:
    kind = _AWS_TYPES.get(status, "ValidationException" if status < 500 else "ServiceUnavailableException")
    return {"__type": kind, "message": sentence}


def _cohere(status: int, code: str, unit: str, sentence: str) -> dict[str, object]:
    return {"message": sentence}


SHAPES: Final[dict[str, Callable[[int, str, str, str], dict[str, Any]]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "bedrock": _bedrock,
    "cohere": _cohere,
}
"""The writers of the body of a denial, by the provider whose SDK reads it."""


def error_body(
    preset: str,
    status: int,
    code: str,
    unit: str,
    sentence: str,
    retry_after_ms: int | None = None,
    decision: str = "",
) -> dict[str, object] | None:
    """
    Return the body of a denial for a provider's SDK, or None if no preset of a provider is named.

    Args:
        preset: Presets joined by ``+``. The first that names a provider counts.
        status: The HTTP status.
        code: The reason of the denial.
        unit: The unit of the limit that denies, or "".
        sentence: What the SDK shows.
        retry_after_ms: Milliseconds until the same request can pass. None if no wait helps. Google's clients read it
            from the body, and those of the others from header fields, see :func:`retry_fields`.
        decision: The id of the decision. SDKs show or keep the whole body, and few show header fields. Empty: none.
    Returns:
        None if no preset names a provider, so that the body is a problem (RFC 9457).
    """
    name = _provider_in(preset)
    if name is None:
        return None
    body = SHAPES[name](status, code, unit, sentence)
    if name == "gemini":
        details = []
        if retry_after_ms is not None:
            details.append({"@type": _RETRY_INFO, "retryDelay": f"{max(1, retry_after_ms) / 1_000:.3f}s"})
        if decision:
            details.append({"@type": _REQUEST_INFO, "requestId": decision})
        if details:
            body["error"]["details"] = details
    elif decision:
        body.get("error", body)["decision"] = decision
    return body


def retry_fields(preset: str, retry_after_ms: int | None) -> list[tuple[str, str]]:
    """
    Return the header fields of a denial that tell the SDK of a provider whether and when to try again.

    The SDKs try again by themselves. That of Anthropic waits as long as ``Retry-After`` says, which may be weeks for a
    monthly budget, and both try again in vain what can never pass. They read ``x-should-retry`` first, and
    ``retry-after-ms`` before ``Retry-After``, which is in whole seconds.

    Args:
        preset: As for :func:`error_body`.
        retry_after_ms: Milliseconds until the same request can pass. None if no wait helps.
    Returns:
        An empty list if no preset names a provider whose SDK reads such fields.
    """
    if _provider_in(preset) not in _RETRYING:
        return []
    if retry_after_ms is None or retry_after_ms > MAX_SDK_WAIT_MS:
        return [("x-should-retry", "false")]
    return [("retry-after-ms", str(max(1, retry_after_ms)))]


def _provider_in(preset: str) -> str | None:
    return next((name for name in preset.split("+") if name in SHAPES), None)
