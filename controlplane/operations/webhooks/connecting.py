"""
Send one request to an address that was checked.

The name is resolved once, and that address is connected to, so a name that means another address a moment later leads
nowhere else. Redirects are not followed, the body of the response is not read, and all of it takes at most some
seconds, however slowly the other side sends.
"""

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Timer
from time import monotonic
from typing import Any

from controlplane.operations.webhooks.targets import Network, Target, check_address, read_url

SECONDS = 10.0

Resolve = Callable[..., list[Any]]


class Unreachable(Exception):
    """Raised if there was no response. The message is a sentence without anything that the other side has sent."""


def post(
    url: str,
    headers: dict[str, str],
    body: bytes,
    *,
    allowed: Sequence[Network] = (),
    seconds: float = SECONDS,
    resolve: Resolve = socket.getaddrinfo,
) -> int:
    """
    Send a body to a URL, and return the status of the response.

    Args:
        allowed: Networks that are connected to besides public addresses.
    Raises:
        Refused: Nothing is sent to this URL, or to the address that its host has now.
        Unreachable: There was no response within *seconds*.
    """
    until = monotonic() + seconds
    target = read_url(url)
    addresses = _addresses(target, allowed, resolve)
    connection = _connect(target, addresses, until)
    cut: list[bool] = []
    guard = Timer(max(0.0, until - monotonic()), _cut, [connection, cut])
    guard.daemon = True
    guard.start()
    try:
        status = _exchange(target, connection, headers, body)
        if cut:  # which looks like the end of the header
            raise TimeoutError
        return status
    except (OSError, HTTPException) as exc:
        raise Unreachable(_late(seconds) if cut or isinstance(exc, TimeoutError) else _reason(exc)) from None
    finally:
        guard.cancel()
        connection.close()


def _addresses(target: Target, allowed: Sequence[Network], resolve: Resolve) -> list[tuple[int, Any]]:
    """Return the family and the socket address of each address of a host. If one is refused, none is used."""
    try:
        found = resolve(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unreachable("The name of the host cannot be resolved.") from None
    for _, _, _, _, address in found:
        check_address(address[0], target.scheme, allowed)
    return [(family, address) for family, _, _, _, address in found]


def _connect(target: Target, addresses: list[tuple[int, Any]], until: float) -> socket.socket:
    """Return a connection to the first of the addresses that answers, for https before its handshake."""
    for family, address in addresses:
        left = until - monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(left)
            connection.connect(address)
            if target.scheme == "https":
                context = ssl.create_default_context()
                return context.wrap_socket(connection, server_hostname=target.host, do_handshake_on_connect=False)
        except OSError:
            connection.close()
            continue
        return connection
    raise Unreachable("The host cannot be connected to.")


def _exchange(target: Target, connection: socket.socket, headers: dict[str, str], body: bytes) -> int:
    if isinstance(connection, ssl.SSLSocket):
        connection.do_handshake()
    kind = HTTPSConnection if target.scheme == "https" else HTTPConnection
    http = kind(target.host, target.port)
    http.sock = connection
    http.request("POST", target.path, body, {**headers, "Connection": "close"})
    with http.getresponse() as response:
        return response.status


def _cut(connection: socket.socket, cut: list[bool]) -> None:
    """End a connection at which another thread waits."""
    cut.append(True)
    with suppress(OSError):  # it may have ended by itself
        # Not the method of the TLS socket, which would drop its state while the other thread uses it.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _late(seconds: float) -> str:
    return f"There was no response within {seconds:g} seconds."


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "The certificate of the host is not valid."
    if isinstance(error, ssl.SSLError):
        return "The TLS connection failed."
    if isinstance(error, HTTPException) and not isinstance(error, ConnectionError):
        return "The response is not HTTP."
    return "The connection was closed before a response."
