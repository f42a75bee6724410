"""The address of the client behind proxies, and the network that it is counted by."""

from __future__ import annotations

import pytest

from enforcement.http.addresses import TrustedProxies
from enforcement.http.messages import (
    RequestAttributes,
)


def test_forwarded_address_is_not_believed_of_a_stranger() -> None:
    """A client that names an address of its choice is counted under its own."""
    assert TrustedProxies().client("203.0.113.9", ["198.51.100.1"]) == "203.0.113.9"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["6.6.6.6, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        (["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        (["6.6.6.6, "], "10.0.0.1"),
        ([], "10.0.0.1"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    ],
)
def test_right_most_address_that_is_not_trusted_is_the_client(forwarded: list[str], client: str) -> None:
    """Behind proxies of one's own, what they saw counts; what stands left of it is invented."""
    assert TrustedProxies(["10.0.0.0/8"]).client("10.0.0.1", forwarded) == client


def test_peer_on_a_unix_socket_is_trusted_by_name_only() -> None:
    """A socket file has no address: without trust, nobody knows the client."""
    assert TrustedProxies(["10.0.0.0/8"]).client(None, ["198.51.100.1"]) is None
    assert TrustedProxies(["unix"]).client(None, ["198.51.100.1"]) == "198.51.100.1"


def test_network_that_is_none_is_refused_at_start() -> None:
    """A typing error in the setting must not mean that nobody is trusted, or everybody."""
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/33"):
        TrustedProxies(["10.0.0.0/33"])


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_client_is_counted_by_its_network(ip: str, network: str) -> None:
    """Whatever address of its /64 it takes; an IPv4 client is counted by its address, however that is written."""
    attributes = RequestAttributes({"method": "GET", "path": "/", "ip": ip}, lambda name: None)

    assert attributes["ip.net"] == network
    assert attributes["ip"] == ip


def test_a_client_without_an_address_has_no_network() -> None:
    """A limit that counts by it does not fall on the request then."""
    assert "ip.net" not in RequestAttributes({"method": "GET", "path": "/", "ip": None}, lambda name: None)
