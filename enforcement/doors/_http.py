"""
What every HTTP door does alike: find the token, name the request, spell the answer. Pure: no I/O, no framework.

Header names are written in the usual capitals; a door that must have them in lower case lowers them itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH
from enforcement.model.tokens import is_well_formed
from enforcement.plan.decision import Decision
from enforcement.plan.headers import LIST_FIELDS, presets

DEGRADED_FIELD: Final = "Sluicegate-Degraded"
"""Stands on every answer whose decision was made without the store, and names what made it."""

CLIENT_GONE: Final = 499
"""What charge_on sees where the client left before a response began; the number that nginx gave it."""

_CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})
_TOO_LONG: Final = {"path": 414, "method": 400}
_CHALLENGE: Final = 'Bearer realm="sluicegate"'

Header = tuple[str, str]
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response made by a door itself."""

    status: int
    headers: tuple[Header, ...] = ()
    body: bytes = b""

    @property
    def phrase(self) -> str:
        """The status line's words."""
        return HTTPStatus(self.status).phrase


class Refusal(Exception):
    """A request that no decision is made about; ``answer`` says why, ``code`` in a word."""

    def __init__(self, status: int, title: str, detail: str, code: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(detail)
        self.code = code
        body = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
        self.answer = problem_answer(body, headers)


def missing_token() -> Refusal:
    """Return the refusal of a request without a credential."""
    detail = "Send a token as 'Authorization: Bearer <token>' or 'X-API-Key: <token>'."
    return Refusal(401, "A token is required", detail, "missing_token", (("WWW-Authenticate", _CHALLENGE),))


def problem_answer(body: Mapping[str, object], headers: Iterable[Header] = ()) -> Answer:
    """Return an answer that carries a problem (RFC 9457); *body* holds its "status"."""
    data = json.dumps(body).encode()
    status = body["status"]
    assert isinstance(status, int)
    fixed = (("Content-Type", "application/problem+json"), ("Content-Length", str(len(data))))
    return Answer(status, (*fixed, *headers), data)


def denial(decision: Decision, preset: str) -> Answer:
    """Return the answer to a request that may not pass."""
    headers = added_headers(decision, preset)
    if decision.status == 401:
        headers.append(("WWW-Authenticate", f'{_CHALLENGE}, error="invalid_token"'))
    return problem_answer(decision.problem(), headers)


def added_headers(decision: Decision, preset: str) -> list[Header]:
    """Return what a decision adds to an answer, whoever makes that."""
    headers = list(decision.headers(preset).items())
    if decision.degraded:
        headers.append((DEGRADED_FIELD, decision.source))
    return headers


def joining(present: Iterable[str | bytes], added: Sequence[Header]) -> Sequence[Header]:
    """
    Return those of our fields that may join an application's own.

    Args:
        present: Names of the application's fields, in any case.
    Lists continue whatever list is there. A field that holds one value stays the application's: a second one would be
    noise, and one in its place might promise more than the application does.
    """
    for name, _ in added:
        if name not in LIST_FIELDS:
            break
    else:
        return added  # nearly always
    theirs = {(name.decode("latin-1") if isinstance(name, bytes) else name).lower() for name in present}
    return [header for header in added if header[0] in LIST_FIELDS or header[0].lower() not in theirs]


def check_preset(preset: str) -> str:
    """Return *preset* if decisions know it. Raises ValueError: at start, not at the first request."""
    presets(preset)
    return preset


def find_token(authorization: str | None, api_key: str | None) -> str | None:
    """
    Return a request's credential: the bearer token or the API key, of both the one that is well-formed.

    An upstream may want the other header for a credential of its own.
    """
    scheme, _, bearer = (authorization or "").partition(" ")
    candidates = [bearer.strip() if scheme.lower() == "bearer" else "", (api_key or "").strip()]
    found = [candidate for candidate in candidates if candidate]
    if len(found) > 1 and not is_well_formed(found[0]) and is_well_formed(found[1]):
        return found[1]
    return found[0] if found else None


class RequestAttributes(Mapping[str, str]):
    """
    A request as limits see it: ``method``, ``path``, ``ip``, what the application adds, and others on demand.

    ``header.x-team`` is looked up when a limit asks for it, so headers are neither listed nor counted here. Headers
    that hold credentials are never attributes. ``ip.net`` is worked out of ``ip``: see :func:`network_of`.

    Raises:
        Refusal: A value is longer than an attribute may be; cut short, it would name another request.
    """

    __slots__ = ("_header", "_values")

    def __init__(self, values: Mapping[str, str | None], header: Callable[[str], str | None]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._header = header
        for name, status in _TOO_LONG.items():
            _check_length(name, self._values.get(name, ""), status)

    def __getitem__(self, name: str) -> str:
        if name in self._values:
            return self._values[name]
        if name == "ip.net":
            return network_of(self._values["ip"])
        asked = name.removeprefix("header.")
        value = None if asked == name or asked in _CREDENTIALS else self._header(asked)
        if value is None:
            raise KeyError(name)
        return _check_length(name, value, 431)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def network_of(ip: str) -> str:
    """
    Return what an address should be counted by: an IPv4 address itself, of an IPv6 address its /64.

    A client has its whole /64 to itself, and may take another address of it for each request. Text that is no address
    stays what it is.
    """
    address = _address(ip)
    if address is None:
        return ip
    return str(address) if address.version == 4 else str(ip_network((address, 64), strict=False))


def _check_length(name: str, value: str, status: int) -> str:
    if len(value) > MAX_ATTRIBUTE_LENGTH:
        detail = f"{name} has {len(value)} characters; limits here look at it, and read at most {MAX_ATTRIBUTE_LENGTH}."
        raise Refusal(status, HTTPStatus(status).phrase, detail, "attribute_too_long")
    return value


class TrustedProxies:
    """
    Finds the client's address behind proxies of one's own.

    Args:
        networks: CIDR blocks or addresses whose ``X-Forwarded-For`` is believed; ``"unix"`` stands for whoever
            connects over a Unix socket. None: the peer is the client.
    Raises:
        ValueError: One of them is no network.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        names = [name.strip() for name in networks if name.strip()]
        self._unix = "unix" in names
        self._networks = [ip_network(name) for name in names if name != "unix"]

    def client(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """
        Return the right-most address that is not a trusted proxy's; None for an unknown peer.

        Args:
            peer: Address of the other end of the connection; None where there is none (a Unix socket).
            forwarded: Values of all ``X-Forwarded-For`` fields, in order.
        Everything left of an untrusted address, or of text that is no address, is the client's own invention.
        """
        if not self.trusts(peer):
            return peer if peer is None or ":" not in peer else str(_address(peer) or peer)
        found = _address(peer or "")
        for entry in reversed(",".join(forwarded).split(",")):
            address = _address(entry)
            if address is None:
                break
            found = address
            if not self._contains(address):
                break
        return None if found is None else str(found)

    def trusts(self, peer: str | None) -> bool:
        """Tell whether a peer's forwarding headers are believed."""
        if peer is None:
            return self._unix
        if not self._networks:
            return False
        address = _address(peer)
        return address is not None and self._contains(address)

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _address(text: str) -> Address | None:
    """Read an address as proxies write it: bare, ``1.2.3.4:5678`` or ``[2001:db8::1]:5678``."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(slots=True)
class Progress:
    """
    How far a response has come, so that its slot is free by the time the client can know that it is complete.

    A client that waits for one response before it sends the next request must never meet its own slot.
    """

    status: int | None = None
    _left: int | None = field(default=None)

    def begin(self, status: int, content_length: str | None) -> None:
        """Take note of the start of the response."""
        self.status = status
        self._left = int(content_length) if content_length and content_length.isdecimal() else None

    def ends_with(self, size: int) -> bool:
        """Tell whether *size* more bytes complete the announced body."""
        if self._left is None:
            return False
        self._left -= size
        return self._left <= 0 and size > 0
