"""Entries that several drains share."""

import os

import pytest
import redis

from controlplane.traffic.stream.claims import ABANDONED_MS, GROUP, Claims
from enforcement.store_calls.acl import password_rules
from tests.controlplane.traffic.usage.conftest import USAGE

BEFORE_GROUPS = ["~*", "+@all", "-xreadgroup", "-xack", "-xautoclaim", "-xgroup"]


@pytest.fixture
def fill(client_of_store):
    """``fill(5)`` appends five entries and returns their ids."""
    return lambda number: [client_of_store.xadd(USAGE, {"id": str(n)}) for n in range(number)]


@pytest.fixture
def claims(client_of_store):
    """``claims(1)``: what a drain that begins in place 1 reads."""
    return lambda place: Claims(client_of_store, USAGE, place)


def ids(entries) -> list[str]:
    return [entry for entry, _ in entries]


def test_each_entry_is_given_to_one_drain(fill, claims):
    """The oldest first, and to the end."""
    entries = fill(5)
    first, second = claims(0), claims(1)

    assert [ids(some.take(2)) for some in (first, second, first)] == [entries[:2], entries[2:4], entries[4:]]
    assert [second.take(2), first.take(2)] == [[], []]


def test_a_stream_that_does_not_exist_has_no_entries(claims, client_of_store):
    """And none is created by reading it."""
    assert claims(0).take(5) == []
    assert not client_of_store.exists(USAGE)


def test_the_next_drain_in_a_place_takes_what_was_left_there(fill, claims):
    """A killed drain has neither counted nor deleted its entries, and others go on beside it."""
    entries = fill(5)
    claims(1).take(3)

    assert ids(claims(0).take(5)) == entries[3:]
    later = claims(1)
    assert (ids(later.take(2)), ids(later.take(2)), later.take(2)) == (entries[:2], entries[2:3], [])


def test_entries_of_a_place_that_is_gone_are_taken_after_a_minute(fill, claims, client_of_store):
    """As after SLUICEGATE_DRAINS was lowered."""
    entries = fill(3)
    claims(7).take(3)
    assert claims(0).take(3) == []

    client_of_store.xclaim(USAGE, GROUP, "7", 0, entries, idle=ABANDONED_MS + 1)

    assert ids(claims(0).take(3)) == entries


def test_one_run_takes_all_that_several_gone_places_left(fill, claims, client_of_store):
    """Also those behind entries that another drain works on."""
    entries = fill(60)
    claims(5).take(50)
    for place in range(6, 11):
        claims(place).take(2)
        client_of_store.xclaim(USAGE, GROUP, str(place), 0, entries[2 * place + 38 :][:2], idle=ABANDONED_MS + 1)

    first = claims(0)

    assert [ids(first.take(4)) for _ in range(4)] == [entries[50:54], entries[54:58], entries[58:], []]


def test_deleted_entries_are_gone_for_all(fill, claims, client_of_store):
    entries = fill(3)
    own = claims(0)

    own.delete(ids(own.take(2)))

    assert ids(client_of_store.xrange(USAGE)) == entries[2:]
    assert client_of_store.xpending(USAGE, GROUP)["pending"] == 0


def test_entries_that_the_stream_has_dropped_are_expected_no_longer(fill, claims, client_of_store):
    """A stream is capped, and a worker of an earlier version deletes whatever it has counted."""
    entries = fill(3)
    claims(0).take(2)
    client_of_store.xdel(USAGE, *entries[:2])

    assert ids(claims(0).take(3)) == entries[2:]
    assert client_of_store.xpending(USAGE, GROUP)["pending"] == 1


def test_a_store_that_was_emptied_is_read_again(fill, claims, client_of_store):
    """The group has gone with the stream."""
    own = claims(0)
    fill(1)
    own.take(1)
    client_of_store.flushall()
    entries = fill(2)

    assert ids(own.take(5)) == entries


def test_an_account_without_the_right_to_use_groups_reads_all_in_one_place(fill, store, client_of_store):
    """It was made by an earlier version, and its usage does not wait for somebody to make it again."""
    password = os.urandom(8).hex()
    client_of_store.execute_command("ACL", "SETUSER", "earlier", "on", *BEFORE_GROUPS, *password_rules(password))
    address = store.url.replace("redis://", f"redis://earlier:{password}@")
    try:
        with redis.Redis.from_url(address, decode_responses=True, protocol=2) as client:
            entries = fill(3)
            assert Claims(client, USAGE, 1).take(5) == []
            own = Claims(client, USAGE, 0)
            assert ids(own.take(2)) == entries[:2]
            own.delete(entries[:2])
            assert ids(own.take(5)) == entries[2:]
    finally:
        client_of_store.execute_command("ACL", "DELUSER", "earlier")
