"""Giving durable counters back to a store that is lost again meanwhile: trusted with all of them, or with none."""

from collections.abc import Callable

import pytest
import redis

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.projects.models import Token
from controlplane.operations.explain import live_counters
from controlplane.releases.publishing import publisher
from controlplane.traffic.usage import checkpoints
from controlplane.traffic.usage.models import Checkpoint
from enforcement import Limiter
from enforcement.store_calls.checkpoints import new_mark
from tests.controlplane.traffic.usage.conftest import checkpoint, remaining
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

QUOTA = 10


@pytest.fixture
def tokens(store) -> list[Token]:
    """Two tokens of one project, which have used 6 and 7 of ten requests a month, by the checkpoint too."""
    first = TokenFactory(policy=LimitFactory(quota=QUOTA, window_seconds=None, calendar="month").policy)
    tokens = [first, TokenFactory(project=first.project, policy=first.policy)]
    publisher.publish_all()
    with Limiter(store.url, timeout=1.0) as limiter:
        for token, cost in zip(tokens, (6, 7), strict=True):
            assert limiter.check(token.secret, costs=cost).source == "store"
    assert checkpoint().kept == 2
    return tokens


@pytest.fixture(params=["flushed", "killed"])
def lose(request, store, client_of_store) -> Callable[[], None]:
    """Empty the store: its data alone, or with the functions and all connections."""

    def kill_and_start() -> None:
        store.kill()
        store.start()

    return client_of_store.flushall if request.param == "flushed" else kill_and_start


def is_whole(client: redis.Redis, tag: str) -> bool:
    return checkpoints.missing(client, [tag]) == []


@pytest.mark.parametrize("place", [0, 1], ids=["between two counters", "behind the last"])
def test_a_store_that_is_lost_again_while_it_is_restored_is_not_trusted(
    tokens, lose, client_of_store, monkeypatch, place
):
    """Half of the counters, or none, and a member that says "all" would let the other half begin anew."""
    tag, run, calls = tokens[0].project_id, checkpoints._run, []
    for name in ("COUNTERS_AT_ONCE", "CALLS_AT_ONCE"):
        monkeypatch.setattr(checkpoints, name, 1)

    def lose_at(client, some):
        replies = run(client, some)
        if len(calls) == place:
            lose()
        calls.append(some)
        return replies

    lose()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_run", lose_at)
        try:
            checkpoints.restore(checkpoints.store.connection(), [tag])
        except redis.ConnectionError:
            assert len(calls) == place + 1  # it noticed by itself
    assert not is_whole(client_of_store, tag)

    assert checkpoint().restored == 2
    assert [remaining(token) for token in tokens] == [[4], [3]]
    assert client_of_store.smembers(f"sg:{{{tag}}}:changed") == {"whole"}


def test_it_is_trusted_with_the_last_counter(tokens, lose, client_of_store):
    """The control: nothing is lost while it is restored."""
    tag = tokens[0].project_id
    lose()
    assert not is_whole(client_of_store, tag)

    assert checkpoints.restore(checkpoints.store.connection(), [tag]) == 2

    assert is_whole(client_of_store, tag)


def test_two_that_restore_at_once_do_not_hinder_each_other(tokens, client_of_store, monkeypatch):
    """Worker and publisher: the one that is in the middle when the other ends finds its work done."""
    tag, run = tokens[0].project_id, checkpoints._run
    client_of_store.flushall()
    client = checkpoints.store.connection()

    def overtaken(client, some):
        monkeypatch.setattr(checkpoints, "_run", run)
        assert checkpoint().restored == 2
        return run(client, some)

    monkeypatch.setattr(checkpoints, "_run", overtaken)
    checkpoints.restore(client, [tag])

    assert is_whole(client_of_store, tag)
    assert [remaining(token) for token in tokens] == [[4], [3]]
    assert Checkpoint.objects.count() == 2


def test_the_mark_of_a_restore_that_was_killed_is_struck_out(tokens, client_of_store):
    """A set does not grow by what nobody comes back for."""
    key = f"sg:{{{tokens[0].project_id}}}:changed"
    client_of_store.flushall()
    client_of_store.sadd(key, new_mark(), new_mark())

    assert checkpoint().restored == 2

    assert client_of_store.smembers(key) == {"whole"}


def test_the_budget_of_a_team_is_given_back_and_reset(store, client_of_store):
    """The counter of a label is durable as any other, and a reset for one token of the team is remembered."""
    limit = LimitFactory(quota=QUOTA, window_seconds=None, calendar="month", partition_by=["label.team"])
    project = ProjectFactory(policy=limit.policy)
    one, two = TokenFactory.create_batch(2, project=project, labels={"team": "red"})
    publisher.publish_all()
    with Limiter(store.url, timeout=1.0) as limiter:
        limiter.check(one.secret, costs=6)
    checkpoint()

    def lose_and_restore() -> None:
        client_of_store.flushall()
        publisher.publish_all()
        checkpoint()

    lose_and_restore()
    assert remaining(two) == [4]
    with change(actor=Actor("ann", "admin"), reason="a test") as tx:
        live_counters.reset(tx, two, limit)
    lose_and_restore()
    assert [remaining(token) for token in (one, two)] == [[QUOTA], [QUOTA]]
