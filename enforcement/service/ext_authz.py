"""
Answer the ``Check`` calls of Envoy's ext_authz filter, version 3 of its gRPC service.

Field numbers are those of ``envoy/service/auth/v3/external_auth.proto`` and ``attribute_context.proto`` beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

from enforcement.http.asgi import Scope
from enforcement.http.messages import (
    Header,
    PlainResponse,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    token_in,
)
from enforcement.service.judge import Judge
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import Fields, part, parts, text, write, write_integer

PATH: Final = "/envoy.service.auth.v3.Authorization/Check"

_PERMISSION_DENIED: Final = 7
# CheckRequest.attributes, and below it source.address.socket_address and request.http
_ATTRIBUTES, _SOURCE, _SOCKET, _REQUEST, _HTTP = 1, 1, (1, 1), 4, 2
_ADDRESS, _METHOD, _PATH = 2, 2, 4
# Header fields: a map of strings, or with encode_raw_headers a list of HeaderValue
_HEADERS, _HEADER_MAP, _LISTED = 3, 13, 1
_KEY, _VALUE, _RAW_VALUE = 1, 2, 3
# CheckResponse
_STATUS, _DENIED, _ALLOWED = 1, 2, 3
_CODE, _DENIED_STATUS, _DENIED_HEADERS, _DENIED_BODY, _TO_CLIENT, _HEADER = 1, 1, 2, 3, 6, 1


class ExtAuthz:
    """
    The method ``Check``.

    Args:
        judge: Decides.
        settings: Those of the service.
    """

    def __init__(self, judge: Judge, settings: ServiceSettings) -> None:
        self._judge = judge
        self._settings = settings

    async def __call__(self, scope: Scope, message: bytes) -> bytes:
        """Return a CheckResponse to a CheckRequest. Raises Malformed or Refusal."""
        attributes = Fields(part(message, _ATTRIBUTES))
        http = Fields(part(attributes.part(_REQUEST), _HTTP))
        headers = _headers(http)
        shown = token_in(headers.get)
        peer, forwarded = text(part(attributes.part(_SOURCE), *_SOCKET), _ADDRESS), headers.get("x-forwarded-for")
        values: dict[str, str | None] = {
            "method": http.text(_METHOD),
            "path": unquote(http.text(_PATH).partition("?")[0]),
            "ip": self._settings.trusted.client(peer or None, [forwarded] if forwarded else []),
        }
        try:
            decision = await self._judge.decide(shown, 1, RequestAttributes(values, headers.get))
        except ValueError as exc:
            raise Refusal(400, "Bad request", str(exc), "bad_request") from exc
        if not decision.allowed:
            return denied(denial(decision, self._settings.headers))
        added = _options(_TO_CLIENT, added_headers(decision, self._settings.headers))
        return write(_STATUS, b"") + write(_ALLOWED, added)


def denied(answer: PlainResponse) -> bytes:
    """Return the CheckResponse that denies a request with a response."""
    status = write(_DENIED_STATUS, write_integer(_CODE, answer.status))
    # Envoy measures the body itself.
    headers = _options(_DENIED_HEADERS, (it for it in answer.headers if it[0] != "Content-Length"))
    body = write(_DENIED_BODY, answer.body) if answer.body else b""
    return write(_STATUS, write_integer(_CODE, _PERMISSION_DENIED)) + write(_DENIED, status + headers + body)


def _headers(http: Fields) -> dict[str, str]:
    """
    Return the header fields of a request by lower-case name, with repeated fields joined by commas.

    Values are read as Latin-1, as every integration reads header fields, so that all count them alike.
    """
    # Of the entries of a map with one key, protobuf takes the last.
    rows: dict[str, list[bytes]] = {}
    for entry in map(Fields, http.parts(_HEADERS)):
        rows[entry.text(_KEY)] = entry.parts(_VALUE)
    listed = map(Fields, parts(http.part(_HEADER_MAP), _LISTED))
    found: dict[str, str] = {}
    for key, values in (
        *rows.items(),
        *((entry.text(_KEY), entry.parts(_RAW_VALUE) or entry.parts(_VALUE)) for entry in listed),
    ):
        name, value = key.lower(), values[-1].decode("latin-1") if values else ""
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _options(field: int, headers: Iterable[Header]) -> bytes:
    """Return header fields as a repeated HeaderValueOption."""
    return b"".join(
        write(field, write(_HEADER, write(_KEY, name.encode()) + write(_VALUE, value.encode())))
        for name, value in headers
    )
