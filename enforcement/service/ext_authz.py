"""
Answer the ``Check`` calls of Envoy's ext_authz filter, version 3 of its gRPC service.

Field numbers are those of ``envoy/service/auth/v3/external_auth.proto`` and ``attribute_context.proto`` beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from enforcement.http.asgi import Scope, encoded
from enforcement.http.messages import (
    PlainResponse,
    Refusal,
    RequestAttributes,
    added_headers,
    denial,
    shows,
    token_in,
)
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH
from enforcement.plan.decision import Decision
from enforcement.plan.headers import draft_lines
from enforcement.service.judge import Judge
from enforcement.service.settings import ServiceSettings
from enforcement.service.wire import Fields, by_shape, decoded, part, parts, text, write, write_integer

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
_OK_STATUS: Final = write(_STATUS, b"")


@dataclass(frozen=True, slots=True)
class _Asked:
    """
    The description of a request in a CheckRequest.

    Attributes:
        source: Its ``attributes.source``, encoded.
        method, path: As they are in the message.
        fields: The header fields by their names in lower case.
    """

    source: bytes
    method: bytes
    path: bytes
    fields: dict[bytes, bytes]

    def field(self, name: str) -> str | None:
        """
        Return the value of a header field, or None if there is none.

        Values are read as Latin-1, as every integration reads header fields, so that all count them alike.
        """
        value = self.fields.get(name.encode("utf-8", "replace"))
        return None if value is None else value.decode("latin-1")


class ExtAuthz:
    """
    The method ``Check``.

    Args:
        judge: Decides.
        settings: Those of the service.
    """

    def __init__(self, judge: Judge, settings: ServiceSettings) -> None:
        self._judge = judge
        self._limiter = judge.limiter
        self._settings = settings
        self._draft = settings.headers == "ietf"

    async def __call__(self, scope: Scope, message: bytes) -> bytes:
        """Return a CheckResponse to a CheckRequest. Raises Malformed or Refusal."""
        asked = _by_shape(message) or _by_number(message)
        field, limiter = asked.fields.get(b"authorization"), self._limiter
        plan = None if field is None else limiter.derived.headers.get(field)
        if plan is None or len(asked.method) + len(asked.path) > MAX_ATTRIBUTE_LENGTH:
            return await self._described(asked, field)
        decision = limiter.from_lease(plan) or await limiter.decide(plan, 1)
        if not decision.allowed:
            limiter.noted(decision, self._attributes(asked))
        return self._answer(decision)

    async def _described(self, asked: _Asked, field: bytes | None) -> bytes:
        """Answer a request whose plan is not kept by its ``Authorization``, or whose attributes may be too long."""
        shown = token_in(asked.field)
        try:
            decision = await self._judge.decide(shown, 1, self._attributes(asked))
        except ValueError as exc:
            raise Refusal(400, "Bad request", str(exc), "bad_request") from exc
        if shown and field is not None and shows(field, shown):
            self._limiter.keep_field(field, shown)
        return self._answer(decision)

    def _attributes(self, asked: _Asked) -> RequestAttributes:
        peer, forwarded = text(part(asked.source, *_SOCKET), _ADDRESS), asked.field("x-forwarded-for")
        values: dict[str, str | None] = {
            "method": decoded(asked.method),
            "path": unquote(decoded(asked.path).partition("?")[0]),
            "ip": self._settings.trusted.client(peer or None, [forwarded] if forwarded else []),
        }
        return RequestAttributes(values, asked.field)

    def _answer(self, decision: Decision) -> bytes:
        if not decision.allowed:
            return denied(denial(decision, self._settings.headers))
        if self._draft and decision.source != "fallback":
            lines = draft_lines(decision)
        else:
            lines = encoded(added_headers(decision, self._settings.headers))
        return _OK_STATUS + write(_ALLOWED, _options(_TO_CLIENT, lines))


def denied(answer: PlainResponse) -> bytes:
    """Return the CheckResponse that denies a request with a response."""
    status = write(_DENIED_STATUS, write_integer(_CODE, answer.status))
    # Envoy measures the body itself.
    headers = _options(_DENIED_HEADERS, encoded(it for it in answer.headers if it[0] != "Content-Length"))
    body = write(_DENIED_BODY, answer.body) if answer.body else b""
    return write(_STATUS, write_integer(_CODE, _PERMISSION_DENIED)) + write(_DENIED, status + headers + body)


def _by_shape(message: bytes) -> _Asked | None:
    """Return what a message says that is written as Envoy does, or None if it has to be read by :func:`_by_number`."""
    levels = by_shape(message)
    for number in (_ATTRIBUTES, _REQUEST):
        if levels is None or number not in levels[1]:
            return None
        above, levels = levels[1], by_shape(levels[1][number])
    http = by_shape(levels[1].get(_HTTP, b""), _HEADERS) if levels else None
    if http is None or http[1].get(_HEADER_MAP):
        return None
    fields, others = http
    names = b"".join(fields)
    if names != names.lower() or not names.isascii():
        return None
    return _Asked(above.get(_SOURCE, b""), others.get(_METHOD, b""), others.get(_PATH, b""), fields)


def _by_number(message: bytes) -> _Asked:
    """Return what any message says, with repeated header fields joined by commas. Raises Malformed."""
    attributes = Fields(part(message, _ATTRIBUTES))
    http = Fields(part(attributes.part(_REQUEST), _HTTP))
    # If a map has several entries with one key, protobuf takes the last.
    rows: dict[str, list[bytes]] = {}
    for entry in map(Fields, http.parts(_HEADERS)):
        rows[entry.text(_KEY)] = entry.parts(_VALUE)
    listed = map(Fields, parts(http.part(_HEADER_MAP), _LISTED))
    found: dict[bytes, bytes] = {}
    for key, values in (
        *rows.items(),
        *((entry.text(_KEY), entry.parts(_RAW_VALUE) or entry.parts(_VALUE)) for entry in listed),
    ):
        name, value = key.lower().encode(), values[-1] if values else b""
        found[name] = b"%b, %b" % (found[name], value) if name in found else value
    method, path = ([b"", *http.parts(number)][-1] for number in (_METHOD, _PATH))
    return _Asked(attributes.part(_SOURCE), method, path, found)


def _options(field: int, lines: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return header fields as a repeated HeaderValueOption."""
    return b"".join([write(field, write(_HEADER, write(_KEY, name) + write(_VALUE, value))) for name, value in lines])
