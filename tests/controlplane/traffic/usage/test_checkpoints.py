"""Durable quotas: kept in SQL while they are counted, and given back to a store that lost them."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from math import inf
from struct import pack

import pytest
import redis
from django.db import connection
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.actions import rotate_token
from controlplane.objects.projects.models import Token
from controlplane.operations.explain import live_counters
from controlplane.operations.health.of_store import of_quotas
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.reconcile import reconcile
from controlplane.traffic.usage import checkpoints
from controlplane.traffic.usage.models import Checkpoint, CheckpointRun
from controlplane.traffic.usage.tasks import prune
from enforcement import Limit as LimitValue
from enforcement import Limiter
from enforcement.logs import RateLimitedLogger
from enforcement.store_calls import checkpoints as protocol
from tests.controlplane.traffic.usage.conftest import checkpoint, remaining
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "api")
QUOTA = 10


@pytest.fixture
def token(store) -> Token:
    """A token with ten requests a month, published."""
    token = TokenFactory(policy=LimitFactory(quota=QUOTA, window_seconds=None, calendar="month").policy)
    publisher.publish_all()
    return token


@pytest.fixture
def empty(store, client_of_store) -> Callable[[], None]:
    """Kill the store as a power cut does, and start it with nothing in it."""

    def kill_and_start() -> None:
        store.kill()
        store.start()
        assert not client_of_store.exists("sg:{doc}:documents")

    return kill_and_start


def spend(limiter: Limiter, token: Token, times: int) -> int:
    """Ask so often; return how often it was admitted."""
    return sum(limiter.check(token.secret).allowed for _ in range(times))


def checkpointed() -> list[int]:
    return list(Checkpoint.objects.order_by("pk").values_list("used", flat=True))


def counter_key(client_of_store) -> str:
    """The one durable counter's key."""
    row = Checkpoint.objects.get()
    return f"sg:{{{row.tag}}}:{row.counter}"


def dirty(client_of_store, tag: str) -> set[str]:
    return client_of_store.smembers(f"sg:{{{tag}}}:changed") - {"whole"}


def read(client_of_store, tag: str) -> tuple[str, list[protocol.CheckpointReading]]:
    """What a run does first."""
    names = sorted(dirty(client_of_store, tag))
    function, keys, arguments = protocol.read_call(checkpoints.store.keys(), tag, names)
    reply = client_of_store.fcall(function, len(keys), *keys, *arguments)
    return tag, list(protocol.readings(names, reply))


# Keeping.


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ({"calendar": "lifetime", "window_seconds": None}, [3]),
        ({"calendar": "year", "window_seconds": None}, [3]),
        ({"calendar": "week", "window_seconds": None}, [3]),
        ({"calendar": "day", "window_seconds": None, "time_zone": "Asia/Tokyo"}, [3]),
        ({"window_seconds": 86_400}, [3]),
        ({"calendar": "day", "window_seconds": None, "mode": "shadow"}, [3]),
        ({"calendar": "hour", "window_seconds": None}, []),
        ({"window_seconds": 86_399}, []),
        ({"algorithm": "sliding_window", "window_seconds": 604_800}, []),
    ],
)
def test_windows_of_a_day_or_longer_are_kept(store, limiter, shape, kept):
    """Of shorter ones a lost count is soon forgotten anyway."""
    token = TokenFactory(policy=LimitFactory(quota=QUOTA, **shape).policy)
    publisher.publish_all()
    spend(limiter, token, 3)

    checkpoint()

    assert checkpointed() == kept


def test_only_what_changed_is_read_again(token, limiter, client_of_store):
    """A run costs what was charged since the last one."""
    spend(limiter, token, 3)
    first, second = checkpoint(), checkpoint()
    spend(limiter, token, 2)
    third = checkpoint()

    assert [done.kept for done in (first, second, third)] == [1, 0, 1]
    assert checkpointed() == [5]
    assert dirty(client_of_store, token.project_id) == set()
    assert CheckpointRun.objects.get().counters == 1


def test_the_global_policy_is_kept(store, limiter):
    """Its counter is everybody's, and has a hash tag of its own."""
    LimitFactory(policy__everywhere=True, quota=QUOTA, window_seconds=None, calendar="day")
    token = TokenFactory()
    publisher.publish_all()
    spend(limiter, token, 4)

    checkpoint()

    assert list(Checkpoint.objects.values_list("tag", "used")) == [("global", 4)]


def test_each_value_of_a_partition_is_kept(store, limiter):
    """Nobody can name these counters but the store's own set."""
    limit = LimitFactory(quota=QUOTA, window_seconds=None, calendar="month", partition_by=["model"])
    token = TokenFactory(policy=limit.policy)
    publisher.publish_all()
    for model in ("a", "b", "b"):
        limiter.check(token.secret, attributes={"model": model})

    checkpoint()

    assert sorted(checkpointed()) == [1, 2]


def test_a_limit_in_code_is_the_programs_own(store, limiter, client_of_store):
    """No project holds it: it counts as ever, in a store that has no documents at all, and is not kept."""
    limit = LimitValue(name="month", quota=QUOTA, calendar="month")

    assert limiter.hit(limit, "user:1").source == "store"
    assert client_of_store.keys("*:changed") == []


@pytest.mark.parametrize("calendar", ["day", "month", "lifetime"])
def test_a_refund_is_kept(store, limiter, calendar):
    """The present value counts, also when it is less than before; whatever the window, it was not lost."""
    token = TokenFactory(policy=LimitFactory(quota=QUOTA, window_seconds=None, calendar=calendar).policy)
    publisher.publish_all()
    spend(limiter, token, 1)
    checkpoint()
    with limiter.admit(token.secret, costs=6) as admission:
        checkpoint()
        admission.cancel()

    assert checkpoint() == checkpoints.CheckpointResult(kept=1, complete=True)
    assert (checkpointed(), remaining(token)) == ([1], [QUOTA - 1])


def test_what_a_settlement_charges_more_is_kept(token, limiter):
    """Corrections go the same way as charges."""
    with limiter.admit(token.secret, costs=2) as admission:
        checkpoint()
        admission.settle(7)
    checkpoint()

    assert checkpointed() == [7]


def test_a_new_window_replaces_the_old_one(token, limiter):
    """However much the last month had."""
    spend(limiter, token, 1)
    checkpoint()
    Checkpoint.objects.update(used=QUOTA, ends_us=1, stamp=2**53 - 1)
    spend(limiter, token, 1)

    assert checkpoint().kept == 1
    assert checkpointed() == [2]


# Dying, and two at once.


# Within a run the place is given; what the store and the database were at when the process dies is chance.
@pytest.mark.proof(times=20)
@pytest.mark.parametrize("place", ["keep", "protocol.strike_call"], ids=["before the commit", "after it"])
def test_a_run_that_is_killed_loses_nothing(token, limiter, client_of_store, run_python, place):
    """Killed for good, between reading and committing or behind the commit; what comes meanwhile is kept too."""
    spend(limiter, token, 6)
    killed = run_python(
        "import os, signal\nfrom django.utils import timezone\nfrom controlplane.traffic.usage import checkpoints\n"
        f"checkpoints.{place} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.checkpoint(timezone.now())"
    )
    assert killed.wait(20) == -9
    assert checkpointed() == ([] if place == "keep" else [6])
    client_of_store.delete("sg:{lock}:checkpoint")
    with limiter.admit(token.secret, costs=4) as admission:
        assert (checkpoint().kept, checkpointed()) == (1, [10])
        admission.cancel()

    assert (checkpoint().kept, checkpointed()) == (1, [6])
    assert remaining(token) == [4]


def test_the_slower_of_two_runs_changes_nothing(token, limiter, client_of_store):
    """It has read before the other, and commits after it."""
    spend(limiter, token, 3)
    slow = read(client_of_store, token.project_id)
    spend(limiter, token, 2)
    checkpoint()

    checkpoints.keep([slow])

    assert checkpointed() == [5]


@pytest.mark.proof(times=20)
def test_runs_at_once_and_charges_meanwhile_end_in_the_truth(store, limiter):
    """Without the lock, which may fail: three runs over and over, while requests go on."""
    token = TokenFactory(policy=LimitFactory(quota=10**6, window_seconds=None, calendar="month").policy)
    publisher.publish_all()
    until = time.monotonic() + 1.0

    def run() -> None:
        while time.monotonic() < until:
            client = checkpoints.store.connection()
            for some in checkpoints._changed(client, [token.project_id]):
                checkpoints.keep_present(client, some, checkpoints.CheckpointResult())
        connection.close()

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run) for _ in range(3)]
        admitted = 0
        while time.monotonic() < until:
            admitted += spend(limiter, token, 10)
    checkpoint()

    assert [run.result() for run in runs] == [None] * 3
    assert checkpointed() == [admitted]
    assert remaining(token) == [10**6 - admitted]


# Giving back.


def test_a_store_that_restarts_empty_gets_its_counts_back(token, limiter, empty):
    """Before anything is published to it: nobody meets documents without counts."""
    spend(limiter, token, 7)
    checkpoint()
    empty()
    with pytest.raises(redis.exceptions.BusyLoadingError, match="restoring its counters"):
        remaining(token)

    reconcile()

    assert remaining(token) == [3]


def test_without_it_a_whole_quota_would_be_admitted_again(token, limiter, empty):
    """The control: nothing was kept."""
    spend(limiter, token, 7)
    empty()

    reconcile()

    assert remaining(token) == [QUOTA]


def test_a_project_that_lost_its_counters_alone_gets_them_back(token, limiter, client_of_store):
    """One primary of a cluster restarts empty; the documents are elsewhere, and there."""
    spend(limiter, token, 7)
    checkpoint()
    client_of_store.delete(counter_key(client_of_store), f"sg:{{{token.project_id}}}:changed")

    assert checkpoint().restored == 1
    assert remaining(token) == [3]


def test_a_counter_that_began_anew_does_not_replace_what_is_kept(token, limiter, client_of_store):
    """Somebody deleted it, or the store evicted it: it is raised to what it had."""
    spend(limiter, token, 7)
    checkpoint()
    client_of_store.delete(counter_key(client_of_store))
    spend(limiter, token, 2)

    assert checkpoint().restored == 1
    assert checkpointed() == [7]
    spend(limiter, token, 1)
    checkpoint()
    assert (checkpointed(), remaining(token)) == ([8], [2])


def test_a_store_that_was_set_back_is_raised_to_what_is_kept(token, limiter, client_of_store):
    """A back-up of the store has all documents, and old counts."""
    spend(limiter, token, 2)
    checkpoint()
    before = client_of_store.connection_pool.get_connection()
    backup = _raw(before, "DUMP", counter_key(client_of_store))
    spend(limiter, token, 5)
    checkpoint()
    _raw(before, "RESTORE", counter_key(client_of_store), 0, backup, "REPLACE")
    assert remaining(token) == [8]
    spend(limiter, token, 1)

    checkpoint()

    assert (checkpointed(), remaining(token)) == ([7], [3])


def _raw(connection, *command):
    connection.send_command(*command)
    return connection.read_response(disable_decoding=True)


def test_a_window_that_is_over_is_not_given_back(token, limiter, empty, client_of_store):
    """Nor does it live for ever in the store."""
    spend(limiter, token, 7)
    checkpoint()
    Checkpoint.objects.update(ends_us=int((time.time() - 1) * 1_000_000))
    empty()

    reconcile()

    assert remaining(token) == [QUOTA]
    assert prune() == 1


def test_what_is_given_back_ends_with_its_window(token, limiter, empty, client_of_store):
    """Every counter has a time to live."""
    spend(limiter, token, 7)
    checkpoint()
    ttl = client_of_store.pttl(counter_key(client_of_store))
    empty()

    reconcile()

    assert client_of_store.pttl(counter_key(client_of_store)) == pytest.approx(ttl, abs=30_000)


def test_a_changed_quota_meets_the_count_that_was_kept(token, limiter, empty):
    """The count is kept, not what was left."""
    spend(limiter, token, 7)
    checkpoint()
    Limit.objects.update(quota=8)
    empty()

    reconcile()

    assert remaining(token) == [1]


def test_a_request_leaves_a_long_restore_to_celery(token, limiter, empty, monkeypatch):
    """A person who saves a policy does not wait for all counters; the change is published with them."""
    spend(limiter, token, 7)
    checkpoint()
    empty()
    monkeypatch.setattr(publisher, "TOKENS_IN_A_REQUEST", 0)
    with change(actor=ANN) as tx:
        tx.created(TokenFactory())

    assert tx.revision is None
    publisher.publish_pending()
    assert remaining(token) == [3]


def test_what_stands_in_place_of_a_set_is_removed(token, limiter, client_of_store):
    """Whoever may count may write there; no project's quotas wait for it, nor does a publication."""
    spend(limiter, token, 7)
    checkpoint()
    client_of_store.set(f"sg:{{{token.project_id}}}:changed", "x")

    assert checkpoint().complete
    assert limiter.check(token.secret).source == "store"
    assert dirty(client_of_store, token.project_id) == {Checkpoint.objects.get().counter}


def test_a_scan_that_names_a_counter_twice_keeps_it_once():
    """It may; and whoever may count may write into the set."""
    assert checkpoints._counters(["f" * 26, "whole", "f" * 26, "x", "f" * 1000]) == ["f" * 26]


# Forgetting.


def test_a_reset_is_not_undone_by_a_restore(token, limiter, empty):
    """An operator gave the whole quota; the checkpoint of before must not take it away."""
    spend(limiter, token, 7)
    checkpoint()
    with change(actor=ANN, reason="a gift") as tx:
        done = live_counters.reset(tx, token)
    assert done.count == 1
    empty()
    reconcile()

    assert remaining(token) == [QUOTA]


def test_a_reset_is_not_undone_by_a_run_that_read_before_it(token, limiter, client_of_store):
    """The run commits last, and knows less; what is charged after the reset is kept as ever."""
    spend(limiter, token, 7)
    slow = read(client_of_store, token.project_id)
    with change(actor=ANN, reason="a gift") as tx:
        live_counters.reset(tx, token)

    checkpoints.keep([slow])

    assert checkpointed() == [0]
    spend(limiter, token, 2)
    checkpoint()
    assert (checkpointed(), remaining(token)) == ([2], [8])


def test_a_rotated_token_begins_with_its_own_count(token, limiter, empty):
    """Its counters are its own; those of the old one stay what they were."""
    spend(limiter, token, 7)
    checkpoint()
    with change(actor=ANN) as tx:
        issued, _ = rotate_token(tx, token, overlap_seconds=3600)
    empty()
    reconcile()

    assert (remaining(token), remaining(issued)) == ([3], [QUOTA])


def test_a_deleted_project_leaves_nothing(token, limiter, client_of_store):
    """Neither rows nor the set in the store."""
    spend(limiter, token, 7)
    checkpoint()
    tag = token.project_id
    with change(actor=ANN) as tx:
        tx.delete(token.project)

    assert prune() == 1
    assert not Checkpoint.objects.exists()
    assert client_of_store.exists(f"sg:{{{tag}}}:changed") == 0


def test_counts_that_never_end_are_kept_as_long_as_the_store_keeps_them(store, limiter):
    """A token's lifetime quota may rest for years."""
    token = TokenFactory(policy=LimitFactory(quota=QUOTA, window_seconds=None, calendar="lifetime").policy)
    publisher.publish_all()
    spend(limiter, token, 1)
    checkpoint()
    now = timezone.now()

    assert checkpoints.prune(now + timedelta(days=3640)) == 0
    assert checkpoints.prune(now + timedelta(days=3660)) == 1


# Telling.


def told() -> list[str]:
    """What the admin's first page says of saved quotas."""
    return [one.fault for one in of_quotas(timezone.now())]


def test_the_first_page_says_whether_quotas_are_kept(token, limiter):
    """Nothing runs, then it does, then it stopped a minute ago."""
    assert told() == ["Quotas were never saved"]
    spend(limiter, token, 1)
    checkpoint()
    assert told() == []
    CheckpointRun.objects.update(at=timezone.now() - timedelta(seconds=61))
    assert told() == ["Quotas are not saved"]


def test_without_durable_limits_nothing_is_said_of_them(store):
    """An alarm that means nothing is no alarm."""
    LimitFactory(window_seconds=3600)

    assert told() == []


def test_their_age_is_a_metric(token, limiter, client):
    """For an alert at sixty seconds."""
    before = client.get("/metrics").content.decode()
    spend(limiter, token, 1)
    checkpoint()
    CheckpointRun.objects.update(at=timezone.now() - timedelta(seconds=40))
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").content.decode().splitlines())

    assert "checkpoint" not in before
    assert float(lines["sluicegate_checkpoint_age_seconds"]) == pytest.approx(40, abs=5)
    assert float(lines["sluicegate_checkpointed_counters"]) == 1


@pytest.mark.parametrize("spoilt", ["earlier", "member", "end"])
def test_what_a_project_writes_below_its_tag_keeps_no_other_out(token, store, client_of_store, spoilt):
    """Its account of the store may write there: the counters of others are kept, and everything is published."""
    other = ProjectFactory()
    scope, counter = f"sg:{{{other.pk}}}:", "c:" + "0" * 24
    checkpoint()
    if spoilt == "earlier":
        client_of_store.set(f"{scope}dirty", "x")
    elif spoilt == "member":
        client_of_store.set(f"{scope}c:" + "\0" * 24, pack(">ddd", 1, 0, 1))
        client_of_store.sadd(f"{scope}changed", "c:" + "\0" * 24)
    else:
        client_of_store.set(f"{scope}{counter}", pack(">10d", 1, 2**52, 2, 0, 4, 4, 6, 7, 5, 5))
        client_of_store.sadd(f"{scope}changed", counter)
        checkpoint()
        client_of_store.set(f"{scope}{counter}", pack(">10d", 1, inf, 2, 3, 2**52, 4, 6, 7, 5, 5))
    if spoilt != "member":
        client_of_store.unlink(f"{scope}changed")
    with Limiter(store.url, timeout=5.0) as limiter:
        spend(limiter, token, 3)

    assert checkpoint().complete
    assert Checkpoint.objects.get(tag=token.project_id).used == 3
    assert publisher.publish_all()


def test_a_set_of_changed_counters_that_is_spoilt_again_and_again_keeps_no_other_out(
    token, store, client_of_store, monkeypatch
):
    """An account of a project writes there faster than a run repairs it."""
    other, usual = ProjectFactory(), checkpoints.missing

    def spoil(*given):
        found = usual(*given)
        client_of_store.set(f"sg:{{{other.pk}}}:changed", "x")
        return found

    monkeypatch.setattr(checkpoints, "missing", spoil)
    with Limiter(store.url, timeout=5.0) as limiter:
        spend(limiter, token, 3)

    assert checkpoint().complete
    assert checkpointed() == [3]
    assert publisher.publish_all()


def test_many_names_of_a_project_keep_no_other_counter_waiting(token, limiter, client_of_store, monkeypatch, caplog):
    """Its account of the store may add any number: each run reads some of them, in turn with those of others."""
    monkeypatch.setattr(checkpoints, "COUNTERS_AT_ONCE", 10)
    monkeypatch.setattr(checkpoints, "MOST_READS", 2)
    monkeypatch.setattr(checkpoints, "often", RateLimitedLogger(logging.getLogger("controlplane")))
    other = ProjectFactory()
    checkpoint()
    key = f"sg:{{{other.pk}}}:changed"
    client_of_store.sadd(key, *(f"c:{n:024x}" for n in range(1_000)), *(f"junk-{n}" for n in range(1_000)))
    spend(limiter, token, 3)

    before = client_of_store.scard(key)
    assert checkpoint().complete
    assert (checkpointed(), dirty(client_of_store, token.project_id)) == ([3], set())
    assert 1_000 < client_of_store.scard(key) < before
    assert f"so many changed counters of {other.pk}" in caplog.text


def test_a_set_that_is_spoilt_again_and_again_is_said_once(token, limiter, client_of_store, monkeypatch, caplog):
    """Each run restores the counters of its project. One line says so, and how many more there were."""
    seconds = iter([0.0, 1.0, 2.0, 3.0, 1_000.0])
    quiet = RateLimitedLogger(logging.getLogger("controlplane"), clock=lambda: next(seconds), seconds=600)
    spend(limiter, token, 3)
    checkpoint()
    monkeypatch.setattr(checkpoints, "often", quiet)
    for _ in range(5):
        client_of_store.unlink(f"sg:{{{token.project_id}}}:changed")
        checkpoint()

    said = [record.getMessage() for record in caplog.records if "were restored" in record.getMessage()]
    assert [len(said), "3 similar warnings" in said[-1]] == [2, True]
