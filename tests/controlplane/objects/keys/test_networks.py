import pytest

from controlplane.objects.keys.networks import MAX_NETWORKS, beyond, contain, normal


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (["192.0.2.0/24"], ["192.0.2.0/24"]),
        (["192.0.2.7"], ["192.0.2.7/32"]),
        (["2001:DB8:0::/32", "2001:db8::/32"], ["2001:db8::/32"]),
        (["0.0.0.0/0", "::/0"], ["0.0.0.0/0", "::/0"]),
    ],
)
def test_a_network_has_one_spelling(written, kept):
    """A list is kept in its order, each network once."""
    assert normal(written) == kept


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ([], "Must be null or a list of 1 to 32 networks, got []."),
        ("192.0.2.0/24", "Must be null or a list of 1 to 32 networks, got '192.0.2.0/24'."),
        (["10.0.0.1/32"] * (MAX_NETWORKS + 1), "Must be null or a list of 1 to 32 networks"),
        (["192.0.2.1/24"], "Must begin at the first address of the network, as in 192.0.2.0/24, got '192.0.2.1/24'."),
        (["::ffff:192.0.2.0/120"], "Must have IPv4 addresses in the form of IPv4"),
        *(
            ([text], "Must be networks such as 192.0.2.0/24 or 2001:db8::/32, got")
            for text in ("", "office", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/255.255.255.0", "fe80::%eth0/64", "1/8")
        ),
        *(([value], "Must be networks such as") for value in (1, None, ["192.0.2.0/24"], True, "192.0.2.0/24\n")),
    ],
)
def test_what_is_no_network_is_refused(written, rule):
    """The message has the rule and the value. An empty list is neither nowhere nor everywhere."""
    with pytest.raises(ValueError, match=r"^Must") as refused:
        normal(written)

    assert str(refused.value).startswith(rule)


@pytest.mark.parametrize(
    ("address", "inside"),
    [("192.0.2.255", True), ("192.0.3.0", False), ("2001:db8::1", True), ("2001:db9::1", False), (None, False)],
)
def test_a_network_contains_its_addresses_only(address, inside):
    """An address that is unknown lies in none."""
    assert contain(["192.0.2.0/24", "2001:db8::/32"], address) is inside


def test_an_empty_list_contains_no_address():
    """Whatever has emptied it, it never means everywhere."""
    assert not contain([], "192.0.2.1")


@pytest.mark.parametrize(
    ("networks", "outside"),
    [
        (["10.1.0.0/16"], []),
        (["192.0.2.0/24"], []),  # covered by the two halves together
        (["192.0.0.0/16", "10.0.0.0/8"], ["192.0.0.0/16"]),
        (["::/0"], ["::/0"]),
    ],
)
def test_networks_that_reach_beyond_others_are_named(networks, outside):
    """A network is within others only if each of its addresses is, of the same version of IP."""
    assert beyond(networks, ["10.0.0.0/8", "192.0.2.0/25", "192.0.2.128/25"]) == outside
