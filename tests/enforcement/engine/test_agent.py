"""The background thread against a real store: it follows, survives what it is sent, and comes back."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from enforcement.embedded import ValkeyServer
from enforcement.engine.agent import Agent
from enforcement.engine.duties import UsageDelivery
from enforcement.engine.heartbeat import Identity
from enforcement.lua import LIBRARY_NAME
from enforcement.model.documents import parse_token
from enforcement.model.strict_json import dumps
from enforcement.state.published import PublishedState
from enforcement.state.token_cache import TokenEntry
from enforcement.store.breaker import FAILURES_TO_OPEN
from enforcement.store.client import STORE_ERRORS, connect
from enforcement.usage.counts import MAX_ROWS_PER_BATCH, MAX_UNDELIVERED, UsageLog
from tests.enforcement.published import DIGEST, KEYS, policy, project, publish, publish_quota, state, token

DEADLINE_SECONDS = 10.0


class Switch:
    """
    The limiter's hooks: a breaker, and a list of what the agent reported.

    Args:
        url: The store that decides as long as it answers. Empty: it always does.
    """

    def __init__(self, url: str = "") -> None:
        self.open = False
        self.heard: list[str] = []
        self.refusals = 0
        self._failures = 0
        self._url = url

    def is_open(self) -> bool:
        return self.open

    def examine(self) -> bool:
        cause = self.obstacle()
        self._failures = self._failures + 1 if cause else 0
        if self._failures == FAILURES_TO_OPEN:
            self.open = True
            self.heard.append("lost")
        return not cause

    def obstacle(self) -> str:
        if not self._url:
            return ""
        with connect(self._url, timeout=0.05) as client:
            try:
                client.ping()
            except STORE_ERRORS:
                return "connection"
        return ""

    def recovered(self) -> bool:
        if self.refusals:
            self.refusals -= 1
            self.heard.append("refused")
            return False
        self.open = False
        self.heard.append("recovered")
        return True

    def settle(self) -> None:
        """Nothing is ever owed."""


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(persistent=False) as running:
        yield running
        running.kill()


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[Redis]:
    """A client of an empty store; a server that a test froze or killed is repaired afterwards."""
    with connect(server.url) as plain:
        plain.flushall()
        plain.function_flush()
        yield plain
    if server.running:
        server.thaw()
    else:
        server.start()


Make = Callable[..., Agent]


@pytest.fixture
def make(server: ValkeyServer, client: Redis) -> Iterator[Make]:
    """Make an agent that is not started yet."""
    made: list[Agent] = []

    def new(name: str = "proxy-1", hooks: Switch | None = None, url: str = "", state_dir: Path | None = None) -> Agent:
        identity = Identity(id=name, host="host", pid=1, version="1.2.3")
        usage = UsageLog(name)
        agent = Agent(
            lambda: connect(url or server.url, timeout=0.3),
            KEYS,
            PublishedState(),
            usage,
            identity,
            hooks or Switch(url or server.url),
            state_dir=state_dir,
        )
        made.append(agent)
        return agent

    yield new
    for agent in made:
        agent.stop()


def until(condition: Callable[[], object]) -> float:
    """Poll until *condition* holds; return the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < DEADLINE_SECONDS, "It did not happen."
        time.sleep(0.001)
    return time.monotonic() - began


def following(agent: Agent, client: Redis, quota: int = 100) -> Agent:
    """Start *agent* on a published state."""
    publish_quota(client, 1, quota)
    agent.start()
    assert agent.wait_loaded(DEADLINE_SECONDS)
    until(lambda: client.exists(KEYS.instance(agent.identity.id)))
    return agent


def revision_of(agent: Agent) -> int:
    return agent.documents.current.revision


def store_of(agent: Agent) -> str:
    return agent.documents.current.store_id


def quota_of(agent: Agent) -> int:
    return agent.documents.current.policies["pol_1"].limits[0].quota


def test_documents_are_loaded_at_the_start(make: Make, client: Redis) -> None:
    """A new instance obeys what the store holds, and says which revision that is."""
    agent = following(make(), client)

    assert (quota_of(agent), revision_of(agent), store_of(agent), agent.state) == (100, 1, "store-1", "ok")


def test_change_is_live_within_100_ms(make: Make, client: Redis) -> None:
    """A published change is obeyed at once, for the agent listens. The deadline here allows for a busy machine."""
    agent = following(make(), client)
    seconds = []
    for revision in range(2, 12):
        began = time.monotonic()
        publish_quota(client, revision, revision)
        until(lambda wanted=revision: quota_of(agent) == wanted)
        seconds.append(time.monotonic() - began)

    print(f"published to live: median {sorted(seconds)[5] * 1e3:.1f} ms, slowest {max(seconds) * 1e3:.1f} ms")
    assert sorted(seconds)[5] < 0.1


def test_new_revision_is_acknowledged_at_once(make: Make, client: Redis) -> None:
    """The control plane need not wait for the next heartbeat to see who runs a change."""
    agent = following(make(), client)
    publish_quota(client, 2, 7)

    seconds = until(lambda: json.loads(client.get(KEYS.instance(agent.identity.id)))["revision"] == 2)

    assert seconds < 1.0


def test_revoked_token_is_forgotten(make: Make, client: Redis) -> None:
    """The entry names the token; the next request that shows it asks the store."""
    agent = following(make(), client)
    agent.documents.remember(DIGEST, dumps(token()), agent.documents.generation)

    publish(client, 2, tokens={DIGEST: token(revoked=True)})

    until(lambda: agent.documents.find(DIGEST) is None)


def test_cut_log_leads_to_a_full_load(make: Make, client: Redis) -> None:
    """An instance that fell off the end of the log still gets to the present state, known tokens included."""
    agent = following(make(), client)
    agent.documents.remember(DIGEST, dumps(token()), agent.documents.generation)
    with client.pipeline() as together:
        together.hset(KEYS.documents, mapping=state(5, quota=55))
        together.set(KEYS.token(DIGEST), dumps(token(revoked=True)))
        together.xadd(KEYS.log, {"changes": "{}"}, id="5-0")
        together.execute()

    until(lambda: revision_of(agent) == 5)

    assert quota_of(agent) == 55
    assert agent.documents.find(DIGEST).token.revoked


@pytest.mark.usefixtures("quick_duties")
def test_deleted_log_is_noticed(make: Make, client: Redis) -> None:
    """A revision that never comes by the log is fetched when it has been waited for once."""
    agent = following(make(), client)
    client.hset(KEYS.documents, mapping=state(2, quota=20))
    client.delete(KEYS.log)

    until(lambda: revision_of(agent) == 2)

    assert quota_of(agent) == 20


@pytest.mark.usefixtures("quick_duties")
def test_emptied_store_changes_nothing_until_it_is_refilled(make: Make, client: Redis) -> None:
    """An empty store is not "no limits": the last state stays. Another store's state replaces it, if it is no older."""
    agent = following(make(), client)
    publish_quota(client, 2, 22)
    until(lambda: revision_of(agent) == 2)
    client.flushall()
    until(lambda: client.exists(KEYS.instance("proxy-1")))
    assert (quota_of(agent), agent.state) == (22, "ok")

    publish(client, 2, "store-2", documents={"policy:pol_1": policy(11), "project:proj_1": project()})

    until(lambda: store_of(agent) == "store-2")
    assert (revision_of(agent), quota_of(agent)) == (2, 11)
    publish(client, 3, "store-2", documents={"policy:pol_1": policy(12)})
    until(lambda: quota_of(agent) == 12)


@pytest.mark.parametrize(
    "document",
    [
        dumps(policy()).replace("100", "NaN"),
        dumps(policy()).replace('"quota":100', '"quota":100,"quota":101'),
        dumps({**policy(), "schema": 2}),
        dumps({**policy(), "name": "x" * 10_000_000}),
        "[" * 60_000,
        b"\xff\xfe\x00",
    ],
    ids=["nan", "twice", "schema", "long", "deep", "bytes"],
)
def test_garbled_document_keeps_the_old_state(make: Make, client: Redis, caplog, document: str) -> None:
    """Whatever is written straight into the store, the last good version is obeyed, loudly, and the thread goes on."""
    agent = following(make(), client)
    client.hset(KEYS.documents, mapping={**state(5), "policy:pol_1": document})
    client.xadd(KEYS.log, {"changes": "garbage"}, id="5-0")
    until(lambda: revision_of(agent) == 5)

    assert quota_of(agent) == 100
    until(lambda: "policy:pol_1 is refused, the last good one stays" in caplog.text)
    publish_quota(client, 6, 6)
    until(lambda: quota_of(agent) == 6)


@pytest.mark.usefixtures("quick_duties")
@pytest.mark.parametrize("ident", ["2-7", "18446744073709551614-0"])
def test_entry_that_no_publisher_wrote_is_passed_over(make: Make, client: Redis, ident: str) -> None:
    """An entry out of order, or one without changes, leads neither astray nor into a loop."""
    agent = following(make(), client)
    client.xadd(KEYS.log, {"other": "x"}, id=ident)
    before = client.info("commandstats")
    publish_quota(client, 3, 33)
    until(lambda: quota_of(agent) == 33)

    calls = client.info("commandstats")["cmdstat_hgetall"]["calls"]
    assert calls - before.get("cmdstat_hgetall", {"calls": 0})["calls"] < 10
    publish_quota(client, 4, 44)
    until(lambda: quota_of(agent) == 44)


@pytest.mark.usefixtures("quick_duties")
def test_keys_of_another_kind_do_not_stop_the_thread(make: Make, client: Redis, caplog) -> None:
    """A string where documents and log should be is said once a key; the old state stays, the store is not away."""
    agent = following(make(), client)
    for key in (KEYS.documents, KEYS.log):
        client.delete(key)
        client.set(key, "no hash, no stream")
    until(lambda: "refused the documents" in caplog.text and "refused the log" in caplog.text)
    assert (agent.state, quota_of(agent)) == ("ok", 100)

    client.delete(KEYS.documents, KEYS.log)
    publish(client, 9, "store-2", documents={"policy:pol_1": policy(9), "project:proj_1": project()})

    until(lambda: quota_of(agent) == 9)


@pytest.mark.usefixtures("quick_duties")
def test_lost_function_library_is_given_back(make: Make, client: Redis) -> None:
    """Whoever first misses the library loads it."""
    following(make(), client)
    client.function_flush()

    until(lambda: [library[1] for library in client.function_list(library=LIBRARY_NAME)])


@pytest.mark.usefixtures("quick_duties")
def test_heartbeat_reports_the_instance_and_its_revision(make: Make, client: Redis) -> None:
    """The heartbeat holds what the control plane shows, and expires by itself when the process is gone."""
    agent = following(make(), client)
    until(lambda: json.loads(client.get(KEYS.instance("proxy-1")))["state"] == "ok")

    heartbeat = json.loads(client.get(KEYS.instance("proxy-1")))

    assert set(heartbeat) == {
        "id", "host", "pid", "version", "revision", "state", "started_at_us", "seen_at_us", "store_id", "decisions",
        "degraded_since_us", "problems", "revision_at_us",
    }  # fmt: skip
    assert (heartbeat["id"], heartbeat["version"], heartbeat["store_id"]) == ("proxy-1", "1.2.3", "store-1")
    assert heartbeat["decisions"] == {"allowed": 0, "denied": 0, "fallback": 0}
    assert heartbeat["started_at_us"] < heartbeat["revision_at_us"] <= heartbeat["seen_at_us"]
    assert 10_000 < client.pttl(KEYS.instance("proxy-1")) <= 15_000
    assert abs(agent.clock.offset_us()) < 1_000_000


@pytest.mark.usefixtures("quick_duties")
def test_two_instances_count_each_other(make: Make, client: Redis) -> None:
    """The fleet is the most instances seen: a local share is cut by it, also after the other is gone."""
    agent, other = following(make("proxy-1"), client), make("proxy-2")
    other.start()
    until(lambda: agent.fleet_size == 2 and other.fleet_size == 2)

    other.stop()
    until(lambda: client.zcard(KEYS.instances) == 1)

    assert client.exists(KEYS.instance("proxy-2")) == 0
    assert agent.fleet_size == 2


def test_stop_delivers_the_usage_and_takes_the_heartbeat_away(make: Make, client: Redis) -> None:
    """A process that ends in peace leaves no count behind and is not missed."""
    agent = following(make(), client)
    log = agent._usage
    log.of(TokenEntry(parse_token(dumps(token()))), [("pol_1", "per-minute", "requests")]).passed(7, 1, [(0, 1)])

    agent.stop()

    [(_, fields)] = client.xrange(KEYS.usage)
    assert fields["id"].startswith("proxy-1-")
    assert fields["instance"] == "proxy-1"
    assert json.loads(fields["rows"])[1] == [7, "proj_1", "tok_1", "", "", "requests", 1, 0, 0, 1]
    assert client.exists(KEYS.instance("proxy-1")) == 0


@pytest.mark.parametrize("shards", [0, 4])
def test_stop_delivers_more_rows_than_one_delivery_takes(make: Make, client: Redis, shards: int) -> None:
    """As of a process that has just met many tokens."""
    agent, log = following(make(), client), UsageLog("proxy-1")
    client.set(KEYS.usage_shards, shards)
    for number in range(rows := MAX_UNDELIVERED * MAX_ROWS_PER_BATCH + 1_500):
        log.of(TokenEntry(parse_token(dumps(token(id=f"tok_{number}")))), []).passed(7, 1, [])
    agent._delivery._usage = log

    agent.stop(30.0)

    streams = [KEYS.usage, *map(KEYS.usage_shard, range(shards))]
    entries = [fields for stream in streams for _, fields in client.xrange(stream)]
    assert len({row[2] for fields in entries for row in json.loads(fields["rows"])}) == rows


def test_batch_in_doubt_is_sent_again_under_its_id(server: ValkeyServer, client: Redis) -> None:
    """A store that froze may have taken the batch: it is sent again unchanged, so that the drain can tell."""
    usage = UsageLog("proxy-1")
    usage.of(TokenEntry(parse_token(dumps(token()))), []).passed(7, 1, [])
    delivery = UsageDelivery(connect(server.url, timeout=0.3), KEYS, usage)
    server.freeze()
    with pytest.raises(STORE_ERRORS):
        delivery.deliver()
    server.thaw()
    delivery.deliver()

    sent = [fields for _, fields in client.xrange(KEYS.usage)]
    assert len({(fields["id"], fields["rows"]) for fields in sent}) == 1


def test_killed_store_degrades_and_heals(make: Make, server: ValkeyServer, client: Redis, caplog) -> None:
    """The outage and its end are each said once; the hooks hear of both; documents stay meanwhile."""
    switch = Switch(server.url)
    agent = following(make(hooks=switch), client)
    switch.heard.clear()
    server.kill()
    lost = until(lambda: agent.state == "degraded" and switch.open)
    assert (quota_of(agent), agent.degraded_since_us > 0, switch.open) == (100, True, True)

    server.start()
    healed = until(lambda: agent.state == "ok")

    print(f"noticed after {lost * 1e3:.0f} ms, back after {healed * 1e3:.0f} ms")
    assert switch.heard == ["lost", "recovered"]
    assert agent.degraded_since_us is None
    assert [r.message[:17] for r in caplog.records if r.message.startswith("The store is")] == [
        "The store is away",
        "The store is back",
    ]


def test_frozen_store_degrades_and_heals(make: Make, server: ValkeyServer, client: Redis) -> None:
    """A store that keeps its connections and answers nothing is away, too."""
    switch = Switch(server.url)
    agent = following(make(hooks=switch), client)
    server.freeze()
    until(lambda: agent.state == "degraded")

    server.thaw()

    until(lambda: agent.state == "ok")
    publish_quota(client, 2, 2)
    until(lambda: quota_of(agent) == 2)


def test_breaker_that_a_request_opened_is_closed_again_at_once(make: Make, client: Redis) -> None:
    """The hot path saw a failure and wakes the agent, which need not wait for its own next call to find out."""
    switch = Switch()
    agent = following(make(hooks=switch), client)
    switch.open = True
    agent.wake()

    seconds = until(lambda: not switch.open)

    assert seconds < 1.0
    until(lambda: agent.state == "ok")
    assert "lost" not in switch.heard


def test_hooks_that_cannot_settle_keep_it_degraded(make: Make, client: Redis) -> None:
    """A store that answers and does not take what is owed is not back yet."""
    switch = Switch()
    agent = following(make(hooks=switch), client)
    switch.refusals, switch.open = 2, True
    switch.heard.clear()
    agent.wake()

    until(lambda: not switch.open)

    assert switch.heard[:3] == ["refused", "refused", "recovered"]


def test_wake_settles_what_is_owed(make: Make, client: Redis) -> None:
    """A single correction that failed, with the store well, is settled without an outage."""
    switch = Switch()
    agent = following(make(hooks=switch), client)
    switch.heard.clear()

    agent.wake()

    until(lambda: switch.heard)
    assert (switch.heard, agent.state) == (["recovered"], "ok")


def test_error_nobody_foresaw_does_not_end_the_thread(make: Make, client: Redis, caplog, monkeypatch) -> None:
    """A defect in a hook is logged with its traceback, and documents are followed all the same."""
    switch = Switch()
    agent = following(make(hooks=switch), client)
    with monkeypatch.context() as patched:
        patched.setattr(switch, "is_open", lambda: 1 / 0)
        until(lambda: "ZeroDivisionError" in caplog.text)
    publish_quota(client, 2, 2)

    until(lambda: quota_of(agent) == 2)


def test_start_without_a_store_obeys_the_documents_on_disk(
    make: Make, server: ValkeyServer, client: Redis, tmp_path: Path
) -> None:
    """A process that starts during an outage has the last good documents, and follows the store when it is back."""
    first = following(make(state_dir=tmp_path), client)
    first.documents.remember(DIGEST, dumps(token()), first.documents.generation)
    first.stop()
    server.kill()
    agent = make(state_dir=tmp_path)
    agent.start()

    assert agent.wait_loaded(DEADLINE_SECONDS)

    until(lambda: agent.state == "degraded")
    assert (quota_of(agent), agent.documents.find(DIGEST).token.id) == (100, "tok_1")
    server.start()
    publish(client, 1, "store-2", documents={"policy:pol_1": policy(3), "project:proj_1": project()})
    until(lambda: quota_of(agent) == 3)
    assert agent.documents.find(DIGEST) is None


def test_probes_spread_and_grow_to_a_second(make: Make, monkeypatch) -> None:
    """A fleet that lost the store in one moment does not ask for it in one: each wait is random and grows."""
    agent = make(url="redis://127.0.0.1:1/0")
    waits: list[float] = []
    monkeypatch.setattr(agent._stopping, "wait", lambda seconds: waits.append(seconds) or True)

    for _ in range(8):
        agent._probe()

    for wait, longest in zip(waits, [0.05, 0.1, 0.2, 0.4, 0.8, 1.25, 1.25, 1.25], strict=True):
        assert longest / 2 <= wait <= longest


def test_account_with_few_rights_uses_them(make: Make, server: ValkeyServer, client: Redis, caplog) -> None:
    """An account that may not load functions logs that once, and goes on with what it may do."""
    publish_quota(client, 1, 100)
    client.function_flush()
    client.acl_setuser("few", enabled=True, passwords=["+few"], keys=["*"], commands=["+@all", "-function"])
    agent = make(url=server.url.replace("redis://", "redis://few:few@"))
    agent.start()
    until(lambda: "refused the heartbeat" in caplog.text)
    publish_quota(client, 2, 2)

    until(lambda: quota_of(agent) == 2)

    assert agent.state == "ok"
    client.acl_deluser("few")


FORKING = """
import os, sys, time
import enforcement.engine.agent as module
from enforcement.engine.agent import Agent
from enforcement.engine.heartbeat import Identity
from enforcement.model.keys import Keys
from enforcement.state.published import PublishedState
from enforcement.store.client import connect
from enforcement.usage.counts import UsageLog
from tests.enforcement.engine.test_agent import Switch

module.HEARTBEAT_SECONDS = 0.3
agent = Agent(lambda: connect(sys.argv[1]), Keys(), PublishedState(), UsageLog("parent"),
              Identity("parent", "host", os.getpid(), "1"), Switch())
os.register_at_fork(after_in_child=agent.after_fork)
agent.start()
assert agent.wait_loaded(10)
reading, writing = os.pipe()
child = os.fork()
while agent.documents.current.revision < 2 or agent.fleet_size < 2:
    time.sleep(0.01)
if child == 0:
    os.close(writing)
    os.read(reading, 1)  # until the parent has seen both, too
    assert agent.identity.id.startswith("parent-") and agent.identity.pid == os.getpid()
    agent.stop()
    os._exit(0)
os.close(writing)
agent.stop()
sys.exit(os.waitpid(child, 0)[1])
"""


def test_forked_process_goes_on_under_its_own_name(server: ValkeyServer, client: Redis) -> None:
    """A pre-forking server makes the limiter before it forks: each child follows, and counts as an instance."""
    publish_quota(client, 1, 100)
    command = [sys.executable, "-W", "ignore", "-c", FORKING, server.url]
    # A group of its own, so that a failure leaves no child behind.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            until(lambda: client.zcard(KEYS.instances) == 2)
            publish_quota(client, 2, 2)

            assert process.wait(DEADLINE_SECONDS) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def everything_logged(caplog) -> None:
    caplog.set_level(logging.INFO, logger="sluicegate")
