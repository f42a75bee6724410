"""A store that answers and refuses: full, read-only, busy, without functions, forbidden. Real servers, each mended."""

import asyncio
import logging
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from enforcement import Limit, Limiter, aio
from enforcement.embedded import ValkeyServer
from enforcement.failover.probe import DecisionProbe
from enforcement.model.keys import Keys
from enforcement.model.tokens import mint
from enforcement.store import absence
from enforcement.store.client import connect, load_library
from enforcement.store.cluster.monitor import ClusterMonitor
from enforcement.store_calls.acl import enforcer
from tests.enforcement.stalls import Stalls
from tests.enforcement.topologies import execute
from tests.enforcement.world import World, eventually, fixed
from tests.scale import scale

# What a process was at when the store begins to refuse is chance, so that a proof does it more than once.
pytestmark = pytest.mark.proof(times=3)

LIMITS = [
    Limit(name="hour", quota=10_000, window_seconds=3_600),
    Limit(name="day", quota=20_000, window_seconds=86_400),
]
NOBODY = ("127.0.0.1", 1)
# Four probes come in this time, and who believes the store too soon is seen to lose it again.
OUTAGE_SECONDS = scale(0.5, 0.8)


@pytest.fixture
def store(tmp_path):
    """Give a server that may be spoilt, and an administrator's connection that was there before."""
    with ValkeyServer(tmp_path / "store", persistent=False, config={"save": "3600 1000000"}) as server:
        admin = connect(server.url, timeout=5.0)
        load_library(admin)
        admin.execute_command("ACL SETUSER", "enforcer", "on", ">secret", *enforcer(Keys()))
        yield Store(server, admin)
        server.kill()
        admin.close()


class Store:
    """One server, the ways to spoil it, and the ways back."""

    def __init__(self, server: ValkeyServer, admin: Redis) -> None:
        self.server, self.admin = server, admin
        self.url = f"redis://enforcer:secret@127.0.0.1:{server.port}/0"

    def connections(self) -> int:
        """Return how often somebody has connected, in vain or not."""
        stats = self.admin.info("stats")
        return stats["total_connections_received"] + stats["rejected_connections"]

    def spoil(self, how: str) -> None:
        getattr(self, how)()

    def full(self):
        self.admin.config_set("maxmemory", 1)

    def not_full(self):
        self.admin.config_set("maxmemory", 0)

    def readonly(self):
        self.admin.replicaof(*NOBODY)

    def not_readonly(self):
        self.admin.replicaof("NO", "ONE")

    def lonely(self):
        self.admin.config_set("min-replicas-to-write", 1)

    def not_lonely(self):
        self.admin.config_set("min-replicas-to-write", 0)

    def unsaved(self):
        shutil.rmtree(self.server.directory)
        self.admin.bgsave()
        assert eventually(lambda: self.admin.info("persistence")["rdb_last_bgsave_status"] == "err")

    def not_unsaved(self):
        self.server.directory.mkdir()
        self.admin.config_set("stop-writes-on-bgsave-error", "no")

    def busy(self):
        self.admin.config_set("busy-reply-threshold", 5)
        self._script = threading.Thread(target=self._loop)
        self._script.start()

    def _loop(self):
        with connect(self.server.url, timeout=30.0) as client, suppress(RedisError):
            client.eval("while true do end", 0)

    def not_busy(self):
        self.admin.script_kill()
        self._script.join()

    def flushed(self):
        self.admin.function_flush()

    def not_flushed(self):
        load_library(self.admin)

    def stripped(self):
        self.admin.execute_command("ACL SETUSER", "enforcer", "-fcall")

    def not_stripped(self):
        self.admin.execute_command("ACL SETUSER", "enforcer", "reset", "on", ">secret", *enforcer(Keys()))

    def mute(self):
        """It may call, and write no counter."""
        self.admin.execute_command("ACL SETUSER", "enforcer", "-set", "-setrange")

    not_mute = not_stripped

    def off(self):
        self.admin.execute_command("ACL SETUSER", "enforcer", "off")
        self.admin.execute_command("CLIENT KILL USER enforcer")

    not_off = not_stripped

    def rotated(self):
        self.admin.execute_command("ACL SETUSER", "enforcer", "resetpass", ">another")
        self.admin.execute_command("CLIENT KILL USER enforcer")

    not_rotated = not_stripped

    def crowded(self):
        """Its only place is the administrator's. Nobody can take one between the two commands."""
        self.admin.config_set("maxclients", 1)
        self.admin.execute_command("CLIENT KILL USER enforcer")

    def not_crowded(self):
        self.admin.config_set("maxclients", 10_000)

    def paused(self):
        self.admin.client_pause(int(1_000 * OUTAGE_SECONDS) + 300, all=True)

    def not_paused(self):
        self.admin.ping()  # is paused too

    def paused_for_writes(self):
        self.admin.client_pause(60_000, all=False)

    def not_paused_for_writes(self):
        self.admin.client_unpause()


# How it is spoilt, and the cause that has to be told.
REFUSALS = {
    "full": "oom",
    "readonly": "readonly",
    "lonely": "noreplicas",
    "unsaved": "misconf",
    "busy": "busy",
    "flushed": "library",
    "stripped": "auth",
    "mute": "auth",
    "off": "auth",
    "rotated": "auth",
    "crowded": "maxclients",
    "paused": "timeout",
    "paused_for_writes": "timeout",
}
MUTE = ("busy", "paused")
"""Spoilt so that an administrator is answered nothing either."""


@pytest.mark.parametrize(("how", "cause"), REFUSALS.items(), ids=REFUSALS)
def test_a_refusal_degrades_and_heals(store, caplog, how, cause):
    """
    Decisions come at once and name the cause; the breaker opens once and stays so; nobody reconnects in a loop; one
    line a cause is logged. Once mended the store is used within 5 s, and has each permit of both limits admitted then.
    """
    caplog.set_level(logging.WARNING, "sluicegate.failover")
    limiter = Limiter(store.url, timeout=0.1)
    admitted = sum(limiter.hit(LIMITS, "k").allowed for _ in range(20))
    assert eventually(lambda: limiter.stats().fleet_size >= 1)
    before = store.connections()

    store.spoil(how)
    decisions, times, end = [], [], time.monotonic() + OUTAGE_SECONDS
    with Stalls() as stalls:
        while time.monotonic() < end:
            began = time.monotonic()
            decisions.append(limiter.hit(LIMITS, "k"))
            times.append((began, time.monotonic()))
            time.sleep(0.005)
        during = limiter.stats()
    after = None if how in MUTE else store.connections()
    store.spoil(f"not_{how}")

    degraded = [decision for decision in decisions if decision.degraded]
    # ACL rules and configuration take effect at once, a script in a loop after its threshold.
    assert len(degraded) > 0.9 * len(decisions)
    assert during.store_failures.get(cause, 0) >= 1, during.store_failures
    assert {decision.cause for decision in degraded} <= {"", "connection", cause}
    assert sum(bool(decision.cause) for decision in degraded) <= 5
    assert max(stalls.without(*took) for took in times) < 0.1 + 0.2
    assert during.servers_away == 1
    assert during.outages == 1
    assert after is None or after - before <= 20
    assert eventually(lambda: limiter.hit(LIMITS, "k", 0).source == "store")
    lines = [record.message for record in caplog.records if "is away" in record.message]
    assert len(lines) == len(set(lines)) > 0

    admitted += sum(decision.allowed for decision in decisions)
    ambiguous = sum(decision.ambiguous for decision in decisions)
    # A pause looks like a slow store, and then executes nothing for those who left meanwhile.
    never = sum(it.allowed and it.ambiguous and it.cause == "timeout" for it in decisions)
    used = [LIMITS[i].quota - state.remaining for i, state in enumerate(limiter.peek(LIMITS, "k").limits)]
    assert used[0] == used[1]
    assert admitted - never <= used[0] <= admitted + ambiguous - never
    limiter.close()


@pytest.mark.proof(times=1)
def test_a_full_store_has_a_place_for_decisions_when_it_is_back(store):
    """
    Every place is taken, some of them by this process' own background: it lets go of what it does not need for
    deciding, and so the store is used again at once, and lost once and not every time it is tried.
    """
    limiter = Limiter(store.url, timeout=2.0)  # what is refused is told at once
    limiter.start(0.0)
    # The background has all its connections: it reads the log when it has done everything else once.
    assert eventually(lambda: "xread" in {row["cmd"] for row in store.admin.client_list()}, 60)
    assert eventually(limiter._engine.health.examine)
    assert limiter.hit(LIMITS, "k").source == "store"
    host, port = limiter._pipe._idle[0].sock.getsockname()
    store.admin.client_kill_filter(addr=f"{host}:{port}")
    store.admin.config_set("maxclients", len(store.admin.client_list()))
    decisions = [limiter.hit(LIMITS, "k")]

    def is_back():
        decisions.append(limiter.hit(LIMITS, "k"))
        return decisions[-1].source == "store"

    assert eventually(is_back, 60)
    for _ in range(scale(100, 400)):
        assert is_back()
        time.sleep(0.005)

    assert sum(bool(decision.cause) for decision in decisions) <= 5
    assert limiter.stats().outages == 1
    limiter.close()


@pytest.mark.parametrize("how", ["full", "flushed", "rotated"])
async def test_tasks_meet_the_same_refusals(store, how):
    """Fifty that wait together are decided at once, each here; then by the store, which has what they admitted."""
    limiter = aio.Limiter(store.url, timeout=0.2)
    admitted = int((await limiter.hit(LIMITS, "tasks")).allowed)
    store.spoil(how)
    decisions = await asyncio.gather(*(limiter.hit(LIMITS, "tasks") for _ in range(50)))
    assert {decision.source for decision in decisions} == {"fallback"}
    assert {decision.cause for decision in decisions} <= {"", "connection", REFUSALS[how]}

    store.spoil(f"not_{how}")
    async with asyncio.timeout(5):
        while (await limiter.hit(LIMITS, "tasks", 0)).source != "store" or limiter._engine.fallback.owes():
            await asyncio.sleep(0.01)
    admitted += sum(decision.allowed for decision in decisions)
    used = 10_000 - (await limiter.peek(LIMITS, "tasks")).limits[0].remaining
    assert admitted <= used <= admitted + sum(decision.ambiguous for decision in decisions)
    await limiter.close()


@pytest.mark.usefixtures("own_pace")
@pytest.mark.parametrize(("steady_seconds", "patient"), [(absence.STEADY_SECONDS, True), (-1.0, False)])
def test_control_without_a_trial_the_store_is_taken_back_in_vain(store, monkeypatch, steady_seconds, patient):
    """
    PING and heartbeats go well: who believes them returns, fails, and returns, as often as it probes; and if it forgot
    each time that it was lost a moment ago, it would be ten times a second.
    """
    monkeypatch.setattr(DecisionProbe, "error", lambda probe: None)
    monkeypatch.setattr(absence, "STEADY_SECONDS", steady_seconds)
    limiter = Limiter(store.url, timeout=0.1)
    # What is owed would be a trial too: this limit admits nothing alone, so nothing is.
    limit = Limit(name="deny", quota=100, window_seconds=3_600, on_store_failure="deny")
    limiter.hit(limit, "k")
    store.spoil("mute")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        limiter.hit(limit, "k")
        time.sleep(0.005)

    assert limiter.stats().outages > 1
    assert (limiter.stats().outages <= 8) is patient
    limiter.close()


@pytest.mark.parametrize("tried", [True, False], ids=["", "control"])
def test_a_node_of_a_cluster_is_taken_back_only_when_it_decides(cluster, monkeypatch, tried):
    """One of three is full, and says that all is well: its keys stay without it, once lost. Control: it is believed."""
    if not tried:
        monkeypatch.setattr(ClusterMonitor, "_decides", lambda monitor, node: True)
    limit = Limit(name="deny", quota=100, window_seconds=3_600, on_store_failure="deny")
    load_library(connect(cluster.url))
    limiter = Limiter(cluster.url, timeout=0.1)
    for number in range(9):
        limiter.hit(limit, f"k{number}")
    execute(cluster.primaries[0], "CONFIG", "SET", "maxmemory", "1")
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        sources = [limiter.hit(limit, f"k{number}").source for number in range(9)]
        time.sleep(0.01)
    stats = limiter.stats()
    limiter.close()

    assert 0 < sources.count("fallback") < 9 or not tried
    assert stats.store_failures["oom"] >= 3
    assert (stats.outages == 1) is tried


@pytest.mark.parametrize("known", [False, True])
def test_documents_of_a_full_store_can_be_read(store, known):
    """A proxy may start while the store takes no writes: it knows every policy and token, and decides alone."""
    world = World(store.server.url)
    secret = world.everything(fixed(7))
    store.spoil("full")
    with pytest.raises(OutOfMemoryError):
        store.admin.set("x", "y")
    with Limiter(store.url, timeout=0.1) as limiter:
        assert not known or eventually(lambda: limiter.state == "degraded")
        decision = limiter.check(secret)

    assert (decision.allowed, decision.source, decision.limit.quota) == (True, "fallback", 7)


def test_documents_are_asked_for_no_longer_when_a_full_store_freezes(store):
    """Reading is tried while writes are refused; whoever finds that it fails too tells the others."""
    world = World(store.server.url)
    world.everything(fixed(7))
    store.spoil("full")
    with Limiter(store.url, timeout=0.1) as limiter:
        assert eventually(lambda: limiter.state == "degraded")
        store.server.freeze()
        spans = [seconds(lambda: limiter.check(mint("live"))) for _ in range(6)]
        store.server.thaw()

    assert spans[0] > 0.09
    assert sorted(spans)[3] < 0.01


def seconds(act) -> float:
    """Return how long something takes."""
    before = time.monotonic()
    act()
    return time.monotonic() - before


@pytest.mark.parametrize("command", ["FUNCTION FLUSH", "FUNCTION DELETE sluicegate_3", "SCRIPT FLUSH"])
def test_functions_lost_under_load_cost_no_decision(store, command):
    """
    An account that may load them does so within the call, so four threads never notice.

    Every call that met a loss ends before the next loss. A call that meets two of them is decided without the store.
    """
    limiter = Limiter(store.server.url, timeout=1.0)
    sources: dict[str, list[str]] = {f"t{number}": [] for number in range(4)}
    stop = threading.Event()

    def execute(key: str) -> None:
        while not stop.is_set():
            sources[key].append(limiter.hit(LIMITS, key).source)

    threads = [threading.Thread(target=execute, args=(key,)) for key in sources]
    for thread in threads:
        thread.start()
    for _ in range(10):
        with suppress(RedisError):  # a deletion may find it gone already
            store.admin.execute_command(command)
        seen = {key: len(found) for key, found in sources.items()}
        assert eventually(lambda seen=seen: all(len(sources[key]) >= count + 2 for key, count in seen.items()))
    stop.set()
    for thread in threads:
        thread.join()

    assert min(map(len, sources.values())) >= 20
    assert {source for found in sources.values() for source in found} == {"store"}
    limiter.close()


def test_a_wrong_typed_counter_heals_and_charges_nothing_in_part(store):
    """
    Its request is decided here, and the store charges none of its limits; what was admitted is charged afterwards to
    the one that can be. Without the key all is as before.
    """
    limiter = Limiter(store.server.url, timeout=1.0)
    limiter.hit(LIMITS, "typed")
    _, day = limiter._engine.planner.plan_in_code(LIMITS, "typed").keys
    store.admin.delete(day)
    store.admin.rpush(day, "x")

    refusing = [replace(limit, on_store_failure="deny") for limit in LIMITS]
    denied = [limiter.hit(refusing, "typed") for _ in range(5)]
    assert {(it.allowed, it.source, it.cause) for it in denied} == {(False, "fallback", "reply")}
    assert limiter.peek(LIMITS[0], "typed").remaining == 10_000 - 1

    spoilt = [limiter.hit(LIMITS, "typed") for _ in range(5)]
    assert {(it.allowed, it.source) for it in spoilt} == {(True, "fallback")}
    # Before the store is asked, what is owed to the counter is replayed. A process that may not do so yet does not ask.
    assert "reply" in {it.cause for it in spoilt} <= {"reply", ""}
    assert limiter.hit(LIMITS, "another").source == "store"
    assert limiter.stats().servers_away == 0
    assert eventually(lambda: limiter.peek(LIMITS[0], "typed").remaining == 10_000 - 6)

    store.admin.delete(day)
    assert eventually(lambda: limiter.hit(LIMITS, "typed", 0).source == "store")  # what is owed comes first
    limiter.close()


@pytest.mark.usefixtures("no_documents")
def test_a_counter_that_stays_wrong_typed_admits_one_share(store):
    """However often what was admitted is paid, or given up, meanwhile: this process' share is a single one."""
    limit = Limit(name="few", quota=10, window_seconds=86_400)
    with Limiter(store.server.url, timeout=1.0) as limiter:
        limiter.hit(limit, "typed", 4)
        key = limiter._engine.planner.plan_in_code(limit, "typed").keys[0]
        store.admin.delete(key)
        store.admin.rpush(key, "x")

        assert sum(limiter.hit(limit, "typed").allowed for _ in range(9)) == 6
        assert eventually(lambda: limiter.stats().journal_dropped == 6)
        limiter._engine.health.settle()
        assert not limiter.hit(limit, "typed").allowed


def test_a_wrong_typed_counter_costs_nobody_else_what_he_is_owed(store):
    """A batch fails as a whole if one counter is unreadable. Its charges are then replayed one by one."""
    world, secrets = World(store.server.url), [mint("live") for _ in range(3)]
    documents = {"global": {"schema": 1, "policy": None}, **world.policy("api", fixed(100)), **world.project()}
    world.publish(documents, {secret: world.token("pol_api") for secret in secrets})
    with Limiter(store.server.url, timeout=0.2) as limiter:
        assert eventually(lambda: {limiter.check(secret, 0).source for secret in secrets} == {"store"})
        keys = [limiter.find_plan(secret, None).keys[0] for secret in secrets]
        assert {limiter.check(secret).source for secret in secrets} == {"store"}
        store.server.freeze()
        assert eventually(lambda: limiter.check(secrets[0], 0) and limiter.stats().servers_away == 1)
        asked = [limiter.check(secret) for secret in secrets for _ in range(5)]
        with store.admin.pipeline(transaction=True) as pipe:
            pipe.delete(keys[1])
            pipe.rpush(keys[1], "x")
            threading.Timer(0.05, store.server.thaw).start()
            pipe.execute()

        assert {(decision.source, decision.allowed) for decision in asked} == {("fallback", True)}
        assert eventually(lambda: limiter.check(secrets[0], 0).source == "store")
        assert eventually(lambda: not limiter._engine.fallback.owes())
        assert [limiter.check(secrets[n], 0).remaining for n in (0, 2)] == [100 - 6] * 2
        assert limiter.check(secrets[1], 0).cause == "reply"
        assert limiter.stats().journal_dropped == 5


@pytest.mark.usefixtures("no_documents")
def test_a_call_that_was_held_back_for_a_failover_was_not_executed(own_server):
    """
    A primary that hands over holds back writes, and answers them when it is a replica. Nothing is in doubt then, and
    the end of the blocking read of the change log is no strange reply.
    """
    with Redis(port=own_server.port) as admin, Limiter(own_server.url, timeout=5.0) as limiter:
        limiter.hit(LIMITS, "held")
        answers = []
        calling = threading.Thread(target=lambda: answers.append(limiter.hit(LIMITS, "held")))
        admin.execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
        calling.start()
        assert eventually(lambda: admin.info("clients")["blocked_clients"] >= 2)  # one follows the documents
        admin.replicaof(*NOBODY)
        admin.client_unpause()
        calling.join()
        admin.replicaof("NO", "ONE")

        [decision] = answers
        assert (decision.allowed, decision.cause, decision.ambiguous) == (True, "readonly", False)
        assert "reply" not in limiter.stats().store_failures
        assert eventually(lambda: limiter.peek(LIMITS, "held").limits[0].remaining == 10_000 - 2)
