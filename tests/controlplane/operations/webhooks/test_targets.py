"""Which URLs and addresses messages are sent to."""

import pytest

from controlplane.operations.webhooks.targets import Refused, check_address, networks, read_url


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://alerts.example", "alerts.example", 443, "/"),
        ("https://Alerts.Example:8443/a?b=c", "alerts.example", 8443, "/a?b=c"),
        ("https://alerts.example?b=c", "alerts.example", 443, "/?b=c"),
        ("https://192.0.2.1/", "192.0.2.1", 443, "/"),
        ("https://[2001:DB8::1]:1024/", "2001:db8::1", 1024, "/"),
        ("http://inside/", "inside", 80, "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
    ],
)
def test_a_url_is_read(url, host, port, path):
    target = read_url(url)

    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ftp://alerts.example/", "Must begin with https://"),
        ("//alerts.example/", "Must begin with https://"),
        ("https:alerts.example", "Must begin with https://"),
        ("", "Must begin with https://"),
        ("https://alerts.example/#top", "without a fragment"),
        ("https://user:password@alerts.example/", "Must not have a user name"),
        ("https://alerts.example@169.254.169.254/", "Must not have a user name"),
        ("https:///hook", "Must name a host"),
        ("https://a..example/", "Must name a host"),
        ("https://alerts.example./", "Must name a host"),
        (f"https://{'a' * 64}.example/", "Must name a host"),
        ("https://a%41.example/", "Must name a host"),
        ("https://alerts.example:/", "Must name a host"),
        ("https://alerts.example:0/", "Must have port"),
        ("https://alerts.example:22/", "Must have port"),
        ("https://alerts.example:65536/", "Must have port"),
        ("https://alerts.example:999999/", "Must name a host"),
        ("https://2130706433/", "Must write an address"),
        ("https://0x7f000001/", "Must write an address"),
        ("https://0x7f.0.0.0x1/", "Must write an address"),
        ("https://0177.0.0.1/", "Must write an address"),
        ("https://127.1/", "Must write an address"),
        ("https://127.0.0.01/", "Must write an address"),
        ("https://[::1%25eth0]/", "Must name a host"),
        ("https://[::12345]/", "Must write an address"),
        ("https://alerts.example\\@inside/", "Must have only characters"),
        ("https://alerts.example/a b", "Must have only characters"),
        ("https://alerts.example/\r\nHost: inside", "Must have only characters"),
        ("https://bücher.example/", "Must have only characters"),
        ("https://alerts.example/" + "x" * 500, "Must have at most 500"),
    ],
)
def test_a_wrong_url_is_refused_with_its_rule(url, rule):
    with pytest.raises(Refused, match=rule):
        read_url(url)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "255.255.255.255"),
        *("192.88.99.1", "2002:c058:6301::"),
        *("240.0.0.1", "198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "fec0::1"),
        "2001:0:7f00:1::80ff:fffe",
    ],
)
def test_nothing_is_sent_to_what_is_not_public(address):
    """In any form in which IPv6 carries an address of IPv4."""
    with pytest.raises(Refused, match="private, local, or reserved"):
        check_address(address, "https", ())


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_messages_are_sent_to_public_addresses(address):
    check_address(address, "https", ())


def test_a_network_is_allowed_by_the_setting_and_no_other():
    """Also without TLS there, and nowhere else."""
    allowed = networks(["10.1.0.0/16", "fd00::/8"])

    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        check_address(address, "http", allowed)
    for address in ("10.2.0.1", "64:ff9b::a01:203", "2002:a01:203::"):
        with pytest.raises(Refused, match="private"):
            check_address(address, "https", allowed)
    with pytest.raises(Refused, match="Must begin with https"):
        check_address("1.1.1.1", "http", allowed)
