"""Find the address that a request came from, through the proxies that are trusted to say so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

logger = logging.getLogger("sluicegate.doors")

Address = IPv4Address | IPv6Address


Bits = tuple[int, int]
"""How many bits of an IPv4 and of an IPv6 address tell clients apart."""
USUAL_BITS: Final[Bits] = (32, 64)


def network_of(ip: str, bits: Bits = USUAL_BITS) -> str:
    """
    Return an IPv4 address itself, the /64 network of an IPv6 address, or any other string unchanged.

    A client has all of its /64, and may use another address of it for each request.

    Args:
        bits: Others than 32 and 64 give networks of another size.
    """
    address = _address(ip)
    if address is None:
        return ip
    length = bits[address.version == 6]
    return str(address) if length == address.max_prefixlen else str(ip_network((address, length), strict=False))


class TrustedProxies:
    """
    Find the address of a client behind trusted proxies.

    Args:
        networks: CIDR blocks or addresses whose ``X-Forwarded-For`` is trusted. ``"unix"`` trusts every peer that
            connects over a Unix socket. If empty, the peer is the client.
    Raises:
        ValueError: A network is not valid.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        names = [name.strip() for name in networks if name.strip()]
        self._unix = "unix" in names
        self._told = False
        self._networks = [ip_network(name) for name in names if name != "unix"]

    def client(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """
        Return the address of the client, the right-most that is not a trusted proxy's, or None if it is not known.

        Everything to the left of an untrusted address, or of a string that is not an address, may be forged.

        Args:
            peer: Address of the peer; None over a Unix socket, which has no addresses.
            forwarded: Values of all ``X-Forwarded-For`` fields, in order.
        """
        if not self.trusts(peer):
            if forwarded and not (self._networks or self._told):
                self._tell(peer)
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

    def named(self, peer: str | None, values: Sequence[str]) -> str | None:
        """
        Return the address in a header field that a trusted proxy sets, or that of the peer.

        Args:
            peer: As in :meth:`client`.
            values: The values of the field. What is not one address counts for nothing.
        """
        found = _address(values[0]) if len(values) == 1 and self.trusts(peer) else None
        return self.client(peer, ()) if found is None else str(found)

    def _tell(self, peer: str | None) -> None:
        """Log that a forwarded address is ignored, once, if the peer has a private address, as proxies have."""
        address = _address(peer or "")
        if address is not None and address.is_private:
            self._told = True
            logger.warning(
                "X-Forwarded-For is ignored, because no proxy is trusted. If %s is one, name it in the trusted "
                "proxies, as all of its clients count as one.",
                address,
            )

    def trusts(self, peer: str | None) -> bool:
        """Return whether the forwarding headers of a peer are trusted."""
        if peer is None:
            return self._unix
        if not self._networks:
            return False
        address = _address(peer)
        return address is not None and self._contains(address)

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _address(text: str) -> Address | None:
    """
    Return the IP address in a string such as ``1.2.3.4:5678`` or ``[2001:db8::1]:5678``, or None if there is none.
    """
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
