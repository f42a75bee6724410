"""An upgrade from 0.2.0: counters have other names, and durable ones keep their counts."""

import struct
import time

import pytest
from django.db import connection
from django.utils import timezone

from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from controlplane.traffic.usage import checkpoints
from controlplane.traffic.usage.models import Checkpoint
from enforcement import Limiter
from enforcement.model.keys import Keys
from enforcement.store_calls.checkpoints import readings
from tests import earlier
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

# A process of the control plane, which carries the counters over when another one does.
CARRIER = """
import django, redis, sys
django.setup()
from controlplane.core import store
from controlplane.traffic.usage import checkpoints
client = store.connection()
client.incr("ready")
while not client.get("go"):
    pass
checkpoints.restore(client, checkpoints.all_tags())
"""
HERE, THERE = {"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}
DURABLE = {"algorithm": "fixed_window", "window_seconds": None}
KEYS = Keys()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Give the library of 0.2.0."""
    return earlier.library_of_0_2(tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def token(store, client_of_store) -> Token:
    """A token under limits of its own, of its project and of everybody, in a store as 0.2.0 had it."""
    everybody = PolicyFactory(is_global=True)
    LimitFactory(policy=everybody, name="all", quota=100, calendar="year", **DURABLE)
    shared = LimitFactory(name="ever", quota=50, calendar="lifetime", **DURABLE).policy
    own = LimitFactory(name="month", quota=20, calendar="month", **DURABLE).policy
    LimitFactory(policy=own, name="each", quota=10, calendar="month", partition_by=["ip"], **DURABLE)
    token = TokenFactory(project=ProjectFactory(policy=shared), policy=own)
    publisher.publish_all()
    for tag in checkpoints.all_tags():
        client_of_store.unlink(KEYS.dirty(tag))
        client_of_store.sadd(KEYS.earlier_dirty(tag), "whole")
    return token


def spend(library, store, token: Token, *calls) -> None:
    """Charge costs by a process of 0.2.0."""
    decided = earlier.check(library, store.url, *[(token.secret, cost, attributes) for cost, attributes in calls])
    assert {(allowed, source) for allowed, source, _ in decided} == {(True, "store")}


def save_as_0_2_did(client) -> None:
    """Bring the changed counters into SQL, by the functions of 0.2.0."""
    for tag in checkpoints.all_tags():
        names = sorted(client.smembers(KEYS.earlier_dirty(tag)) - {"whole"})
        if names:
            keys = [KEYS.scope(tag) + name for name in names]
            found = list(readings(names, client.fcall("sg2_checkpoint", len(keys), *keys, "")))
            checkpoints.keep([(tag, found)])
            client.srem(KEYS.earlier_dirty(tag), *names)


def remaining(limiter: Limiter, token: Token, attributes: dict[str, str]) -> dict[str, int]:
    """Charge one request, and return what each limit has left."""
    decision = limiter.check(token.secret, attributes=attributes)
    assert decision.source == "store"
    return {state.name: state.remaining for state in decision.limits}


def test_counts_that_only_the_store_has_are_kept(store, client_of_store, token, limiter, library):
    """Of the token, the project and everybody, and of each value of an attribute."""
    spend(library, store, token, (3, HERE), (4, THERE))

    checkpoints.checkpoint(timezone.now())

    assert remaining(limiter, token, HERE) == {"all": 92, "ever": 42, "month": 12, "each": 6}
    assert remaining(limiter, token, THERE) == {"all": 91, "ever": 41, "month": 11, "each": 5}


def test_counts_go_on_from_the_store_where_sql_is_older(store, client_of_store, token, limiter, library):
    """SQL has what 0.2.0 checkpointed last, and the store what was charged after that."""
    spend(library, store, token, (3, HERE))
    save_as_0_2_did(client_of_store)
    spend(library, store, token, (4, HERE))

    checkpoints.checkpoint(timezone.now())

    assert remaining(limiter, token, HERE) == {"all": 92, "ever": 42, "month": 12, "each": 2}


def test_counts_that_only_sql_has_are_kept(store, client_of_store, token, limiter, library):
    """The store loses everything between the last checkpoint of 0.2.0 and the first of this version."""
    spend(library, store, token, (3, HERE))
    save_as_0_2_did(client_of_store)
    client_of_store.flushall()

    publisher.publish_all()

    assert remaining(limiter, token, HERE) == {"all": 96, "ever": 46, "month": 16, "each": 6}


def test_a_later_loss_gives_back_the_later_count(store, client_of_store, token, limiter, library):
    """And not the one that 0.2.0 left."""
    spend(library, store, token, (3, HERE))
    checkpoints.checkpoint(timezone.now())
    remaining(limiter, token, HERE)
    remaining(limiter, token, HERE)
    checkpoints.checkpoint(timezone.now())
    client_of_store.flushall()

    publisher.publish_all()

    with Limiter(store.url, timeout=2.0) as another:
        assert remaining(another, token, HERE) == {"all": 94, "ever": 44, "month": 14, "each": 4}


@pytest.mark.skipif(connection.vendor == "sqlite", reason="writes to SQLite come one after the other")
def test_several_processes_carry_the_same_counters_over_at_once(client_of_store, start):
    """As the tasks that publish and that save counters do after an upgrade. Some failed, by a deadlock."""
    tag, counters, ends_us = ProjectFactory().pk, 4_000, float(int(time.time()) + 864_000) * 1e6
    with client_of_store.pipeline(transaction=False) as pipe:
        for number in range(counters):
            name = f"f{number:022d}"
            pipe.set(KEYS.scope(tag) + name, struct.pack(">ddd", number % 50 + 1, ends_us, ends_us - 1e6))
            pipe.sadd(KEYS.earlier_dirty(tag), name)
        pipe.sadd(KEYS.earlier_dirty(tag), "whole")
        pipe.execute()
    carriers = [start("-c", CARRIER) for _ in range(3)]
    while int(client_of_store.get("ready") or 0) < len(carriers):
        time.sleep(0.01)

    client_of_store.set("go", 1)

    assert [carrier.wait(60) for carrier in carriers] == [0, 0, 0]
    assert Checkpoint.objects.filter(tag=tag).count() == counters


def test_what_0_2_counted_after_a_step_back_is_kept_by_the_next_upgrade(
    store, client_of_store, token, limiter, library
):
    """As "Back to 0.2" in operating.md says: the back-up is restored, and the counters of this version are deleted."""
    spend(library, store, token, (3, HERE))
    checkpoints.checkpoint(timezone.now())
    remaining(limiter, token, HERE)
    limiter.close()
    Checkpoint.objects.all().delete()
    for pattern in ("sg:{*}:changed", "sg:{*}:c:*"):
        client_of_store.unlink(*client_of_store.scan_iter(pattern))
    spend(library, store, token, (4, HERE))

    checkpoints.checkpoint(timezone.now())

    with Limiter(store.url, timeout=2.0) as another:
        assert remaining(another, token, HERE) == {"all": 92, "ever": 42, "month": 12, "each": 2}
