"""The address of a store: without passwords, its hosts, and whether others can listen on the way."""

import pytest

from enforcement.doctor import endpoint


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("rediss://user:s%40cret@host:1/0?ssl_cert_reqs=none", "rediss://user:***@host:1/0?ssl_cert_reqs=none"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?password=***&db=1"),
        ("redis+sentinel://u:secret@a,b:2/s?sentinel_password=secret", "redis+sentinel://u:***@a,b:2/s?sentinel_password=***"),
        ("redis://user@host/0", "redis://user:***@host/0"),
        ("unix:///run/valkey.sock?db=0", "unix:///run/valkey.sock?db=0"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_passwords(url, shown):
    """In every part of the address."""
    assert endpoint.shown(url) == shown


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("redis://host:6379/0", ["host"]),
        ("redis://u:p@[::1]:6379/0", ["::1"]),
        ("redis+sentinel://u:p@a:26379,b,[fd00::1]:3/service/0", ["a", "b", "fd00::1"]),
        ("redis:///0", ["localhost"]),
        ("unix:///run/valkey.sock", []),
    ],
)
def test_the_hosts_of_an_address_are_found(url, hosts):
    """One, several, none."""
    assert endpoint.hosts(url) == hosts


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://127.0.0.1:6379/0", "ok"),
        ("redis://localhost:6379/0", "ok"),
        ("unix:///run/valkey.sock", "ok"),
        ("redis://192.0.2.7:6379/0", "warning"),
        ("redis+sentinel://127.0.0.1,192.0.2.7/s", "warning"),
        ("rediss://192.0.2.7:6379/0", "ok"),
        ("rediss://192.0.2.7:6379/0?ssl_cert_reqs=none", "warning"),
    ],
)
def test_a_way_on_which_others_can_listen_is_warned_of(url, level):
    """Another machine without TLS, or TLS that trusts everybody."""
    assert [finding.level for finding in endpoint.transport(url)] == [level]
