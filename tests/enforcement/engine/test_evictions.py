"""A store that evicts keys: nobody loses counters without a word."""

import itertools
import json

import pytest

from enforcement import Limit, Limiter
from enforcement.doctor import fleet, server
from enforcement.embedded import ValkeyServer
from enforcement.model.keys import Keys
from enforcement.store.client import connect
from tests.enforcement.world import World, eventually

pytestmark = pytest.mark.usefixtures("no_documents", "quick_duties")

LIMIT = Limit(name="rate", quota=5, window_seconds=3_600)


@pytest.fixture
def full():
    """Give a server that evicts what expires first, and has no room left."""
    with ValkeyServer(persistent=False, config={"maxmemory-policy": "volatile-ttl"}) as running:
        yield running
        running.kill()


def flood(client):
    """Lower the limit to what is used, and write what expires until keys are evicted."""
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 500_000)
    numbers = itertools.count()
    while not client.info("stats")["evicted_keys"]:
        with client.pipeline(transaction=False) as pipe:
            for number in itertools.islice(numbers, 1_000):
                pipe.set(f"other:{number}", "x" * 200, ex=100_000)
            pipe.execute()


def reported(client):
    """Return what the doctor says of the instances."""
    return next(fleet.instances(client, Keys()))


def test_an_instance_reports_that_its_store_evicts(full, monkeypatch, caplog):
    """It is degraded, with one line in its log; the doctor says it, and what to do. Before, nothing was reported."""
    monkeypatch.setattr("enforcement.engine.agent.EVICTION_SECONDS", 0.05)
    world = World(full.url)
    with Limiter(full.url, timeout=1.0, instance="proxy-1") as limiter:
        assert limiter.hit(LIMIT, "k").source == "store"
        world.everything()
        assert eventually(lambda: limiter.stats().state == "ok")
        heartbeat = lambda: json.loads(world.client.get(world.keys.instance("proxy-1")) or "{}")  # noqa: E731
        flood(world.client)

        assert eventually(lambda: limiter.stats().state == "degraded")
        assert eventually(lambda: heartbeat().get("problems") == ["evicting"])
        assert heartbeat()["state"] == "degraded"
        assert heartbeat()["degraded_since_us"] > 0
        assert limiter.hit(LIMIT, "other").source == "store"  # it goes on counting there
        # Heartbeats expire first, so the store may have evicted the last one a moment ago.
        found = []
        assert eventually(lambda: found.append(reported(world.client)) or found[-1].level == "problem")
        eviction, _ = server.memory(world.client)
    assert caplog.text.count("The store evicts keys") == 1
    assert "set maxmemory-policy to noeviction" in found[-1].advice
    assert (eviction.level, "keys evicted since the server started" in eviction.value) == ("problem", True)


def test_evictions_of_before_are_no_news(full, monkeypatch):
    """A process that starts later compares with what it found. A server that restarted begins at 0 again."""
    client = connect(full.url)
    flood(client)
    client.config_set("maxmemory", 0)
    monkeypatch.setattr("enforcement.engine.agent.EVICTION_SECONDS", 0.01)
    with Limiter(full.url, timeout=1.0) as limiter:
        watch = limiter._engine.agent._duties
        assert eventually(lambda: all(duty.due_at > 0 for duty in watch))
        assert limiter.stats().state != "degraded"


def test_a_reply_that_cannot_be_read_fails_only_this_duty(full, monkeypatch, caplog):
    """The background thread goes on at once with the others. Before, it paused as after a defect."""
    monkeypatch.setattr("enforcement.engine.agent.EVICTION_SECONDS", 0.05)
    monkeypatch.setattr("enforcement.engine.evictions.Redis.info", lambda self, section: self.ping().get(section))
    with Limiter(full.url, timeout=1.0) as limiter:
        assert eventually(lambda: "The evictions failed 3 times in a row (InvalidResponse" in caplog.text)
        assert limiter.hit(LIMIT, "k").source == "store"
    assert "Unexpected error" not in caplog.text


def test_an_account_that_may_not_ask_asks_once(full, caplog):
    """As one of release 0.2: each refused command would add to the server's log of refusals."""
    client = connect(full.url)
    client.acl_setuser("old", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    with Limiter(full.url.replace("//", "//old:x@"), timeout=1.0) as limiter:
        assert eventually(lambda: client.acl_log())
        assert eventually(lambda: limiter.hit(LIMIT, "k").source == "store")
        watch = next(duty for duty in limiter._engine.agent._duties if duty.name == "evictions")
        watch.due_at = float("-inf")
        assert eventually(lambda: watch.due_at > 0)
    assert [entry["count"] for entry in client.acl_log()] == [1]
    assert caplog.text.count("The store refused the evictions") == 1
    assert "Update the accounts with manage.py store_acl --apply." in caplog.text
