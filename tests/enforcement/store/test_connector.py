"""The kinds of stores behind one interface, and how a call follows the redirections of a cluster."""

import pytest

from enforcement.store.breaker import CALLS_JUDGED
from enforcement.store.cluster.connection import MAX_REDIRECTS, after_failure, drive
from enforcement.store.cluster.slot_map import SlotMap
from enforcement.store.connector import ClusterStore, SentinelStore, SingleStore, connector_of
from enforcement.store.errors import Redirected, StoreError
from enforcement.store.topology import Topology

FIRST, SECOND, THIRD, FOURTH = ("n1", 1), ("n2", 2), ("n3", 3), ("n4", 4)


@pytest.fixture
def routes():
    return SlotMap(Topology.parse("redis+cluster://n1:1"), 0.1)


def redirected(target, *, asking=False):
    return Redirected(7, target, asking=asking)


def call(routes, first, outcomes, **options):
    """Fail at the first node, then have the outcomes in turn; return the reply and where it was sent."""
    sent = []

    def send(node, asking):
        sent.append((node.host_port, asking))
        outcome = outcomes.pop(0)
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    settings = {"respects_breakers": True, "counts": True, **options}
    return drive(after_failure(routes, routes._node(FIRST), first, **settings), send), sent


def test_the_url_decides_which_store_it_is():
    """One server, the primary of sentinels, a cluster: none of them is connected to."""
    assert type(connector_of("redis://a/0", 0.1)) is SingleStore
    assert type(connector_of("redis+sentinel://a/store", 0.1)) is SentinelStore
    assert type(connector_of("redis+cluster://a", 0.1)) is ClusterStore


def test_one_failed_call_after_another_opens_the_breaker_of_a_single_store_alone():
    """On a cluster each node counts its own failures: the breaker of the whole stays closed."""
    single, cluster = connector_of("redis://a/0", 0.1), connector_of("redis+cluster://a", 0.1)
    for store in (single, cluster):
        for _ in range(5):
            store.failed(StoreError("timeout"))

    assert (single.breaker.open, cluster.breaker.open) == (True, False)
    assert (single.outages(), cluster.outages()) == ((1, 1), (0, 0))


def test_a_moved_slot_is_remembered_and_one_on_its_way_is_not(routes):
    """MOVED corrects the table of slots; ASK concerns the one call."""
    reply, sent = call(routes, redirected(SECOND), [redirected(THIRD, asking=True), b"OK"])

    assert (reply, sent) == (b"OK", [(SECOND, False), (THIRD, True)])
    assert routes.owners[7].host_port == SECOND


def test_a_redirection_without_a_host_leads_to_the_host_that_sent_it(routes):
    """Nodes that do not know their own name send it so."""
    assert call(routes, redirected(("", 9)), [b"OK"]) == (b"OK", [(("n1", 9), False)])


def test_a_call_that_is_sent_around_ends(routes):
    """After the last redirection that is followed it fails, and was executed nowhere."""
    sent = [redirected(THIRD), redirected(FOURTH)]
    assert len(sent) == MAX_REDIRECTS
    with pytest.raises(StoreError, match="too many redirections") as caught:
        call(routes, redirected(SECOND), sent)

    assert not caught.value.executed


def test_failures_and_successes_count_for_the_node_that_was_called(routes):
    """A redirection is no failure; a call that only failed by itself is none either."""
    second = routes._node(SECOND)
    for _ in range(2):
        with pytest.raises(StoreError, match="timeout"):
            call(routes, redirected(SECOND), [StoreError("timeout")])
    with pytest.raises(StoreError, match="reply"):
        call(routes, redirected(SECOND), [StoreError("reply", away=False)])
    assert (routes._node(FIRST).breaker.failures, second.breaker.failures) == (0, 2)

    call(routes, redirected(SECOND), [b"OK"], counts=False)
    assert second.breaker.failures == 2
    for _ in range(CALLS_JUDGED):
        call(routes, redirected(SECOND), [b"OK"])
    assert second.breaker.failures == 0


def test_nothing_is_sent_to_a_node_that_is_away_unless_that_is_wanted(routes):
    """What replays to nodes that are coming back does not look at breakers."""
    routes._node(SECOND).breaker.trip("timeout")
    with pytest.raises(StoreError, match="away: n2:2"):
        call(routes, redirected(SECOND), [])

    assert call(routes, redirected(SECOND), [b"OK"], respects_breakers=False)[0] == b"OK"
