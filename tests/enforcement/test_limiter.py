"""The public calls of the limiter, on a real store."""

import asyncio
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from redis import Redis

from enforcement import Denied, Limit, Limiter, aio
from enforcement.model.tokens import mint
from tests.enforcement.world import eventually, fixed, look_ups

ONE = Limit(name="one", quota=5, window_seconds=3_600)


def test_a_token_is_charged_to_its_policy(limiter, world):
    """Two of two pass; the third is denied with what a client needs to know."""
    secret = world.everything(fixed(2))

    decisions = [limiter.check(secret) for _ in range(3)]

    assert [d.reason for d in decisions] == ["ok", "ok", "limited"]
    assert [d.remaining for d in decisions] == [1, 0, 0]
    assert decisions[2].status == 429
    assert decisions[2].retry_after_ms > 0


def test_global_project_and_token_policies_are_one_decision(limiter, world):
    """The tightest of the three decides, and a denial charges none."""
    secret = mint("live")
    documents = {
        "global": {"schema": 1, "policy": "pol_all"},
        **world.policy("all", fixed(100, name="all")),
        **world.policy("shop", fixed(50, name="shop")),
        **world.policy("own", fixed(2, name="own")),
        **world.project("pol_shop"),
    }
    world.publish(documents, {secret: world.token("pol_own")})

    states = [limiter.check(secret) for _ in range(4)][-1].limits

    assert [(s.name, s.remaining, s.allowed) for s in states] == [
        ("all", 98, True),
        ("shop", 48, True),
        ("own", 0, False),
    ]


@pytest.mark.parametrize(
    ("changes", "reason", "status"),
    [
        ({"revoked": True}, "revoked", 401),
        ({"expires_at_us": time.time_ns() // 1_000 - 1}, "expired", 401),
        ({"project": "proj_other"}, "degraded_denied", 503),
        ({"policy": "pol_missing"}, "degraded_denied", 503),
    ],
)
def test_a_token_that_may_not_pass_has_its_own_reason(limiter, world, changes, reason, status):
    """Such a denial is no rate limit, and a project or policy that cannot be found is not no limit."""
    secret = mint("live")
    world.publish({"global": {"schema": 1, "policy": None}, **world.project()}, {secret: world.token(**changes)})

    decision = limiter.check(secret)

    assert (decision.reason, decision.status) == (reason, status)
    assert "RateLimit" not in decision.headers()


@pytest.mark.parametrize("token", ["", "x", "sg_live_" + "a" * 49, "é" * 57, "sg_live_" + "0" * 100_000, None, 7])
def test_garbage_never_reaches_the_store(limiter, world, token):
    """What could not have been minted is refused here."""
    world.everything(fixed(2))
    asked = look_ups(limiter)

    assert limiter.check(token).reason == "unknown_token"
    assert asked == []


@pytest.mark.parametrize("token", [None, b"sg_live_x"])
def test_a_header_that_is_missing_or_not_decoded_is_no_known_token_either(limiter, token):
    """To admit it is denied, as to check it is: an application then answers 401, and not with a stack trace."""
    with pytest.raises(Denied) as denied:
        limiter.open_admission(token, attributes={"path": "/"})
    assert (denied.value.decision.reason, denied.value.decision.status) == ("unknown_token", 401)
    with pytest.raises(TypeError, match="limits: must be Limit values"):
        limiter.open_admission(None, "key")


@pytest.mark.parametrize("folder", ["", 5, b"state", "a\0b"])
def test_a_state_directory_is_the_path_of_a_folder(folder):
    """An empty one would be the folder in which the process happens to run."""
    with pytest.raises(ValueError, match="state_dir: must be the path of a folder, got"):
        Limiter(state_dir=folder)


def test_an_unknown_token_is_asked_for_once(limiter, world):
    """The store's "there is none" is believed for a while."""
    world.everything(fixed(2))
    secret, asked = mint("live"), look_ups(limiter)

    assert [limiter.check(secret).reason for _ in range(2)] == ["unknown_token"] * 2
    assert len(asked) == 1


def test_a_change_is_live_without_a_restart(limiter, world):
    """A raised quota keeps what was used."""
    secret = world.everything(fixed(2))
    limiter.check(secret)
    revision = world.publish(world.policy("api", fixed(10), version=2))

    assert eventually(lambda: limiter.revision == revision)
    assert limiter.check(secret).remaining == 8


def test_a_suspended_project_is_refused(limiter, world):
    """None of its tokens passes any longer."""
    secret = world.everything(fixed(10))
    assert limiter.check(secret).allowed
    world.publish(world.project(active=False))

    assert (limiter.check(secret).reason, limiter.check(secret).status) == ("inactive_project", 403)


def test_a_revoked_token_is_refused(limiter, world):
    """The cache does not outlive the revocation."""
    secret = world.everything(fixed(10))
    assert limiter.check(secret).allowed
    world.publish(tokens={secret: world.token("pol_api", revoked=True)})

    assert eventually(lambda: limiter.check(secret).reason == "revoked")


def test_an_override_holds_until_its_end(limiter, world):
    """It replaces the quota of one limit of one token."""
    override = {"id": "ovr_1", "policy": "pol_api", "limit": "rpm", "quota": 7, "burst": None, "ends_at_us": None}
    secret = world.everything(fixed(2), overrides=[override])
    ended = world.everything(fixed(2), overrides=[{**override, "ends_at_us": 1}])

    assert limiter.check(secret).limit.quota == 7
    assert eventually(lambda: limiter.check(ended).limit is not None)
    assert limiter.check(ended).limit.quota == 2
    assert limiter.check(secret).explain()["limits"][0]["override"] == "ovr_1"


@pytest.mark.parametrize(
    "shape",
    [
        {"algorithm": "fixed_window"},
        {"algorithm": "sliding_window"},
        {"algorithm": "sliding_log"},
        {"algorithm": "fixed_window", "consistency": "leased"},
    ],
    ids=lambda shape: "-".join(shape.values()),
)
def test_an_override_with_a_burst_outlives_the_bucket(limiter, world, shape):
    """The limit got another algorithm, which has no burst: the override's quota holds, and no request fails for it."""
    override = {"id": "ovr_1", "policy": "pol_api", "limit": "rpm", "quota": 7, "burst": 9, "ends_at_us": None}
    bucket = world.everything({**fixed(2), "algorithm": "token_bucket"}, overrides=[override])
    assert limiter.check(bucket).limit.capacity == 9

    changed = world.everything({**fixed(2), **shape}, overrides=[override])

    assert eventually(lambda: limiter.check(changed, costs=0).limit is not None)
    assert (limiter.check(changed).limit.quota, limiter.check(bucket).limit.quota) == (7, 7)


def test_a_decision_tells_who_made_it(limiter, world):
    """Source, revision, and of the limit that decides: policy, override, counter; each in the place that made it."""
    override = {"id": "ovr_1", "policy": "pol_api", "limit": "tight", "quota": 1, "burst": None, "ends_at_us": None}
    secret = world.everything(fixed(9), fixed(5, name="tight"), overrides=[override])
    decisions = [limiter.check(secret) for _ in range(3)]
    limiter._engine.health.breaker.trip("test")
    decisions.append(limiter.check(secret, costs=2))
    told = [decision.explain() for decision in decisions]

    assert [it["source"] for it in told] == ["store", "store", "denial_cache", "fallback"]
    assert {it["revision"] for it in told} == {world.revision}
    assert [it["decided_by"]["limit"] for it in told] == ["tight"] * 4
    decider = told[0]["decided_by"]
    assert decider.items() >= {"policy": "api", "scope": "token", "override": "ovr_1", "quota": 1}.items()
    assert decider == told[3]["limits"][1]
    assert world.client.exists(decider["counter"])


def test_limits_match_and_count_by_attributes(limiter, world):
    """A limit falls on requests that carry all its attributes, and each value has its own counter."""
    by_model = fixed(1, name="model", partition_by=["model"], match={"methods": ["POST"], "path": "/v1/*"})
    secret = world.everything(by_model)
    post = {"method": "POST", "path": "/v1/chat"}

    allowed = [limiter.check(secret, attributes={**post, "model": m}).allowed for m in ("a", "a", "b", "b")]

    assert allowed == [True, False, True, False]
    assert limiter.check(secret, attributes={"method": "GET", "path": "/v1/chat", "model": "a"}).limits == ()
    assert limiter.check(secret, attributes=post).limits == ()
    assert limiter.check(secret).allowed


@pytest.mark.parametrize(
    "costs",
    [-1, 1.5, True, "1", None, {"requests": -1}, {"tokens": 1.0}, {1: 1}, 2**53, pytest.param(10**5_000, id="huge")],
)
def test_costs_that_are_no_whole_numbers_are_errors(limiter, costs):
    """Nothing is charged for them. The last one is longer than Python would print."""
    with pytest.raises(ValueError, match="costs"):
        limiter.hit(ONE, "bad-costs", costs)
    assert limiter.peek(ONE, "bad-costs").remaining == 5


def test_calls_that_make_no_sense_are_errors(limiter):
    """Two limits of one name, none, attributes in code, a slot that is hit, a key that is none."""
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
    for limits, key in [([ONE, ONE], "k"), ([], "k"), (slots, "k"), (ONE, ""), (ONE, "k" * 2_000)]:
        with pytest.raises(ValueError, match=r"limits|key"):
            limiter.hit(limits, key)
    for none in ("100/minute", [None], [ONE, "100/minute"]):
        with pytest.raises(TypeError, match="limits"):
            limiter.hit(none, "k")


@pytest.mark.parametrize("limits", ["5/minute", ["5/minute"], ("one", ONE), [None]])
def test_what_is_no_limit_is_named_and_told_how_to_become_one(limiter, limits):
    """Texts are what people know from other libraries."""
    for call in (limiter.hit, limiter.peek, limiter.reset):
        with pytest.raises(TypeError, match=r"^limits: must be Limit values, got .*\. Limit\.parse\(\) makes one"):
            call(limits, "k")


@pytest.mark.parametrize(
    ("subject", "keywords", "name"),
    [("5/minute", {"key": "k"}, "key"), (ONE, {"key": "k", "attributes": {"path": "/"}}, "attributes")],
)
def test_an_admission_is_of_a_token_or_of_limits(limiter, server, subject, keywords, name):
    """A text with a key is a limit that was not parsed; taken for a token it would be denied, and nobody see why."""
    with pytest.raises(TypeError, match=f"^{name}: must be None"), limiter.admit(subject, **keywords):
        pytest.fail("entered")

    async def awaited():
        async with aio.Limiter(server.url).admit(subject, **keywords):
            pytest.fail("entered")

    with pytest.raises(TypeError, match=f"^{name}: must be None"):
        asyncio.run(awaited())


@pytest.mark.parametrize("kind", [Limiter, aio.Limiter])
@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("timeout", [0, -1, 25, "0.025", None, True, float("nan")]),
        ("lookup", [0, -1, 250, "0.25", None, True, float("nan")]),
        ("prefix", ["", "x" * 17, "{a}", 5, None]),
        ("instance", ["", "a b", 5]),
        ("clock", [5, time.time, lambda: None]),
    ],
)
def test_a_limiter_that_could_not_decide_is_not_made(kind, keyword, values):
    """Milliseconds for seconds, seconds for microseconds: said at once, by name, and not by the first request."""
    for value in values:
        with pytest.raises(ValueError, match=f"^{keyword}: must be "):
            kind("redis://127.0.0.1:1/0", **{keyword: value})


def test_a_remembered_denial_answers_for_its_own_cost_alone(limiter):
    """The same cost is denied from memory. Of every other cost the store decides."""
    limiter.hit(ONE, "memory", costs=4)
    reasons = [(d.reason, d.source) for d in (limiter.hit(ONE, "memory", costs=c) for c in (2, 2, 3, 6, 1, 2))]

    assert reasons == [
        ("limited", "store"),
        ("limited", "denial_cache"),
        ("limited", "store"),
        ("cost_exceeds_capacity", "store"),
        ("ok", "store"),
        ("limited", "store"),
    ]


@pytest.mark.parametrize("algorithm", ["sliding_window", "sliding_log", "token_bucket"])
def test_a_greater_cost_is_told_its_own_wait(limiter, algorithm):
    """What gives back little by little lets a greater cost pass later than the one that was denied before."""
    limit = Limit(name="slow", algorithm=algorithm, quota=10, window_seconds=3_600)
    first = limiter.hit(limit, algorithm)
    # A log tells the two apart by when they came, in milliseconds.
    assert eventually(lambda: limiter.peek(limit, algorithm).decided_at_us > first.decided_at_us + 50_000)
    limiter.hit(limit, algorithm, 9)
    denied = [limiter.hit(limit, algorithm, costs) for costs in (1, 1, 10)]

    assert [decision.source for decision in denied] == ["store", "denial_cache", "store"]
    assert denied[2].retry_after_ms > denied[0].retry_after_ms


def test_a_limit_that_admitted_a_cost_is_asked_about_a_greater_one(limiter):
    """Of two windows one denies what was asked first, and both the cost that is asked next."""
    spent, wide = Limit(name="spent", quota=1, window_seconds=60), Limit(name="wide", quota=5, window_seconds=3_600)
    limiter.hit([spent, wide], "two")
    denied = [limiter.hit([spent, wide], "two", costs) for costs in (1, 5)]

    assert [decision.denied_by for decision in denied] == [("spent",), ("spent", "wide")]


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize("way", ["refund", "reset"])
def test_a_remembered_denial_does_not_outlive_what_another_process_gives_back(limiter, server, way):
    """It may be told for a quarter of a second; here what this process gives back itself ends it at once."""
    with Limiter(server.url, timeout=1.0) as other:
        with other.admit(ONE, f"elsewhere-{way}", costs=5) as admission:
            sources = [limiter.hit(ONE, f"elsewhere-{way}").source for _ in range(3)]
            if way == "refund":
                admission.cancel()
            else:
                other.reset(ONE, f"elsewhere-{way}")
            given_back = time.monotonic()
        while not limiter.hit(ONE, f"elsewhere-{way}").allowed:
            assert time.monotonic() - given_back < 0.35
    with limiter.admit(ONE, f"here-{way}", costs=5) as admission:
        denied = limiter.hit(ONE, f"here-{way}").allowed
        if way == "refund":
            admission.cancel()
        else:
            limiter.reset(ONE, f"here-{way}")
        passed = limiter.hit(ONE, f"here-{way}").allowed

    assert sources == ["store", "denial_cache", "denial_cache"]
    assert (denied, passed) == (False, True)


def test_a_remembered_denial_ends_when_time_alone_lets_it_pass(limiter):
    """A bucket that refills in ten milliseconds is asked again after ten, not after a quarter of a second."""
    bucket = Limit(name="bucket", algorithm="token_bucket", quota=100, burst=1, window_seconds=1)
    while (denied := limiter.hit(bucket, "refills")).allowed:
        pass  # again, if there were ten milliseconds between two calls
    began = time.monotonic()
    while not limiter.hit(bucket, "refills").allowed:
        assert time.monotonic() - began < 0.2

    assert 0 < denied.retry_after_ms <= 10


def test_denials_told_from_memory_are_counted(limiter, world):
    """Usage knows each of them, though the store was asked once."""
    secret = world.everything(fixed(1))
    sources = [limiter.check(secret).source for _ in range(50)]
    limiter.close()
    rows = [row for _, entry in world.client.xrange(world.keys.usage) for row in json.loads(entry["rows"])]

    assert sources.count("denial_cache") >= 40
    assert sum(row[7] for row in rows if row[3] == "") == 49
    assert sum(row[7] for row in rows if row[3] == "pol_api") == 49


def test_leaving_by_an_exception_gives_back(limiter):
    """The estimate returns, and once settled it stays."""
    with pytest.raises(RuntimeError), limiter.admit(ONE, "gives-back", costs=4):
        raise RuntimeError
    assert limiter.peek(ONE, "gives-back").remaining == 5
    with suppress(RuntimeError), limiter.admit(ONE, "gives-back", costs=4) as admission:
        admission.settle(2)
        raise RuntimeError
    assert limiter.peek(ONE, "gives-back").remaining == 3


def test_denied_admission_raises(limiter):
    """The block is not entered, and the decision travels with the exception."""
    with pytest.raises(Denied) as caught, limiter.admit(ONE, "denied", costs=6):
        pytest.fail("entered")
    assert caught.value.decision.reason == "cost_exceeds_capacity"


def test_charge_on_spares_other_answers(limiter, world):
    """A limit that is charged for 2xx gives its estimate back for a 502."""
    secret = world.everything(fixed(5, charge_on=["2xx"]))
    assert limiter.find_plan(secret, None).has_charge_on
    for status in (200, 502, 204):
        with limiter.admit(secret) as admission:
            admission.charge_for(status)

    assert limiter.check(secret, costs=0).remaining == 3


def test_a_slot_is_renewed_while_its_block_runs(limiter, server):
    """A lifetime of a second does not end a block that lasts longer; the time is the store's own."""
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=1)
    with limiter.admit(slots, "long") as admission:
        key = admission.reservation.slots()[0][0].key
        client = limiter._engine.agent._client
        ends = float(client.zrange(key, 0, 0, withscores=True)[0][1])
        assert eventually(lambda: float(client.zrange(key, 0, 0, withscores=True)[0][1]) > ends)
        assert not limiter.peek(slots, "long").allowed
    assert limiter.peek(slots, "long").allowed


def test_threads_share_one_limiter(limiter):
    """Fifty calls of eight threads for a quota of 5 admit 5."""
    with ThreadPoolExecutor(8) as threads:
        allowed = list(threads.map(lambda _: limiter.hit(ONE, "threads").allowed, range(50)))
    assert sum(allowed) == 5


def test_a_forked_child_goes_on(limiter, world):
    """It has connections and a thread of its own; replies are not mixed with its parent's."""
    secret = world.everything(fixed(100))
    limiter.check(secret)
    child = os.fork()
    if child == 0:
        ok = all(limiter.check(secret).source == "store" for _ in range(10))
        os._exit(0 if ok else 1)
    here = [limiter.check(secret).source for _ in range(10)]
    assert os.waitpid(child, 0)[1] == 0
    assert here == ["store"] * 10
    assert limiter.check(secret, costs=0).remaining == 100 - 21


def test_a_reset_that_comes_first_starts_the_background(server, world):
    """The limiter then finds a lost store again by itself, as after any other first call."""
    limiter = Limiter(server.url, timeout=1.0)
    limiter.reset(ONE, "first")
    limiter._engine.health.breaker.trip("test")

    assert eventually(lambda: limiter.hit(ONE, "first").source == "store")
    limiter.close()


@pytest.mark.usefixtures("no_documents")
async def test_an_awaited_reset_that_comes_first_starts_the_background(server, world):
    """As with threads."""
    async with aio.Limiter(server.url, timeout=1.0) as other:
        await other.reset(ONE, "awaited")
    limiter = aio.Limiter(server.url, timeout=1.0)
    await limiter.reset(ONE, "awaited")

    assert limiter._engine.agent._thread is not None
    await limiter.close()


@pytest.mark.usefixtures("no_documents")
def test_a_reset_gives_a_store_without_the_functions_what_it_lacks(own_server):
    """A reset that was not executed is sent once more, as a decision is."""
    with Limiter(own_server.url, timeout=1.0) as limiter, Redis.from_url(own_server.url) as client:
        limiter.hit(ONE, "k")
        client.function_flush()
        limiter.reset(ONE, "k")

        assert limiter.peek(ONE, "k").remaining == 5


def test_a_reply_can_still_be_read_by_position(limiter):
    """Programs of 0.2.0 read a decision's reply as a tuple of so many numbers a limit."""
    decision = limiter.hit(ONE, "positions")

    assert (decision.width, len(decision.reply), decision.reply[0], decision.reply[2]) == (4, 6, 1, 4)


def test_threads_may_drop_a_remembered_denial_under_each_other(limiter, monkeypatch):
    """A denial that one thread finds expired may be gone for another that is about to read it."""
    monkeypatch.setattr("enforcement.state.denial_cache.DENIAL_SECONDS", 0.000_02)
    limiter.hit(ONE, "threads", 5)
    switching = sys.getswitchinterval()
    sys.setswitchinterval(0.000_001)
    try:
        with ThreadPoolExecutor(4) as pool:
            denied = list(pool.map(lambda _: limiter.hit(ONE, "threads").allowed, range(8_000)))
    finally:
        sys.setswitchinterval(switching)

    assert not any(denied)


def test_requests_that_come_at_the_same_time_all_wait_for_the_first_documents(server, world):
    """The first one waited, and the others were denied, as if the store were away: three of four."""
    secret, threads = world.everything(fixed(1_000_000)), 4
    for _ in range(5):
        start = threading.Barrier(threads)

        def ask(limiter, start=start):
            start.wait()
            return limiter.check(secret)

        limiter = Limiter(server.url, timeout=1.0)
        with ThreadPoolExecutor(threads) as pool:
            decisions = list(pool.map(ask, [limiter] * threads))
        limiter.close()
        assert {(decision.source, decision.reason) for decision in decisions} == {("store", "ok")}


async def test_tasks_that_come_at_the_same_time_all_wait_for_the_first_documents(server, world):
    """Also after a limit in code, which needs no documents and has started the background thread."""
    secret = world.everything(fixed(1_000_000))
    for begins in (False, True):
        limiter = aio.Limiter(server.url, timeout=1.0)
        if begins:
            await limiter.hit(ONE, "user:1")
        decisions = await asyncio.gather(*[limiter.check(secret) for _ in range(20)])
        await limiter.close()
        assert {(decision.source, decision.reason) for decision in decisions} == {("store", "ok")}
