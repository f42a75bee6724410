"""The header fields that pass through the proxy, in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from enforcement.doors.proxy.connection import RawHeaders
from enforcement.http.addresses import TrustedProxies
from enforcement.http.asgi import Scope
from enforcement.http.messages import TOKEN_FIELDS, find_token
from enforcement.model.tokens import SECRET_HEADS, is_well_formed

# Fields about one connection, not about the message (RFC 9110, 7.6.1).
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded"})
# Applications trust these as well, so that only a trusted proxy may set them.
_TOLD: Final = frozenset(
    {
        b"x-forwarded-client-cert",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-real-ip",
    }
)
CREDENTIALS: Final = frozenset(name.encode() for name in TOKEN_FIELDS)
# Fields that this proxy sets itself, or drops. It has no use for Expect, because it sends a body without waiting.
OWN_REQUEST: Final = _HOP_BY_HOP | _FORWARDED | _TOLD | CREDENTIALS | {b"host", b"expect", b"content-length"}


def spellings(names: Iterable[bytes]) -> frozenset[bytes]:
    """
    Return all names that some applications take for one of *names*.

    CGI and WSGI know no difference between ``X-Forwarded-For`` and ``X_Forwarded_For``, so that a client could set the
    first by the second.
    """
    return frozenset(
        b"".join(part)
        for name in names
        for part in product(*([b"-", b"_"] if byte == 0x2D else [bytes((byte,))] for byte in name))
    )


_NOT_PASSING: Final = spellings(OWN_REQUEST)
# The server in front of this application adds its own.
_OWN_RESPONSE: Final = _HOP_BY_HOP | {b"date", b"server"}
_ONE_CONNECTION: Final = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})

_SCHEMES: Final = {"ws": "http", "wss": "https"}

# Methods are case-sensitive. An application that knows better would take a method for another than limits by method do.
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]{1,64}")
_SECRET: Final = re.compile(f"(?:{'|'.join(SECRET_HEADS)})[0-9A-Za-z]+".encode())
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Some servers drop what follows "#", which no client sends (RFC 9112, 3.2).
_NO_TARGET: Final = re.compile(rb"[\x00-\x20\x7f#]")


class BadRequest(Exception):
    """The request cannot be forwarded as HTTP/1.1. *status* is that of the answer."""

    def __init__(self, title: str, status: int = 400) -> None:
        super().__init__(title)
        self.status = status


@dataclass(slots=True)
class RequestFields:
    """
    The fields of a request.

    Attributes:
        passing: The fields that the upstream gets as they are.
        length: The announced length of the body. None if there is none.
        chunked: Whether the body is sent in chunks, so that its length is not known.
        forwarded: The values of ``X-Forwarded-For``.
        forwarded_proto: The last value of ``X-Forwarded-Proto``. None if there is none.
        forwarded_host: The last value of ``X-Forwarded-Host``. None if there is none.
        told: The other fields that a trusted proxy may set.
        host: The value of ``Host``. None if there is none.
        websocket: Whether the request begins a WebSocket connection.
    """

    passing: list[tuple[bytes, bytes]] = field(default_factory=list)
    length: int | None = None
    chunked: bool = False
    forwarded: list[bytes] = field(default_factory=list)
    forwarded_proto: bytes | None = None
    forwarded_host: bytes | None = None
    told: list[tuple[bytes, bytes]] = field(default_factory=list)
    host: bytes | None = None
    websocket: bool = False

    def note(self, name: bytes, value: bytes) -> None:
        """
        Keep what a field says that does not pass.

        Raises:
            BadRequest: It cannot be believed, or not be done.
        """
        if name == b"host":
            if self.host not in (None, value):
                raise BadRequest("The request must have one Host")
            self.host = value
        elif name == b"content-length":
            if not (value.isdigit() and len(value) < 20):
                raise BadRequest("The length of the body is not an integer")
            if self.length not in (None, int(value)):
                raise BadRequest("The request must have one Content-Length")
            self.length = int(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise BadRequest("The body must have no transfer coding but chunked", 501)
            self.chunked = True
        elif name == b"upgrade":
            self.websocket |= value.lower() == b"websocket"
        elif name == b"x-forwarded-for":
            self.forwarded.append(value)
        elif name == b"x-forwarded-proto":
            self.forwarded_proto = value
        elif name == b"x-forwarded-host":
            self.forwarded_host = value
        elif name in _TOLD:
            self.told.append((name, value))


def request_fields(headers: Sequence[tuple[bytes, bytes]], replaced: frozenset[bytes]) -> RequestFields:
    """
    Return the fields of a request, without those of this hop, those that held the token, and *replaced*.

    Raises:
        BadRequest: The length of the body is not an integer, there are two hosts, or the body has an unknown coding.
    """
    result = RequestFields()
    passing, credentials, named = result.passing, [], None
    for name, value in headers:
        if name not in _NOT_PASSING:
            passing.append((name, value))
        elif name in CREDENTIALS:
            credentials.append((name, value))
        elif name == b"connection" and value not in _ONE_CONNECTION:
            named = _options(value) | (named or frozenset())
        else:
            result.note(name, value)
    if credentials:
        passing += _without_token(credentials)
    if result.chunked:
        result.length = None
    if named or replaced:
        dropped = replaced | (named or frozenset())
        result.passing = [item for item in passing if item[0] not in dropped]
    return result


def request_head(
    scope: Scope, target: bytes, host: bytes, fields: RequestFields, proxies: TrustedProxies, added: RawHeaders
) -> bytes:
    """
    Return the request line and the header fields of a request to the upstream.

    Args:
        scope: The request, as ASGI describes it.
        target: The path and query that it gets.
        host: The name of the upstream, and its port.
        fields: The fields of the request.
        proxies: The proxies whose forwarding fields are trusted.
        added: Fields to add.
    Raises:
        BadRequest: A character in it would begin another field, or another request.
    """
    method = scope["method"]
    if _NO_TARGET.search(target) or not _METHOD.fullmatch(method):
        raise BadRequest("The method or the target of the request is not valid")
    lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (method.encode(), target, host)]
    lines += [b"%b: %b" % item for item in fields.passing]
    lines += [b"%b: %b" % item for item in added]
    lines += [b"%b: %b" % item for item in forwarded_fields(scope, fields, proxies)]
    if fields.chunked:
        lines.append(b"transfer-encoding: chunked")
    elif fields.length is not None:
        lines.append(b"content-length: %d" % fields.length)
    head = b"\r\n".join(lines)
    # Servers refuse such characters in HTTP/1.1. In HTTP/2 they may arrive, and would begin a field of their own here.
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise BadRequest("A header field of the request is not valid")
    if scope["http_version"][0] != "1" and not all(_NAME.fullmatch(name) for name, _ in fields.passing):
        raise BadRequest("The name of a header field is not valid")
    return head + b"\r\n\r\n"


def forwarded_fields(scope: Scope, fields: RequestFields, proxies: TrustedProxies) -> RawHeaders:
    """Return the fields that tell the upstream who has sent a request, and where to."""
    peer = scope["client"][0] if scope.get("client") else None
    sender = (peer or "unknown").encode()
    scheme: str = scope["scheme"]
    proto, host = _SCHEMES.get(scheme, scheme).encode(), fields.host
    has_any = fields.forwarded or fields.forwarded_proto or fields.forwarded_host or fields.told
    trusted = has_any and proxies.trusts(peer)
    if trusted:
        # A proxy in front of this one has seen the request of the client itself, perhaps over TLS.
        sender = b", ".join([*fields.forwarded, sender])
        proto, host = fields.forwarded_proto or proto, fields.forwarded_host or host
    found = [(b"x-forwarded-for", sender), (b"x-forwarded-proto", proto)]
    if host is not None:
        found.append((b"x-forwarded-host", host))
    return found + fields.told if trusted else found


def response_fields(headers: RawHeaders) -> RawHeaders:
    """Return the fields of a response that the client gets, without those of this hop."""
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name == b"connection" and value not in _ONE_CONNECTION:
            named |= _options(value)
    return [item for item in headers if item[0] not in _OWN_RESPONSE and item[0] not in named]


def has_dot_segments(path: str) -> bool:
    """
    Return whether a path has segments that mean another path, as in ``/a/../b``.

    Some servers take a backslash for a slash, and drop what follows a semicolon in a segment.
    """
    path = path.replace("\\", "/")
    return "/." in path and any(part.partition(";")[0] in (".", "..") for part in path.split("/"))


def shows_token(target: bytes) -> bool:
    """Return whether a path or query holds one of our credentials, as a client of Gemini may send it in ``?key=``."""
    return b"sg_" in target and any(is_well_formed(found.decode()) for found in _SECRET.findall(target))


def _options(value: bytes) -> frozenset[bytes]:
    """Return the names of the fields that a ``Connection`` field lists."""
    return frozenset(part.strip().lower() for part in value.split(b","))


def _without_token(credentials: RawHeaders) -> RawHeaders:
    """
    Return those credentials that hold neither the token nor another credential of ours. Such must not reach the
    upstream or its log.
    """
    if len(credentials) == 1 and credentials[0][0] == b"authorization":  # as nearly always
        words = credentials[0][1].split()
        if len(words) == 2 and words[0].lower() == b"bearer":
            return []  # it is the token
    values = {name.decode("latin-1"): value.decode("latin-1") for name, value in credentials}
    token = find_token(*(values.get(name) for name in TOKEN_FIELDS))

    def is_ours(value: bytes) -> bool:
        shown = (value.decode("latin-1").split() or [""])[-1]
        return bool(shown) and (shown == token or is_well_formed(shown))

    return [item for item in credentials if not is_ours(item[1])]
