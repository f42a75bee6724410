"""The accounts of the store, on a real server: what each may do, and that it can do its work with that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from enforcement import Denied, Limit, Limiter, aio
from enforcement.embedded import ValkeyServer
from enforcement.lua import function, library_source
from enforcement.model.keys import Keys, rest_prefix
from enforcement.model.tokens import digest, mint
from enforcement.store.client import connect, load_library
from enforcement.store_calls.acl import ACCOUNTS, acl_line, enforcer
from enforcement.store_calls.publication import Publication, publish_call
from enforcement.store_calls.reservations import (
    count_reservations,
    find_reservation,
    lost_reservations,
    open_reservations,
    present_reservations,
    settle_reservation,
    was_marked,
)
from tests.enforcement.command_table import CommandTable
from tests.enforcement.world import PROJECT, World, eventually, fixed

KEYS = Keys()
DIGEST = "a" * 64
DOCUMENTS, LOG, TOKEN = "sg:{doc}:documents", "sg:{doc}:log", f"sg:{{doc}}:token:{DIGEST}"
COUNTER, HEARTBEAT, USAGE = "sg:{proj_1}:f-counter", "sg:{fleet}:instance:proxy-1", "sg:{usage}:stream"
SHARDS, SHARD = "sg:{usage}:shards", "sg:{usage}:shard:3"
DENIALS, DECISION_KEY = "sg:{usage}:denials", "sg:{doc}:decision-key"
IN_CODE = "sg:{AbCdEfGhIjKlMnOpQr-_12}:f-counter"

CONNECTING = {"auth", "client|setinfo", "client|setname", "hello", "ping", "quit", "reset", "select", "time"}
COUNTING = {
    "fcall", "get", "mget", "pexpire", "pfadd", "sadd", "set", "setrange", "sismember",
    "unlink", "zadd", "zcard", "zcount", "zrange", "zrangebyscore", "zrem",
    "zremrangebyscore", "zrevrange", "zrevrangebyscore", "zscore",
}  # fmt: skip
LIVING = {"fcall", "set", "unlink"}
LISTING = {"fcall", "zadd", "zcount", "zrem", "zremrangebyscore"}
INTAKE = "sg:in:{proj_1}"
LIMITS = [
    Limit(name="window", quota=9, window_seconds=3_600),
    Limit(name="month", quota=9, calendar="month"),
    Limit(name="sliding", algorithm="sliding_window", quota=9, window_seconds=3_600),
    Limit(name="log", algorithm="sliding_log", quota=9, window_seconds=3_600),
    Limit(name="bucket", algorithm="token_bucket", quota=9, window_seconds=3_600),
]


def install(client: Redis, name: str, rules: list[str]) -> None:
    client.execute_command("ACL SETUSER", name, "on", "resetpass", f">{name}-password", *rules)


def url_of(server: ValkeyServer, name: str) -> str:
    return f"redis://{name}:{name}-password@127.0.0.1:{server.port}/0"


@pytest.fixture
def accounts(world: World) -> Iterator[World]:
    """A store with the three accounts, which has refused nothing by the end of the test unless the test says so."""
    for name, rules in ACCOUNTS.items():
        install(world.client, name, rules(KEYS))
    world.client.execute_command("ACL LOG", "RESET")
    load_library(world.client)
    yield world
    world.client.execute_command("ACL DELUSER", *ACCOUNTS)


@pytest.fixture
def as_enforcer(server: ValkeyServer, accounts: World) -> Iterator[Redis]:
    with connect(url_of(server, "enforcer")) as client:
        yield client


@pytest.fixture
def limiter(make_limiter, server: ValkeyServer, accounts: World) -> Limiter:
    """A started limiter that knows nothing but the enforcer's password."""
    return accounts.follow(make_limiter(url_of(server, "enforcer"), instance="proxy-1"))


def refused(world: World) -> list[tuple[str, str]]:
    """What the server has refused to any account: the reason, and the command, key or channel."""
    return [(entry["reason"], entry["object"]) for entry in world.client.acl_log()]


# What it may not do.


def test_every_command_of_the_server_as_enforcer(accounts):
    """Of all commands, on each kind of key, exactly these pass; a command of a newer server is refused like others."""
    table = CommandTable(accounts.client, "enforcer")
    kinds = {
        "no key": table.passing_without_key(),
        **{key: table.passing(key) for key in (DOCUMENTS, LOG, TOKEN, USAGE, HEARTBEAT, "sg:{fleet}:instances")},
        **{key: table.passing(key) for key in (DENIALS, DECISION_KEY, SHARDS, SHARD)},
        **{key: table.passing(key) for key in (COUNTER, IN_CODE, "sg:{global}:f-counter")},
        **{key: table.passing(key) for key in ("sg:{lock}:publish", "sg:celery:celery", "other", "sg:{doc}:new")},
        "another's prefix": table.passing("so:{proj_1}:f-counter"),
    }

    assert len(table) > 300
    assert kinds == {
        "no key": CONNECTING | {"asking", "cluster|info", "cluster|slots", "info"},
        DOCUMENTS: {"hget", "hgetall", "hmget"},
        LOG: {"xread"},
        TOKEN: {"get", "mget"},
        USAGE: {"xadd"},
        SHARDS: {"get"},
        SHARD: {"xadd"},
        DENIALS: {"xadd"},
        DECISION_KEY: {"get", "mget"},
        HEARTBEAT: LIVING,
        "sg:{fleet}:instances": LISTING,
        COUNTER: COUNTING,
        IN_CODE: COUNTING,
        "sg:{global}:f-counter": COUNTING,
        "sg:{lock}:publish": set(),
        "sg:celery:celery": set(),
        "other": set(),
        "sg:{doc}:new": set(),
        "another's prefix": set(),
    }


def test_every_command_of_the_server_as_enforcer_of_a_project(accounts):
    """It appends to the intake of its project, and to nothing that others share. It reads documents as all do."""
    install(accounts.client, "limited", enforcer(KEYS, ["proj_1"]))
    table = CommandTable(accounts.client, "limited")
    others = ("sg:{proj_2}:f-counter", "sg:in:{proj_2}", f"{INTAKE}:rejected", IN_CODE, USAGE, SHARDS, SHARD, DENIALS)
    alike = (DOCUMENTS, LOG, TOKEN, DECISION_KEY, COUNTER, "sg:{global}:f-counter", HEARTBEAT, "sg:{fleet}:instances")
    found = {key: table.passing(key) for key in (INTAKE, *others, *alike)}
    enforcers = CommandTable(accounts.client, "enforcer")
    accounts.client.execute_command("ACL DELUSER", "limited")

    assert found[INTAKE] == {"xadd"}
    assert not any(found[key] for key in others)
    assert {key: found[key] for key in alike} == {key: enforcers.passing(key) for key in alike}
    assert enforcers.passing(INTAKE) == set()


def test_an_account_without_global_counters_refuses_what_falls_under_them(server, accounts, make_limiter, caplog):
    """It says why. Without a global policy, and with that right, it decides as all do."""
    install(accounts.client, "limited", enforcer(KEYS, [PROJECT], with_global=False))
    limiter = accounts.follow(make_limiter(url_of(server, "limited"), instance="proxy-1"))
    secret = accounts.everything(fixed(5))
    before = limiter.check(secret)
    everywhere = {"global": {"schema": 1, "policy": "pol_all"}, **accounts.policy("all", fixed(9, name="every"))}
    accounts.publish(everywhere)

    assert (before.allowed, before.source) == (True, "store")
    assert eventually(lambda: limiter.check(secret).reason == "degraded_denied")
    assert "store_acl --no-global" in caplog.text
    report = [[PROJECT, "all", "every", "global"]]
    assert eventually(lambda: report == json.loads(accounts.client.get(HEARTBEAT) or "{}").get("unsupported"))
    assert not list(accounts.client.scan_iter("sg:{global}:c:*"))
    accounts.publish({"global": {"schema": 1, "policy": None}})
    assert eventually(lambda: limiter.check(secret).source == "store", seconds=10)
    accounts.client.execute_command("ACL DELUSER", "limited")


@pytest.mark.parametrize(
    "command",
    [
        ("HSET", DOCUMENTS, "policy:pol_1", "{}"),
        ("HDEL", DOCUMENTS, "policy:pol_1"),
        ("DEL", DOCUMENTS),
        ("UNLINK", DOCUMENTS),
        ("EXPIRE", DOCUMENTS, 1),
        ("PEXPIRE", DOCUMENTS, 1),
        ("RENAME", DOCUMENTS, COUNTER),
        ("COPY", COUNTER, TOKEN),
        ("SET", TOKEN, "{}"),
        ("GETDEL", TOKEN),
        ("UNLINK", COUNTER, TOKEN),
        ("XADD", LOG, "*", "changes", "{}"),
        ("XTRIM", LOG, "MAXLEN", 0),
        ("XREAD", "STREAMS", USAGE, "0"),
        ("ZRANGE", "sg:{fleet}:instances", 0, -1),
        ("FUNCTION", "LOAD", "REPLACE", "#!lua name=sluicegate_3\nredis.register_function('f', function() end)"),
        ("FUNCTION", "DELETE", "sluicegate_3"),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "LIST"),
        ("EVAL", "return redis.call('HSET', KEYS[1], 'a', 'b')", 1, DOCUMENTS),
        ("EVAL", "return 1", 0),
        ("EVALSHA", "0" * 40, 0),
        ("SCRIPT", "LOAD", "return 1"),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("RANDOMKEY",),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("MONITOR",),
        ("PSUBSCRIBE", "*"),
        ("PUBLISH", "channel", "text"),
        ("ACL", "WHOAMI"),
        ("ACL", "SETUSER", "enforcer", "+@all"),
        ("CLIENT", "LIST"),
        ("SHUTDOWN", "NOSAVE"),
        ("MULTI",),
        ("OBJECT", "ENCODING", DOCUMENTS),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_an_enforcer_is_refused(as_enforcer, command):
    """Tried for real: it changes no policy, token or function, runs no code and sees no key that it does not know."""
    with pytest.raises(NoPermissionError):
        as_enforcer.execute_command(*command, NEVER_DECODE=True)


@pytest.mark.parametrize("key", [DOCUMENTS, LOG, TOKEN, USAGE, "sg:{lock}:publish"])
@pytest.mark.parametrize("function", re.findall(r"register_function\('(\w+)'", library_source()))
def test_a_function_reaches_no_other_key(as_enforcer, accounts, function, key):
    """What may be read directly cannot be passed as a counter: no function is a way around."""
    secret = accounts.everything(fixed(5))
    before = everything_published(accounts, secret)

    with pytest.raises(NoPermissionError):
        as_enforcer.fcall(function, 2, COUNTER, key, "", "1", "", "f|10|3600000000||", 1)

    assert everything_published(accounts, secret) == before


def test_a_document_is_no_counter(as_enforcer, accounts):
    """The call of a decision, as it is, with the hash of the documents in the counter's place."""
    accounts.everything(fixed(5))

    with pytest.raises(NoPermissionError, match="key"):
        as_enforcer.fcall(function("decide"), 1, DOCUMENTS, "", "1", "", "f|10|3600000000||", 1)


def test_an_enforcer_cannot_publish(as_enforcer, accounts):
    """Publishing is a function too, and FCALL is granted; its keys are not."""
    secret = accounts.everything(fixed(5))
    before = everything_published(accounts, secret)
    function, keys, args = publish_call(Publication(99, 1, "mine", {"global": None}, full=True, replace_all=True), KEYS)

    with pytest.raises(NoPermissionError):
        as_enforcer.fcall(function, len(keys), *keys, *args)

    assert everything_published(accounts, secret) == before


@pytest.mark.parametrize("key", [DOCUMENTS, TOKEN])
def test_a_key_that_no_call_declares_is_refused_inside_the_function(as_enforcer, accounts, key):
    """A function that writes where it was not told to, whoever wrote it, runs with the rights of its caller."""
    body = "function(_, args) return redis.call('SET', args[1], 'x') end"
    accounts.client.function_load(f"#!lua name=hole\nredis.register_function('hole', {body})", replace=True)

    with pytest.raises(ResponseError, match="permissions"):
        as_enforcer.fcall("hole", 0, key)

    accounts.client.function_delete("hole")
    assert accounts.client.exists(key) == 0


def test_a_tag_that_ends_early_is_no_counter(as_enforcer):
    """Names below a document's tag can be as long as those of limits in code, and are no such names."""
    with pytest.raises(NoPermissionError):
        as_enforcer.set("sg:{doc}:token:aaaaaaaaaaa}:x", "1")


def test_a_wildcard_in_the_prefix_is_an_ordinary_character(server, accounts):
    """A fleet under the prefix ``s*:`` does not reach the one under ``sg:``."""
    install(accounts.client, "enforcer", enforcer(Keys("s*:")))

    with connect(url_of(server, "enforcer")) as client:
        assert client.set("s*:{proj_1}:f-counter", "1")
        with pytest.raises(NoPermissionError):
            client.set(COUNTER, "1")


def test_an_enforcer_of_one_project_reaches_no_other(server, accounts):
    """A proxy that is not trusted with the others' counters has an account of its own."""
    install(accounts.client, "enforcer", enforcer(KEYS, ["proj_1"]))
    table = CommandTable(accounts.client, "enforcer")

    assert table.passing(COUNTER) == table.passing("sg:{global}:f-counter") == COUNTING
    assert table.passing("sg:{proj_2}:f-counter") == table.passing("sg:{proj_12}:f-counter") == set()
    assert table.passing(IN_CODE) == set()


# That it can do its work.


def test_every_command_inside_the_functions_is_granted(accounts):
    """A function that calls a new command works for an enforcer once acl.py grants it, and not before."""
    called = {name.lower() for name in re.findall(r"call\('([A-Z]+)'", library_source())}
    publishing, keeping = {"hget", "hset", "hdel", "xadd"}, {"srem"}

    assert called - publishing - keeping <= COUNTING | {"time"}


def test_tokens_are_decided(limiter, accounts):
    """Documents are loaded, the token is read, its limits are charged, and the server refused nothing."""
    secret = accounts.everything(fixed(2))

    decisions = [limiter.check(secret) for _ in range(3)]

    assert [(d.reason, d.source) for d in decisions] == [("ok", "store"), ("ok", "store"), ("limited", "store")]
    assert limiter.check(mint("live")).reason == "unknown_token"
    assert refused(accounts) == []


def test_the_global_policy_is_charged(limiter, accounts):
    """Its counters have a tag that is no project's."""
    secret = accounts.everything(fixed(5))
    documents = {"global": {"schema": 1, "policy": "pol_all"}, **accounts.policy("all", fixed(9, name="all"))}
    accounts.publish(documents)

    assert [state.remaining for state in limiter.check(secret).limits] == [8, 4]
    assert refused(accounts) == []


def test_values_are_enrolled_and_diverted(limiter, accounts):
    """A census is written by the same account as the counters that it counts."""
    limit = fixed(5, partition_by=["user"])
    secret = accounts.everything(limit)
    accounts.publish(accounts.project(partition_cap=1))
    decisions = [limiter.check(secret, attributes={"user": user}) for user in "abb"]

    assert [(d.source, d.limits[0].overflow) for d in decisions] == [("store", n > 0) for n in range(3)]
    assert refused(accounts) == []


def test_a_durable_quota_is_charged_and_written_down(limiter, accounts):
    """The set of changed counters has the tag of the counters, and so their rights."""
    secret = accounts.everything({"name": "month", "algorithm": "fixed_window", "quota": 9, "calendar": "month"})

    decision = limiter.check(secret)

    assert (decision.source, decision.remaining) == ("store", 8)
    assert accounts.client.scard(KEYS.dirty("proj_1")) == 2
    assert refused(accounts) == []


def test_all_algorithms_count_settle_and_reset(limiter, accounts):
    """An enforcer may reset what it may count: it could write the same counters to nothing anyway."""
    with limiter.admit(LIMITS, "user:1", costs=5) as admission:
        admission.settle(2)
    settled = [state.remaining for state in limiter.peek(LIMITS, "user:1").limits]
    with pytest.raises(ZeroDivisionError), limiter.admit(LIMITS, "user:1", costs=5):
        raise ZeroDivisionError
    cancelled = [state.remaining for state in limiter.peek(LIMITS, "user:1").limits]
    limiter.reset(LIMITS, "user:1")

    assert settled == cancelled == [7] * 5
    assert [state.remaining for state in limiter.peek(LIMITS, "user:1").limits] == [9] * 5
    assert limiter.hit(LIMITS, "user:1").source == "store"
    assert refused(accounts) == []


def test_slots_are_held_renewed_and_freed(limiter, accounts):
    """Renewal is a call of its own, from a thread of its own; here it comes after a third of a second."""
    limit = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=1)
    with limiter.admit(limit, "user:1"):
        ends = slot_ends(accounts)
        assert eventually(lambda: slot_ends(accounts) > ends)
        with pytest.raises(Denied), limiter.admit(limit, "user:1"):
            pass

    assert slot_ends(accounts) == 0
    assert refused(accounts) == []


def test_permits_are_leased_and_given_back(limiter, accounts):
    """Taking ahead and giving back are calls of the background."""
    limit = Limit(name="leased", quota=1_000_000, window_seconds=86_400, consistency="leased")

    assert eventually(lambda: limiter.hit(limit, "user:1").source == "lease")
    limiter.close()
    assert refused(accounts) == []


async def test_asyncio_works_with_the_same_rights(server, accounts):
    """The pipe of the asyncio limiter greets the store in its own way."""
    secret = accounts.everything(fixed(2))
    async with aio.Limiter(url_of(server, "enforcer"), timeout=1.0) as limiter:
        decision = await limiter.check(secret)

    assert (decision.reason, decision.source) == ("ok", "store")
    assert refused(accounts) == []


def test_heartbeat_and_usage_arrive_and_leaving_is_clean(limiter, accounts):
    """It is seen while it lives, is gone when it went, and its usage is in the stream."""
    secret = accounts.everything(fixed(2))
    limiter.check(secret)
    assert eventually(lambda: accounts.client.exists(HEARTBEAT) == 1)

    limiter.close()

    assert accounts.client.exists(HEARTBEAT) == 0
    assert accounts.client.zcard("sg:{fleet}:instances") == 0
    assert accounts.client.xlen(USAGE) >= 1
    assert refused(accounts) == []


def test_a_changed_policy_is_obeyed(limiter, accounts):
    """The log is followed: the change arrives without a new connection."""
    secret = accounts.everything(fixed(2))
    limiter.check(secret)

    accounts.publish(accounts.policy("api", fixed(50), version=2))

    assert limiter.check(secret).remaining == 48
    assert refused(accounts) == []


def test_lost_functions_are_left_to_the_publisher(limiter, accounts):
    """An enforcer may load none: it decides by each limit's own rule until someone who may has brought them back."""
    limit = Limit(name="window", quota=9, window_seconds=3_600)
    accounts.client.function_flush()
    without = limiter.hit(limit, "user:1")

    load_library(accounts.client)

    assert (without.allowed, without.source) == (True, "fallback")
    assert eventually(lambda: limiter.hit(limit, "user:2", costs=0).source == "store", seconds=10)
    # Whatever it tried, it was refused the one thing, and nothing it needs.
    assert {what for _, what in refused(accounts)} == {"function|load"}


def test_a_publisher_and_an_enforcer_share_a_store(server, accounts, limiter):
    """What is published with the one account is obeyed with the other."""
    publisher = World(url_of(server, "publisher"))
    publisher.followers.append(limiter)

    secret = publisher.everything(fixed(2))

    assert limiter.check(secret).remaining == 1
    assert refused(accounts) == []


def test_a_publisher_writes_no_counter_of_limits_in_code(server, accounts):
    """It may look at them and forget them, and charge none."""
    with connect(url_of(server, "publisher")) as publisher, pytest.raises(ResponseError, match="permissions"):
        publisher.fcall(function("decide"), 1, IN_CODE, "", "1", "", "f|10|3600000000||", 1)

    assert accounts.client.exists(IN_CODE) == 0


def test_what_a_publisher_may_write_of_a_project(accounts):
    """It settles reservations: it writes counters of projects and the global policy, and no more than that needs."""
    table = CommandTable(accounts.client, "publisher")
    looking = {"get", "mget", "sismember", "zcard", "zcount", "zrange", "zrangebyscore"}
    looking |= {"zrevrange", "zrevrangebyscore", "zscore"}
    keeping = {"fcall", "pfcount", "sadd", "srem", "unlink"}
    settling = {"pexpire", "set", "setrange", "zadd", "zrem", "zremrangebyscore"}

    assert table.passing(COUNTER) == looking | keeping | settling
    assert table.passing("sg:{global}:f-counter") == looking | keeping | settling
    assert table.passing(IN_CODE) == looking | keeping


@pytest.mark.parametrize("account", ["publisher", "worker"])
def test_the_control_plane_settles_reservations(server, accounts, limiter, account):
    """Of every algorithm, the census and slots, it gives back what was charged too much, and is refused nothing."""
    slots = Limit(name="slots", algorithm="concurrency", quota=9, window_seconds=60)
    by_user = fixed(9, name="user", partition_by=["u"])
    secret = accounts.everything(*(limit.to_json() for limit in (*LIMITS, slots)), by_user)
    made = limiter.reserve(secret, costs=5, attributes={"u": "ann"}, life=60)

    with connect(url_of(server, account)) as client:
        (row,) = open_reservations(client, KEYS, PROJECT)
        counts = count_reservations(client, KEYS, [PROJECT, "global"])
        lost = lost_reservations(client, KEYS, PROJECT)
        found, present = find_reservation(client, KEYS, made.id), present_reservations(client, KEYS, [made.id])
        changed = settle_reservation(client, KEYS, made.id, 2, marked_for_ms=60_000)
        marked = was_marked(client, KEYS, made.id)

    assert (row.id, counts[PROJECT].open, lost, present, marked) == (made.id, 1, {}, {made.id: True}, True)
    assert (found.id, [delta for _, delta in changed.charged()]) == (made.id, [-3] * 5 + [-5, -3])
    states = limiter.check(secret, 0, {"u": "ann"}).limits
    assert [state.remaining for state in states] == [7] * 5 + [9, 7]
    assert refused(accounts) == []


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "sliding_log", "token_bucket"])
def test_the_control_plane_limits_its_own_requests(server, accounts, algorithm):
    """Under a prefix of its own it decides, reports that it is alive, and is refused nothing."""
    limit = Limit(name="rest", quota=2, window_seconds=86_400, algorithm=algorithm)
    own = Keys(rest_prefix(KEYS.prefix))
    with Limiter(url_of(server, "publisher"), timeout=5.0, prefix=own.prefix) as limiter:
        decisions = [limiter.hit(limit, "rest:mgk_1") for _ in range(3)]
        assert eventually(lambda: accounts.client.exists(own.instances))

    assert [decision.allowed for decision in decisions] == [True, True, False]
    assert {decision.source for decision in decisions[:2]} == {"store"}
    assert refused(accounts) == []
    assert not accounts.client.exists(KEYS.instances)


@pytest.mark.parametrize("account", ["publisher", "worker"])
def test_the_control_plane_administers_no_store(accounts, account):
    """Neither account can empty the store, read or change its settings, its accounts, or other programs' keys."""
    table = CommandTable(accounts.client, account)

    assert table.passing("other") == set()
    dangerous = {"flushall", "flushdb", "config|set", "config|get", "acl|setuser", "acl|list", "keys", "monitor"}
    dangerous |= {"shutdown", "debug", "module|load", "function|delete", "function|flush", "script|flush", "replicaof"}
    assert table.passing_without_key() & dangerous == set()


# That it lasts.


def test_accounts_survive_a_restart(tmp_path):
    """With a file of accounts they are as they were, ``default`` stays off, and the enforcer works on."""
    file = tmp_path / "users.acl"
    lines = [acl_line(name, rules(KEYS), f"{name}-password") for name, rules in ACCOUNTS.items()]
    file.write_text("\n".join(["user default off", "user admin on nopass ~* &* +@all", *lines]) + "\n")
    limit = Limit(name="ever", quota=9, calendar="lifetime")

    with ValkeyServer(tmp_path / "data", config={"aclfile": f'"{file}"'}) as server:
        admin = connect(f"redis://admin:any@127.0.0.1:{server.port}/0")
        load_library(admin)
        admin.execute_command("ACL SAVE")
        limiter = Limiter(url_of(server, "enforcer"), timeout=1.0)
        first = limiter.hit(limit, "user:1")
        server.restart()
        assert eventually(lambda: limiter.peek(limit, "user:1").source == "store", seconds=10)
        second = limiter.hit(limit, "user:1")
        limiter.close()
        with connect(server.url) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with connect(url_of(server, "enforcer")) as client, pytest.raises(NoPermissionError):
            client.hset(DOCUMENTS, "policy:pol_1", "{}")
        admin.close()

    assert (first.remaining, second.remaining, second.source) == (8, 7, "store")


def everything_published(world: World, secret: str) -> list[object]:
    client = world.client
    return [client.hgetall(DOCUMENTS), client.get(KEYS.token(digest(secret))), client.xrange(LOG)]


def slot_ends(world: World) -> float:
    """When the one slot in the store ends, in microseconds; 0: there is none."""
    for key in world.client.scan_iter("sg:{*}:c*"):
        for _, score in world.client.zrange(key, 0, -1, withscores=True):
            return score
    return 0
