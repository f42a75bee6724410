"""``sluicegate doctor`` on good and bad stores, with each account, and that it changes nothing."""

import json
import os
import re
import subprocess
import sys
import time
from itertools import count
from types import SimpleNamespace

import pytest

from enforcement import Limiter
from enforcement.cli import main
from enforcement.doctor import checkup, sharing, variables
from enforcement.doctor import server as look_at_server
from enforcement.embedded import ValkeyServer
from enforcement.lua import library_source
from enforcement.model.keys import Keys
from enforcement.store.client import connect
from enforcement.store_calls.acl import ACCOUNTS, enforcer
from tests.earlier import library_of_0_2
from tests.enforcement.faults import FaultyPath
from tests.enforcement.topologies import execute
from tests.enforcement.world import eventually, fixed
from tests.forks import Forked
from tests.repository import ROOT

KEYS = Keys()
PASSWORD = "not-to-be-shown"


@pytest.fixture
def real_process():
    """Start the second process as the command does."""


@pytest.fixture(autouse=True)
def quick_process(request, monkeypatch):
    """Fork the second process instead of starting an interpreter, unless it fails: what is said then has tests."""
    if "real_process" in request.fixturenames:
        return
    start = sharing._second_process

    def fork(task):
        with Forked(["-c", "from enforcement.doctor.sharing import second; second()"]) as process:
            output, _ = process.communicate(json.dumps(task))
        return json.loads(output) if process.returncode == 0 else start(task)

    monkeypatch.setattr(sharing, "_second_process", fork)


@pytest.fixture
def doctor(capsys):
    """Run the command in this process; return its exit status and what it found, by name."""

    def run(url, *options):
        status = main(["doctor", "--redis", url, "--json", *options])
        report = json.loads(capsys.readouterr().out)
        return status, {finding["name"]: finding for finding in report["findings"]}

    return run


@pytest.fixture
def account(world):
    """Make an account of the store; return its URL."""
    names = []

    def make(name, rules, server):
        world.client.execute_command("ACL SETUSER", name, "on", "resetpass", f">{PASSWORD}", *rules)
        names.append(name)
        return server.url.replace("redis://", f"redis://{name}:{PASSWORD}@")

    yield make
    for name in names:
        world.client.execute_command("ACL DELUSER", name)


def levels(findings):
    return {name: finding["level"] for name, finding in findings.items()}


def test_a_good_store_is_reported_as_good(server, world, doctor, monkeypatch):
    """Each thing that was looked at is a line; what a development store lacks is a warning, and no problem."""
    monkeypatch.setenv("SLUICEGATE_TIMEOUT_MS", "10000")  # a busy machine is slow
    world.everything(fixed(5))
    status, found = doctor(server.url)

    assert status == 0
    assert levels(found) == {
        "transport": "ok",
        "server": "ok",
        "role": "ok",
        "eviction": "ok",
        "memory": "ok",
        "persistence": "warning",
        "clock": "ok",
        "functions": "ok",
        "shared counter": "ok",
        "round trip": "ok",
        "rights": "warning",
        "documents": "ok",
        "instances": "ok",
        "reservations": "ok",
    }
    assert all(bool(finding["advice"]) is (finding["level"] == "warning") for finding in found.values())


@pytest.mark.parametrize(("seconds", "level"), [(1, "ok"), (2, "warning"), (3, "problem")])
def test_a_round_trip_is_judged_by_the_time_budget(server, world, monkeypatch, seconds, level):
    """More than half of it is reason to warn, and more than all of it to expect decisions without the store."""
    clock = count(step=seconds)
    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with connect(server.url, timeout=5.0) as client:
        (found,) = sharing.round_trips(client, KEYS, 2.0)

    took = f"p50 {seconds}000.00 ms, p99 {seconds}000.00 ms"
    assert (found.level, found.value) == (level, f"{took} of 200 decisions; the time budget is 2000 ms")


@pytest.mark.usefixtures("real_process")
def test_two_processes_are_shown_to_share_a_counter(server, world, doctor):
    """There really is a second process, which sees what the first one took, and the other way round."""
    _, found = doctor(server.url)
    shown = re.fullmatch(
        r"10 permits: process (\d+) took 3 and left 7; "
        r"process (\d+) saw 7, took 4 and left 3; the first then saw 3",
        found["shared counter"]["value"],
    )

    assert int(shown[1]) == os.getpid() != int(shown[2])


@pytest.mark.usefixtures("real_process")
def test_control_a_second_store_is_found_out(server, world, own_server):
    """The proof is one: a second process that reaches another store does not see what the first one took."""
    with connect(own_server.url) as other:
        other.function_load(library_source())
    (finding,) = sharing.proof(world.client, KEYS, own_server.url)

    assert finding.level == "problem"
    assert "saw 10, took 4 and left 6; the first then saw 7" in finding.value


@pytest.mark.usefixtures("real_process")
def test_a_second_process_that_fails_is_a_problem_with_a_reason(server, world):
    """Its last words are reported."""
    (finding,) = sharing.proof(world.client, KEYS, "redis://127.0.0.1:1/0")

    assert finding.level == "problem"
    assert "The second process failed: " in finding.advice
    assert "Connection refused" in finding.advice


def test_nothing_is_left_behind(server, world, doctor):
    """A store in production has the keys afterwards that it had before, to the byte; nobody joined the fleet."""
    world.everything(fixed(5))
    before = {key: world.client.dump(key) for key in world.client.scan_iter()}
    doctor(server.url)

    assert {key: world.client.dump(key) for key in world.client.scan_iter()} == before


def test_what_is_charged_expires_by_itself(server, world, monkeypatch):
    """Also if the command is killed half way: its counter lives a minute."""
    monkeypatch.setattr(sharing.SharedCounter, "forget", lambda self: None)
    list(sharing.proof(world.client, KEYS, server.url))
    (key,) = world.client.keys("*:c:*")

    assert 0 < world.client.ttl(key) <= 61


def test_the_account_of_a_proxy_can_run_it(server, world, account, doctor):
    """It proves what it may, reports what it may not read, and finds that it can change no document."""
    world.everything(fixed(5))
    url = account("proxy", enforcer(KEYS), server)
    with Limiter(url, instance="proxy-1"):
        status, found = doctor(url)

    assert status == 0
    assert {name for name, level in levels(found).items() if level == "unseen"} == {"functions"}
    assert found["shared counter"]["level"] == found["documents"]["level"] == "ok"
    assert found["rights"] == {
        "name": "rights",
        "level": "ok",
        "value": "may not change policies or tokens",
        "advice": "",
    }
    assert found["instances"]["value"] == "1 alive; this account may count them, but not read them"


def test_an_account_of_an_earlier_release_is_told_what_to_do(server, account, doctor, tmp_path):
    """Its enforcers send no sample and make ids that nobody can read; the new account changes that."""
    script = "import json; from enforcement.accounts import enforcer; from enforcement.keys import Keys; "
    library = library_of_0_2(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(library)}
    command = [sys.executable, "-c", f"{script}print(json.dumps(enforcer(Keys())))"]
    done = subprocess.run(command, cwd=library, env=environment, capture_output=True, text=True, check=True)
    status, found = doctor(account("proxy", json.loads(done.stdout), server))

    assert (status, found["account"]["level"]) == (0, "warning")
    assert found["account"]["value"] == (
        "lacks rights on the key of decision ids, the prices of models, the shards of usage, the sample of denials"
    )
    assert "Run 'manage.py store_acl --apply'" in found["account"]["advice"]
    assert "account" not in doctor(account("proxy", enforcer(KEYS), server))[1]


def test_an_account_of_a_project_is_told_where_it_reports(server, world, account, doctor):
    """One of an earlier release may spoil what all share. Without an intake, nobody reads its usage."""
    world.everything(fixed(5))
    url = account("limited", enforcer(KEYS, ["proj_1"]), server)
    unread = doctor(url)[1]["project"]
    world.publish({"intakes": {"schema": 1, "projects": ["proj_1", "proj_2"]}})
    own = doctor(url)[1]
    rules = [rule for rule in enforcer(KEYS, ["proj_1"]) if KEYS.intake("proj_1") not in rule]
    earlier = doctor(account("limited", [*rules, f"(+xadd %W~{KEYS.usage} %W~{KEYS.denials})"], server))[1]["project"]

    assert (unread["level"], unread["value"]) == (
        "warning",
        "limited to projects, and nobody reads the usage that it reports",
    )
    said = "limited to proj_1, with an intake for usage; it may spoil the counters of global limits"
    assert (own["project"]["level"], own["project"]["value"]) == ("ok", said)
    assert "--no-global' takes that right away" in own["project"]["advice"]
    assert "account" not in own
    assert (earlier["level"], earlier["value"]) == ("warning", "limited to projects by an earlier release")


def test_requests_that_found_no_place_at_the_proxies_are_counted(server, world, doctor):
    """By the share that was taken, over all proxies. Anybody may have written a heartbeat."""
    world.everything(fixed(5))
    for name, crowded in (("a", {"token": 1_200, "project": 0}), ("b", {"token": 34, "full": 2}), ("c", [1]), ("d", 7)):
        beat = {"id": name, "revision": world.revision, "state": "ok", "crowded": crowded}
        world.client.set(KEYS.instance(name), json.dumps(beat))
        world.client.zadd(KEYS.instances, {name: time.time_ns() // 1_000})

    found = doctor(server.url)[1]["places"]

    said = (
        "requests refused since the proxies began: 1,234 beyond the share of a token, 2 without any place in 5 seconds"
    )
    assert (found["level"], found["value"]) == ("ok", said)
    assert "raise SLUICEGATE_TOKEN_SHARE" in found["advice"]


@pytest.mark.parametrize("name", ["proxy", "publisher", "default"])
def test_keys_that_somebody_has_spoilt_are_named(server, world, account, doctor, name):
    """By each account as far as it may look, and by none that changes anything."""
    rules = {"proxy": enforcer(KEYS), "publisher": ACCOUNTS["publisher"](KEYS), "default": None}[name]
    url = server.url if rules is None else account(name, rules, server)
    world.client.xadd(KEYS.usage, {"a": "b"}, id=f"{2**64 - 1}-{2**64 - 1}")
    world.client.set(KEYS.instances, "x")
    world.client.xadd(KEYS.denials, {"a": "b"})
    status, found = doctor(url)

    # The publisher may not append, and only looks at the types of documents.
    seen = [] if name == "publisher" else [KEYS.usage, KEYS.instances]
    assert found.get("shared keys", {"value": ""})["value"].rpartition("program: ")[2] == ", ".join(seen)
    assert (status, world.client.xlen(KEYS.denials)) == (bool(seen), 1)
    world.client.delete(KEYS.instances)


def test_a_variable_that_is_no_setting_is_a_warning(server, doctor, monkeypatch):
    """A misspelt name is ignored by everything else. Variables that Kubernetes makes for a service are none."""
    monkeypatch.setenv("SLUICEGATE_TIMEOUT", "25")
    monkeypatch.setenv("SLUICEGATE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SLUICEGATE_PROXY_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("SLUICEGATE_HTTPS", "true")
    monkeypatch.setenv("SLUICEGATE_ENFORCER_TEAM_A_PASSWORD", "0123456789abcdef")  # of an account for one project

    assert doctor(server.url)[1]["variables"] == {
        "name": "variables",
        "level": "warning",
        "value": "SLUICEGATE_TIMEOUT is no setting and has no effect",
        "advice": "Did you mean SLUICEGATE_TIMEOUT_MS?",
    }


def test_a_misspelt_address_is_named_when_there_is_no_store(monkeypatch, capsys):
    """It is the likely reason."""
    monkeypatch.delenv("SLUICEGATE_REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("SLUICEGATE_REDIS", "redis://127.0.0.1:6379/0")

    assert main(["doctor"]) == 2
    assert "Did you mean SLUICEGATE_REDIS_URL?" in capsys.readouterr().out


def test_every_setting_is_known():
    """Those that the documentation lists, and those that the code reads."""
    known = {*variables.LIBRARY, *variables.CONTROL_PLANE}
    listed = "".join((ROOT / f"templates/docs/{page}.md").read_text() for page in ("settings", "service"))
    code = [path for tree in ("enforcement", "controlplane") for path in (ROOT / tree).rglob("*.py")]
    # Whoever proves a limit passes variables of its own to the processes that it starts.
    own = [path for path in code if path.name != "variables.py" and "proof" not in path.parts]
    read = "".join(path.read_text() for path in own)

    assert set(re.findall(r"\bSLUICEGATE_[A-Z_]+\b", listed)) == known
    assert set(re.findall(r"[\"`]SLUICEGATE_[A-Z_]*[A-Z][\"`]", read)) <= {f"{q}{it}{q}" for it in known for q in '"`'}


def test_a_time_zone_of_the_host_is_a_warning(server, world, doctor):
    """An earlier release published it. Enforcers go on with it."""
    world.everything(fixed(5, window_seconds=None, calendar="day", time_zone="localtime"))
    finding = doctor(server.url)[1]["time zones"]

    assert finding["level"] == "warning"
    assert "(localtime)" in finding["value"]


@pytest.mark.parametrize("name", ["publisher", "worker"])
def test_the_accounts_of_the_control_plane_can_run_it(server, world, account, doctor, name):
    """They may look at almost all; one that may not charge limits in code sees that reported."""
    status, found = doctor(account(name, ACCOUNTS[name](KEYS), server))

    assert status == 0
    assert found["rights"]["value"].startswith("may change policies and tokens")
    assert found["shared counter"]["level"] == "unseen"
    assert found["eviction"]["level"] == "ok"


def test_limits_that_count_nothing_are_a_warning(server, world, doctor):
    """With the instances that say so."""
    token = world.everything(fixed(10), fixed(1_000, name="tpm", unit="tokens"))
    with Limiter(server.url, instance="proxy-1") as limiter:
        limiter.check(token)
        world.publish()  # acknowledged at once, by a heartbeat
        assert eventually(lambda: "tpm" in (world.client.get(KEYS.instance("proxy-1")) or ""))
        status, found = doctor(server.url)

    assert (status, found["unmetered"]["level"]) == (0, "warning")
    assert found["unmetered"]["value"] == "api/tpm counts nothing at proxy-1"
    assert "unmetered" not in doctor(server.url)[1]


def test_limits_that_an_instance_cannot_enforce_are_a_warning(server, world, capsys):
    """With the reason, and the instances that refuse requests under them; what makes no sense is left out."""
    world.everything(fixed(10))
    report = [["proj_1", "api", "slots", "slots"], ["proj_1", "api", "good", "charge_on"], ["p", "api"], "x", 5]
    for name in ("serve-1", "serve-2"):
        beat = {"id": name, "revision": 1, "state": "ok", "unsupported": report}
        world.client.set(KEYS.instance(name), json.dumps(beat), px=15_000)
        world.client.zadd(KEYS.instances, {name: time.time_ns() // 1_000})

    assert main(["doctor", "--redis", server.url, "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["findings"] if row["name"] == "unsupported"]

    assert [(row["level"], row["value"]) for row in rows] == [
        ("warning", "api/good is charged by the status of the response, which serve-1 and 1 more cannot enforce"),
        ("warning", "api/slots counts slots, which serve-1 and 1 more cannot enforce"),
    ]


def test_settlements_that_no_report_has_are_a_warning(server, world, doctor):
    """With their number, and the instances that dropped them."""
    world.everything(fixed(10))
    for name, dropped in (("proxy-1", 2), ("proxy-2", 3), ("proxy-3", "many")):
        beat = {"id": name, "revision": 1, "state": "ok", "metered_dropped": dropped}
        world.client.set(KEYS.instance(name), json.dumps(beat), px=15_000)
        world.client.zadd(KEYS.instances, {name: time.time_ns() // 1_000})

    found = doctor(server.url)[1]["metered usage"]

    assert (found["level"], found["value"]) == ("warning", "5 settlements dropped at proxy-1, proxy-2")


def test_broken_bounds_are_listed(server, world, doctor):
    """Of all instances, and what is kept of those that ended, the most frequent first; nonsense is left out."""
    world.everything(fixed(10))
    kept = [["gpt-x", "openai-chat", 2], ["m", "gemini", 7], ["old", "gemini", 1], [1]]
    world.client.set(KEYS.last_week, json.dumps({"broken": kept}))
    beats = [
        [["gpt-x", "openai-chat", 1], ["m", "gemini", 2], ["m"], 3],
        [["gpt-x", "openai-chat", 2]],
        "x",
        [[1, 2, 3]],
    ]
    for i, broken in enumerate(beats):
        beat = {"id": f"proxy-{i}", "revision": 1, "state": "ok", "broken": broken}
        world.client.set(KEYS.instance(f"proxy-{i}"), json.dumps(beat), px=15_000)
        world.client.zadd(KEYS.instances, {f"proxy-{i}": time.time_ns() // 1_000})

    found = doctor(server.url)[1]["bounds"]

    assert found["level"] == "warning"
    assert found["value"].endswith(": m, gemini (7); gpt-x, openai-chat (3); old, gemini (1)")


def test_fields_that_a_bound_refuses_are_listed(server, world, capsys):
    """Those of seven days with their counts, also of requests that it would refuse; what makes no sense is left out."""
    world.everything(fixed(10))
    beats = [{"refused": [["turbo", 2], "x"], "would_refuse": [["speed=fast", 64]]}, {"refused": [["turbo", 1]]}, 7]
    for i, fields in enumerate(beats):
        beat = {"id": f"proxy-{i}", "revision": 1, "state": "ok", "fields": fields}
        world.client.set(KEYS.instance(f"proxy-{i}"), json.dumps(beat), px=15_000)
        world.client.zadd(KEYS.instances, {f"proxy-{i}": time.time_ns() // 1_000})

    assert main(["doctor", "--redis", server.url, "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["findings"] if row["name"] == "fields"]

    assert [(row["level"], row["value"].partition(": ")[2]) for row in rows] == [
        ("warning", "turbo (3)"),
        ("ok", "speed=fast (64)"),
    ]
    assert "allowed_fields" in rows[0]["advice"]


def test_instances_are_listed_with_what_they_run(server, world, doctor):
    """One that is behind is a warning."""
    world.everything(fixed(5))
    with Limiter(server.url, instance="proxy-1"):
        assert eventually(lambda: '"revision":1' in (world.client.get(KEYS.instance("proxy-1")) or ""))
        good = doctor(server.url)[1]["instances"]
        late = '{"id": "proxy-2", "revision": 0, "state": "ok"}'
        # Seen a moment ago: each heartbeat forgets those that were not seen for ten minutes.
        now_us = time.time_ns() // 1_000
        world.client.zadd(KEYS.instances, {"proxy-2": now_us, "garbage": now_us})
        world.client.set(KEYS.instance("proxy-2"), late)
        world.client.set(KEYS.instance("garbage"), "[")
        behind = doctor(server.url)[1]["instances"]

    assert (good["level"], good["value"]) == ("ok", "1 alive: proxy-1 at 1 (ok)")
    assert (behind["level"], behind["value"]) == ("warning", "2 alive: proxy-1 at 1 (ok), proxy-2 at 0 (ok)")
    assert behind["advice"].startswith("1 not at revision 1")


@pytest.mark.parametrize(
    ("state", "problems", "advice"),
    [
        ("degraded", [], "they decide without the store: check whether they can reach it"),
        (
            "degraded",
            ["bad_prices", "later", 5],
            "the published prices break a rule, so the last good ones stay in use",
        ),
        ("degraded", ["evicting"], "the store evicts keys, so counters are lost and limits admit more"),
    ],
)
def test_a_degraded_instance_is_a_problem(server, world, doctor, state, problems, advice):
    """With its reason, if it names one that this release knows."""
    world.everything(fixed(5))
    beat = {"id": "proxy-1", "revision": 1, "state": state, "problems": problems}
    world.client.set(KEYS.instance("proxy-1"), json.dumps(beat), px=15_000)
    world.client.zadd(KEYS.instances, {"proxy-1": time.time_ns() // 1_000})

    status, found = doctor(server.url)

    assert (status, found["instances"]["level"]) == (1, "problem")
    assert found["instances"]["advice"].startswith(f"Instances report that {advice}")


def test_lost_reservations_are_counted_with_the_oldest(server, world, doctor):
    """One of a process that has forgotten it, beside one that is open."""
    secret = world.everything(fixed(5))
    with Limiter(server.url, timeout=1.0) as limiter:
        limiter.reserve(secret, life=3_600)
        lost = limiter.reserve(secret, life=0.05)
        assert eventually(lambda: doctor(server.url)[1]["reservations"]["level"] == "warning")
        found = doctor(server.url)[1]["reservations"]
        assert re.fullmatch(r"1 open, 1 lost, the oldest since \S+ \S+ UTC", found["value"])
        assert "settle them within the time of their policies" in found["advice"]
        limiter.release(lost.id)
        assert doctor(server.url)[1]["reservations"]["value"] == "1 open, 0 lost"


def test_prices_that_are_missing_or_cannot_be_read(server, world, doctor):
    """Limits of money deny without them. An installation that counts no money is told nothing."""
    world.everything(fixed(5))
    assert "prices" not in doctor(server.url)[1]

    world.everything(fixed(5, name="usd", unit="micros"))
    missing = doctor(server.url)[1]["prices"]
    world.published.prices({"model": "gpt-*", "input": 1, "output": 2})
    present = doctor(server.url)[1]["prices"]
    world.client.set(KEYS.prices, '{"schema": 1}')
    broken = doctor(server.url)[1]["prices"]
    world.client.delete(KEYS.prices)
    world.client.hset(KEYS.prices, "a", "b")
    other = doctor(server.url)[1]["prices"]

    assert (missing["level"], missing["value"]) == ("warning", "none, but these limits count money: api/usd")
    assert (present["level"], present["value"]) == ("ok", "revision 3, 0 of operators, 1 of the catalogue, in USD")
    assert (broken["level"], other["level"]) == ("problem", "problem")
    assert broken["value"].startswith("cannot be read: revision")
    assert "publishes them again within a minute" in broken["advice"]


@pytest.mark.parametrize(
    ("policy", "level"),
    [("noeviction", "ok"), ("volatile-ttl", "warning"), ("allkeys-lru", "warning"), ("volatile-lru", "warning")],
)
def test_a_store_that_may_forget_is_warned_of(world, policy, level):
    """Every policy but noeviction evicts counters, and each lost counter admits its quota once more."""
    world.client.config_set("maxmemory-policy", policy)
    try:
        eviction, _ = look_at_server.memory(world.client)
    finally:
        world.client.config_set("maxmemory-policy", "noeviction")

    assert (eviction.level, eviction.value) == (level, f"maxmemory-policy {policy}")


def test_a_store_that_is_nearly_full_is_warned_of(world):
    """Before it refuses to charge."""
    used = world.client.info("memory")["used_memory"]
    world.client.config_set("maxmemory", used + 1_000)
    try:
        _, memory = look_at_server.memory(world.client)
    finally:
        world.client.config_set("maxmemory", 0)

    assert memory.level == "warning"
    assert memory.advice.startswith("Raise maxmemory")


def test_a_replica_is_a_problem(own_server, doctor):
    """It cannot charge, so a proxy with this address decides without the store."""
    with connect(own_server.url) as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with ValkeyServer(config={"replicaof": f"127.0.0.1 {own_server.port}"}) as replica:
        with connect(replica.url) as client:
            assert eventually(lambda: client.info("replication")["master_link_status"] == "up")
        status, found = doctor(replica.url)

    assert status == 1
    assert (found["role"]["level"], found["role"]["value"]) == ("problem", "replica")
    assert found["shared counter"]["level"] == "problem"


def test_a_server_without_functions_is_a_problem(doctor):
    """An old server replies as a new one does without the command FCALL."""
    with ValkeyServer(persistent=False, config={"rename-command": 'FCALL ""'}) as server:
        status, found = doctor(server.url)

    assert status == 1
    assert "the server refuses to charge: unknown command" in found["shared counter"]["value"]


def test_missing_functions_are_loaded_by_who_may(server, world, account, doctor):
    """As the first limiter would; an account that may not sees who can."""
    world.client.function_flush()
    url = account("proxy", enforcer(KEYS), server)
    status, found = doctor(url)

    assert status == 1
    assert found["shared counter"]["advice"] == (
        "Load the functions with an account that is permitted to: 'manage.py publish --all'."
    )
    assert doctor(server.url)[1]["functions"]["value"] == "sluicegate_3 was missing, and is loaded now"
    assert doctor(url)[0] == 0


def test_functions_of_another_release_are_found_out(server, world, doctor):
    """Their name is right and their code is not. Other versions beside them are no fault."""
    world.client.function_load(library_source() + "\nlocal changed = 1", replace=True)
    old = "#!lua name=sluicegate_1\nredis.register_function('sg1_decide', function() return 1 end)"
    world.client.function_load(old, replace=True)
    try:
        _, found = doctor(server.url)
    finally:
        world.client.function_flush()

    assert found["functions"]["level"] == "warning"
    assert found["functions"]["value"] == "sluicegate_3, beside sluicegate_1; the source differs from this release"


def test_functions_with_other_comments_are_the_same(server, world, doctor):
    """A release that only rewords the comments has no other functions."""
    world.client.function_load(library_source() + "\n-- changed", replace=True)
    try:
        _, found = doctor(server.url)
    finally:
        world.client.function_flush()

    assert found["functions"]["level"] == "ok"


@pytest.mark.parametrize(("hours", "side"), [(1, "behind"), (-1, "ahead")])
def test_a_clock_that_is_wrong_is_reported_with_its_side(world, monkeypatch, hours, side):
    """The store's is taken for right: this host's is an hour off."""
    there = time.time
    monkeypatch.setattr(look_at_server.time, "time", lambda: there() + hours * 3_600)
    (finding,) = look_at_server.clock(world.client)

    assert finding.level == "warning"
    assert finding.value.startswith("the store is 3")
    assert f" ms {side} (+-" in finding.value


def test_a_slow_path_is_reported_beside_the_time_budget(server, world, monkeypatch):
    """Thirty milliseconds on the way, of a budget of twenty-five: the fallback would decide."""
    monkeypatch.setattr(sharing, "ROUNDS", 20)
    path = FaultyPath(server.port)
    path.mode, path.delay = "delay", 0.03
    with connect(path.url) as client:
        (slow,) = sharing.round_trips(client, KEYS, 0.025)
        (close,) = sharing.round_trips(client, KEYS, 0.045)
    path.close()

    assert path.hit >= 40
    assert (slow.level, close.level) == ("problem", "warning")
    assert "the time budget is 25 ms" in slow.value


def test_every_primary_of_a_cluster_is_looked_at(doctor, cluster):
    """One that may forget is named; the counter is shared over all of them."""
    second = cluster.primaries[1]
    assert execute(second, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru") == "OK"
    status, found = doctor(cluster.url)

    assert status == 0
    assert found["role"]["value"] == "3 primaries, one of them: primary"
    assert found["eviction"]["level"] == "warning"
    assert found["eviction"]["value"] == f"127.0.0.1:{second.port}: maxmemory-policy allkeys-lru"
    assert found["shared counter"]["level"] == "ok"
    assert found["functions"]["value"].endswith("was missing, and is loaded now")


# Where it cannot look at all.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--redis", f"redis://:{PASSWORD}@127.0.0.1:1/0"], "Connection refused"),
        (["--redis", f"http://:{PASSWORD}@127.0.0.1/0"], ""),
        (["--redis", "redis://127.0.0.1:1/0", "--prefix", "{x}"], "--prefix: must be"),
    ],
)
def test_what_cannot_be_reached_or_read_ends_in_two(capsys, options, text):
    """Refused, no such scheme, no such prefix: one line says which, and none shows a password."""
    status = main(["doctor", *options])
    output = "".join(capsys.readouterr())

    assert status == 2
    assert text in output
    assert PASSWORD not in output


@pytest.mark.parametrize(
    ("scheme", "path", "advice"),
    [
        ("redis+cluster", "", "The address of a single server begins with redis://."),
        ("redis+sentinel", "/mymaster", "do they know this service?"),
        ("rediss", "/0", "does it use TLS? Without TLS its address begins with redis://."),
    ],
)
def test_an_address_of_another_kind_of_store_is_explained(server, capsys, monkeypatch, scheme, path, advice):
    """A server listens there, so asking whether one does would lead nowhere."""
    monkeypatch.setattr(checkup, "PATIENCE_SECONDS", 0.5)
    status = main(["doctor", "--redis", f"{scheme}://127.0.0.1:{server.port}{path}"])

    assert status == 2
    assert advice in capsys.readouterr().out


def test_a_wrong_password_ends_in_two(capsys):
    """The finding names the cause."""
    with ValkeyServer(persistent=False, config={"requirepass": "right"}) as server:
        status = main(["doctor", "--redis", server.url.replace("right", PASSWORD)])
    output = "".join(capsys.readouterr())

    assert status == 2
    assert "The user name or the password is wrong" in output
    assert PASSWORD not in output


def test_a_frozen_store_ends_in_two(own_server, capsys, monkeypatch):
    """It waits a while, and not for ever."""
    monkeypatch.setattr(checkup, "PATIENCE_SECONDS", 0.2)
    own_server.freeze()

    assert main(["doctor", "--redis", own_server.url]) == 2
    assert "TimeoutError" in capsys.readouterr().out


def test_a_variable_that_is_wrong_ends_in_two(capsys, monkeypatch):
    """As a limiter would refuse it."""
    monkeypatch.setenv("SLUICEGATE_TIMEOUT_MS", "soon")

    assert main(["doctor"]) == 2
    assert "SLUICEGATE_TIMEOUT_MS: must be " in capsys.readouterr().err


def test_the_command_takes_the_store_from_the_environment(server, world):
    """As a process of its own, by module name. The first line names the source of the address."""
    run = subprocess.run(
        [sys.executable, "-m", "enforcement", "doctor"],
        env={"PYTHONPATH": str(ROOT), "REDIS_URL": server.url},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"{server.url} (from REDIS_URL), keys begin with sg:\n\nok       transport ")
