"""The networks from which a management key may be used."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any

MAX_NETWORKS = 32
MAPPED = IPv6Network("::ffff:0:0/96")
EXAMPLES = "such as 192.0.2.0/24 or 2001:db8::/32"


def normal(networks: Any) -> list[str]:
    """
    Return the networks in their one spelling, each once, or raise ValueError.

    Args:
        networks: CIDR blocks or single addresses, of both versions of IP.
    Raises:
        ValueError: This is no list of 1 to MAX_NETWORKS networks. Without any, it would be unclear whether the key may
            be used from nowhere or from everywhere.
    """
    if not isinstance(networks, list) or not 1 <= len(networks) <= MAX_NETWORKS:
        raise ValueError(f"Must be null or a list of 1 to {MAX_NETWORKS} networks, got {_shown(networks)}.")
    return list(dict.fromkeys(str(_network(text)) for text in networks))


def contain(networks: Any, address: str | None) -> bool:
    """
    Return whether an address lies in one of the networks. An unknown one, which is None, lies in none.

    Raises:
        ValueError: Another program has written what no key may have.
    """
    allowed = normal(networks) if networks != [] else []  # a list that was emptied by hand allows nobody
    if address is None:
        return False
    ip = ip_address(address)
    return any(ip in ip_network(network) for network in allowed)


def as_stored(networks: Any) -> list[str] | None:
    """Return stored networks for people to read, also those that another program has written. None is everywhere."""
    if networks is None:
        return None
    return [str(network) for network in networks] if isinstance(networks, list) else [str(networks)]


def beyond(networks: Iterable[str], bounds: Iterable[str]) -> list[str]:
    """Return the networks of which a part lies outside of all the *bounds*."""
    wholes = [*_whole(bounds, IPv4Network), *_whole(bounds, IPv6Network)]
    return [text for text in networks if not any(_lies_in(ip_network(text), whole) for whole in wholes)]


def _whole(bounds: Iterable[str], kind: type) -> Iterator[Any]:
    """Return the networks of one version, of which neighbours are joined."""
    return collapse_addresses(network for network in map(ip_network, bounds) if isinstance(network, kind))


def _lies_in(network: Any, whole: Any) -> bool:
    return network.version == whole.version and network.subnet_of(whole)


def _network(text: Any) -> IPv4Network | IPv6Network:
    address, slash, length = text.partition("/") if isinstance(text, str) else ("", "", "")
    # Other spellings of a mask and the zone of an address mean something else to other programs.
    if not address or "%" in address or (slash and not (length.isascii() and length.isdigit())):
        raise ValueError(f"Must be networks {EXAMPLES}, got {_shown(text)}.")
    try:
        network = ip_network(text, strict=False)
        exact = not slash or ip_address(address) == network.network_address
    except ValueError as exc:
        raise ValueError(f"Must be networks {EXAMPLES}, got {_shown(text)}.") from exc
    if not exact:
        raise ValueError(f"Must begin at the first address of the network, as in {network}, got {_shown(text)}.")
    if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):
        raise ValueError(f"Must have IPv4 addresses in the form of IPv4, got {_shown(text)}.")
    return network


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
