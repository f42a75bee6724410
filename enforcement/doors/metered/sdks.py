"""The differences between the SDKs of providers: where they show their key, and which errors they can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

from enforcement.http.asgi import Scope, header_of
from enforcement.http.messages import TOKEN_FIELDS, find_token
from enforcement.metering.formats.routes import find_route
from enforcement.metering.request import MCP
from enforcement.plan.error_shapes import SHAPES

_TOKEN_FIELDS: Final = tuple(name.encode() for name in TOKEN_FIELDS)
_TOKEN_NAMES: Final = frozenset(_TOKEN_FIELDS)
_AUTHORIZATION: Final = b"authorization"
_OTHER_TOKEN_NAMES: Final = _TOKEN_NAMES - {_AUTHORIZATION}
assert _TOKEN_FIELDS[0] == _AUTHORIZATION
_METHODS: Final = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
# Google's APIs take the method and the body from the query, some frameworks the method.
_METHOD_NAMES: Final = frozenset(("$httpmethod", "$req", "_method", "x-http-method-override"))
# The first field that a request has decides. Two of the SDKs send the last one.
_SIGNS: Final = (
    (b"anthropic-version", "anthropic"),
    (b"x-goog-api-client", "gemini"),
    (b"x-goog-api-key", "gemini"),
    (b"x-stainless-lang", "openai"),
)


def token_of(scope: Scope) -> str | None:
    """
    Return the token of a request to a provider, see :func:`~enforcement.http.messages.find_token`.

    Whatever its fields hold was meant as a token. A key of the provider itself is one that is not known.
    """
    present = [item for item in scope["headers"] if item[0] in _TOKEN_NAMES]
    if len(present) == 1 and present[0][0] == _AUTHORIZATION:  # as nearly always
        return find_token(present[0][1].decode("latin-1"))
    names = {name for name, _ in present}
    return find_token(*[header_of(scope, name) if name in names else None for name in _TOKEN_FIELDS])


def only_authorization(fields: Mapping[bytes, bytes]) -> bytes | None:
    """Return the value of ``Authorization`` among header fields, or None if another field may hold the token."""
    return fields.get(_AUTHORIZATION) if _OTHER_TOKEN_NAMES.isdisjoint(fields) else None


def overrides_method(scope: Scope) -> bool:
    """Return whether a server may find another method in a request than its own, in a header field or in the query."""
    if not _METHODS.isdisjoint([name.replace(b"_", b"-") for name, _ in scope["headers"]]):
        return True
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    return any(name.lower() in _METHOD_NAMES for name, _ in query)


def target_of(scope: Scope) -> str:
    """Return the path and query of a request as the client has written it, as far as the server tells."""
    raw, query = scope.get("raw_path"), scope.get("query_string", b"").decode("latin-1")
    path = str(raw.decode("latin-1") if raw else scope["path"])
    return f"{path}?{query}" if query else path


def shape_of(scope: Scope, format: str | None = None) -> str:
    """
    Return the provider whose errors the client can read, such as ``openai`` or ``bedrock``, or an empty string.

    The path says it, if it is one of a metered format. Elsewhere, as for files and batches, the header fields do.

    Args:
        format: What the path says, if that is known.
    """
    if scope["type"] != "http":
        return ""
    if format is None or format == MCP:
        route = find_route(target_of(scope))
        format = None if route is None else route.format
    shape = "" if format is None else format.partition("-")[0]
    if shape in SHAPES:
        return shape
    names = {name for name, _ in scope["headers"]}
    return next((shape for name, shape in _SIGNS if name in names), "")
