"""
Which addresses a message may be sent to.

People choose the URLs, and this server sends from inside a network. So a URL is read strictly, and only public
addresses are connected to, besides the networks in the setting ALERT_NETWORKS.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 500
HTTPS_PORT = 443
# Below it are the services of the system, such as mail, of which none receives webhooks.
FIRST_FREE_PORT = 1024
PORTS = {"https": HTTPS_PORT, "http": 80}
# printable ASCII without the characters that parsers of URLs disagree on
_URL = re.compile(r"(?P<scheme>https?)://(?P<place>[^/?#]*)(?P<path>[/?][^#]*)?")
_FORBIDDEN = re.compile(r"[^!-~]|[\\\"<>^`{|}]")
_PLACE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# Host names that some resolvers read as an IPv4 address: decimal, octal and hexadecimal.
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
# A service of a cloud that only its machines reach, at an address that counts as public.
_METADATA = (ip_address("168.63.129.16"),)
# Once relays between IPv4 and IPv6, by which whoever runs one there reaches inside (RFC 7526).
_RELAYS = ip_network("192.88.99.0/24")
# Networks of IPv6 whose addresses hold one of IPv4, with the number of bits behind it.
_CARRIERS = ((ip_network("64:ff9b::/96"), 0), (ip_network("2002::/16"), 80), (ip_network("::/96"), 0))
_TEREDO = ip_network("2001::/32")


class Refused(ValueError):
    """Raised for an address that nothing is sent to. The message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """
    A URL that was read.

    Attributes:
        host: A name or an address, without brackets.
        path: The path with the query, at least "/".
    """

    scheme: str
    host: str
    port: int
    path: str


def read_url(url: str) -> Target:
    """Return the parts of a URL, or raise Refused. No name is resolved."""
    if len(url) > MAX_URL_LENGTH:
        raise Refused(f"Must have at most {MAX_URL_LENGTH} characters, got {len(url)}.")
    if _FORBIDDEN.search(url):
        raise Refused("Must have only characters that a URL may have. Encode all others as %20 and so on.")
    matched = _URL.fullmatch(url)
    if not matched:
        raise Refused("Must begin with https:// (or http:// inside an allowed network), without a fragment.")
    if "@" in matched["place"]:
        raise Refused("Must not have a user name or a password. Receivers verify the signature instead.")
    place = _PLACE.fullmatch(matched["place"])
    if not place:
        raise Refused("Must name a host, as in https://alerts.example/hook. Write other than ASCII letters as xn--.")
    scheme, path = matched["scheme"], matched["path"] or "/"
    port = int(place["port"]) if place["port"] else PORTS[scheme]
    if not (port in PORTS.values() or FIRST_FREE_PORT <= port <= 65_535):
        raise Refused(f"Must have port 80, 443, or one from {FIRST_FREE_PORT} to 65535, got {port}.")
    return Target(scheme, _host(place["host"], place["v6"]), port, path if path.startswith("/") else f"/{path}")


def _host(name: str | None, v6: str | None) -> str:
    """Return the host in its usual form, or raise Refused."""
    try:
        if name is None:
            return str(IPv6Address(v6))
        labels = name.split(".")
        if _NUMERIC.fullmatch(labels[-1]):
            return str(IPv4Address(name))
    except ValueError:
        raise Refused("Must write an address as 192.0.2.1 or [2001:db8::1].") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Refused("Must name a host, as in https://alerts.example/hook.")
    return name.lower()


def networks(given: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks of a setting, or raise ValueError for one that is none."""
    return tuple(ip_network(one) for one in given)


def check_address(text: str, scheme: str, allowed: Sequence[Network]) -> None:
    """Do nothing if messages may be sent to an address, else raise Refused. *allowed* are further networks."""
    address = ip_address(text.partition("%")[0])  # without the zone of a link-local one
    forms = list(_forms(address))
    # The last form is the address itself.
    if any(forms[-1] in network for network in allowed if network.version == forms[-1].version):
        return
    if scheme == "http":
        raise Refused("Must begin with https://, because only addresses in SLUICEGATE_ALERT_NETWORKS may do without.")
    for form in forms:
        local = form.is_multicast or form.is_reserved or getattr(form, "is_site_local", False)
        if local or not form.is_global or form in _METADATA or form in _RELAYS:
            rule = "is private, local, or reserved. An operator may allow its network in SLUICEGATE_ALERT_NETWORKS."
            raise Refused(f"The address {address} {rule}")


def check_written(target: Target, allowed: Sequence[Network]) -> None:
    """Raise Refused if a URL has an address in place of a name, to which nothing is sent. No name is resolved."""
    try:
        ip_address(target.host)
    except ValueError:
        return
    check_address(target.host, target.scheme, allowed)


def _forms(address: Address) -> Iterator[Address]:
    """
    Yield an address and those of IPv4 that it holds, to which a network may translate it.

    An address that only maps one of IPv4 is that one, and nothing else.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            yield address.ipv4_mapped
            return
        for network, shift in _CARRIERS:
            if address in network and int(address) > 1:
                yield IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
        if address in _TEREDO and address.teredo:
            yield from address.teredo
    yield address
