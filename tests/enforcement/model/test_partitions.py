"""Caps on the values of an attribute: exact over the fleet, one call for a new value, an overflow counter beyond."""

import asyncio
import threading

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.model.documents import InvalidDocument, parse_project
from enforcement.model.partitions import life_us
from enforcement.model.strict_json import dumps
from enforcement.model.tokens import mint
from tests.enforcement.published import project as project_document
from tests.enforcement.world import PROJECT, World, eventually, fixed

CAP = 5


def by_user(quota, **more):
    """Return a limit that counts each user by itself."""
    return fixed(quota, name="user", partition_by=["user"], **more)


def capped(world, *limits, cap=CAP, everywhere=None, **token):
    """Publish a project with a small cap and a token under these limits; return the token's secret."""
    secret = mint("live")
    world.publish(
        {
            "global": {"schema": 1, "policy": everywhere},
            **world.policy("api", *limits),
            **world.project(partition_cap=cap),
        },
        {secret: world.token("pol_api", **token)},
    )
    return secret


def counters(world, tag=PROJECT):
    """Return the keys of all counters of a hash tag: all but censuses and what belongs to them."""
    found = world.client.keys(f"sg:{{{tag}}}:*")
    return {key for key in found if key.split(":")[2] not in ("n", "o", "m", "changed")}


@pytest.fixture
def fleet(server, world):
    """Give two started limiters of one store."""
    limiters = [Limiter(server.url, timeout=1.0) for _ in range(2)]
    for limiter in limiters:
        limiter.start(0.0)
    world.followers += limiters
    yield limiters
    for limiter in limiters:
        limiter.close()


@pytest.fixture
def limiter(fleet):
    """Give a started limiter."""
    return fleet[0]


def state_of_user(limiter, secret, user, **more):
    """Check a request of this user, and return the state of the limit that counts users."""
    decision = limiter.check(secret, attributes={"user": user}, **more)
    return next(state for state in decision.limits if state.name == "user")


def test_values_beyond_the_cap_share_a_counter(limiter, world):
    """Five users have what they are promised; all others together have it once."""
    secret = capped(world, by_user(10))
    states = [state_of_user(limiter, secret, f"u{number}") for number in range(8)]

    assert [(state.remaining, state.overflow) for state in states] == [(9, False)] * 5 + [
        (9, True),
        (8, True),
        (7, True),
    ]
    assert len(counters(world)) == CAP + 1
    assert limiter.check(secret, attributes={"user": "u9"}).explain()["limits"][0]["overflow"] is True


def test_who_has_a_place_keeps_it_on_every_process(fleet, world):
    """A process that meets a value for the first time asks the store whether it stands in the census."""
    secret = capped(world, by_user(10))
    for number in range(8):
        state_of_user(fleet[0], secret, f"u{number}")

    assert [(state_of_user(fleet[1], secret, f"u{n}").remaining) for n in (0, 4, 7)] == [8, 8, 6]


def test_a_new_value_costs_one_round_trip(limiter, world):
    """Whether it finds a place or not."""
    secret = capped(world, by_user(10))
    limiter.check(secret)
    for user in ("u0", *(f"u{number}" for number in range(CAP)), "beyond", "beyond"):
        world.client.config_resetstat()
        state_of_user(limiter, secret, user)
        assert world.client.info("commandstats")["cmdstat_fcall"]["calls"] == 1


def test_a_known_value_is_decided_by_the_plain_call(limiter, world):
    """Enrolment is not on the path of those who are enrolled."""
    secret = capped(world, by_user(10))
    state_of_user(limiter, secret, "u0")
    world.client.config_resetstat()
    state_of_user(limiter, secret, "u0")

    assert "cmdstat_zscore" not in world.client.info("commandstats")


def test_a_denied_newcomer_takes_no_place(limiter, world):
    """A denial writes nothing: not even a name."""
    secret = capped(world, by_user(10), fixed(0, name="none"))
    assert not limiter.check(secret, attributes={"user": "u0"}).allowed

    assert world.client.keys(f"sg:{{{PROJECT}}}:*") == [world.keys.dirty(PROJECT)]
    assert world.client.smembers(world.keys.dirty(PROJECT)) == {"whole"}


def test_a_place_that_is_free_again_is_taken(limiter, world, monkeypatch):
    """When a counter is surely gone, its value makes room, and one that shared the overflow counter moves in."""
    monkeypatch.setattr("enforcement.state.planner.RETRY_SECONDS", 0.0)
    secret = capped(world, by_user(10))
    for number in range(CAP + 1):
        state_of_user(limiter, secret, f"u{number}")
    (census,) = world.client.keys(f"sg:{{{PROJECT}}}:n:*")
    assert state_of_user(limiter, secret, "u5").overflow
    world.client.zadd(census, {world.client.zrange(census, 0, 0)[0]: 1})

    assert not state_of_user(limiter, secret, "u5").overflow
    assert world.client.zcard(census) == CAP


def test_the_cap_is_exact_when_all_ask_at_once(fleet, world):
    """Two processes' worth of threads with 60 values: as many counters as the cap says, and the shared one."""
    secret = capped(world, by_user(1_000), cap=20)

    def flood(limiter, start):
        for number in range(60):
            state_of_user(limiter, secret, f"u{(number * 7 + start) % 60}")

    threads = [threading.Thread(target=flood, args=(fleet[n % 2], 13 * n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(counters(world)) == 20 + 1


def test_a_flood_of_one_project_leaves_the_others_their_places(limiter, world):
    """Also under the global policy, where both are counted by the same limit."""
    capped(world)
    mine, other = mint("live"), mint("live")
    world.publish(
        {
            "global": {"schema": 1, "policy": "pol_all"},
            **world.policy("all", by_user(10)),
            **world.project(ident="proj_2", partition_cap=CAP),
        },
        {mine: world.token(), other: world.token(project="proj_2")},
    )
    flood = [state_of_user(limiter, mine, f"u{number}") for number in range(30)]
    victims = [state_of_user(limiter, other, f"v{number}") for number in range(CAP)]

    assert sum(state.overflow for state in flood) == 30 - CAP
    assert not any(state.overflow for state in victims)
    assert len(counters(world, "global")) == 2 * CAP + 1


def test_a_settlement_finds_the_overflow_counter(limiter, world):
    """What was reserved there is given back there."""
    secret = capped(world, by_user(100), cap=1)
    state_of_user(limiter, secret, "u0")
    with limiter.admit(secret, costs=40, attributes={"user": "u1"}) as admission:
        admission.settle(10)

    assert state_of_user(limiter, secret, "u2").remaining == 100 - 10 - 1


def test_each_part_of_a_decision_has_its_own_census(limiter, world):
    """A request may have its own counter under one limit and share one under another."""
    by_model = fixed(10, name="model", partition_by=["model"])
    secret = capped(world, by_user(10), by_model, cap=2)
    decisions = [
        limiter.check(secret, attributes={"user": f"u{n}", "model": m}) for n, m in enumerate(["a", "a", "b", "b", "c"])
    ]

    assert [[state.overflow for state in decision.limits] for decision in decisions] == [
        [False, False],
        [False, False],
        [True, False],
        [True, False],
        [True, True],
    ]


def test_the_same_awaited(server, world):
    """The asyncio limiter asks in the same steps."""
    secret = capped(world, by_user(10))

    async def flood():
        async with aio.Limiter(server.url, timeout=1.0) as limiter:
            return await asyncio.gather(
                *(limiter.check(secret, attributes={"user": f"u{number}"}) for number in range(40))
            )

    decisions = asyncio.run(flood())
    assert sum(decision.limits[0].overflow for decision in decisions) == 35
    assert sum(decision.allowed for decision in decisions) == CAP + 10


def test_a_store_without_the_library_gets_it_from_whoever_enrols(limiter, world):
    """A new value is no harder to decide on than a known one."""
    secret = capped(world, by_user(10))
    limiter.check(secret)
    world.client.function_flush()

    assert state_of_user(limiter, secret, "u0").remaining == 9
    assert limiter.check(secret, attributes={"user": "u1"}).source == "store"


@pytest.mark.parametrize(
    "shape",
    [
        {"algorithm": "fixed_window", "window_seconds": 3_600},
        {"algorithm": "fixed_window", "calendar": "month", "time_zone": "Europe/Berlin"},
        {"algorithm": "fixed_window", "calendar": "lifetime"},
        {"algorithm": "sliding_window", "window_seconds": 60},
        {"algorithm": "sliding_log", "window_seconds": 60},
        {"algorithm": "token_bucket", "window_seconds": 60, "burst": 1_000},
        {"algorithm": "concurrency", "window_seconds": 60},
    ],
    ids=lambda shape: shape.get("calendar") or shape["algorithm"],
)
def test_a_value_stands_in_the_census_for_longer_than_its_counter_lives(limiter, world, shape):
    """So that none is forgotten while its counter is there, however late it was charged last."""
    spec = {"name": "user", "quota": 1_000, "partition_by": ["user"], **shape}
    secret = capped(world, spec)
    with limiter.admit(secret, costs=1_000, attributes={"user": "u0"}):
        (counter,) = counters(world)
        (census,) = world.client.keys(f"sg:{{{PROJECT}}}:n:*")
        seconds, fraction = world.client.time()
        left_us = world.client.zrange(census, 0, 0, withscores=True)[0][1] - seconds * 1_000_000 - fraction
        trusted_us = 300_000_000

        assert world.client.pttl(counter) * 1_000 + trusted_us < left_us <= life_us(Limit(**spec))
        assert world.client.pttl(census) * 1_000 >= left_us - 1_000_000


def test_an_outage_fills_no_census_beyond_its_cap(own_server):
    """While the store is away each process keeps to the cap by itself; afterwards all that it admitted is charged."""
    world = World(own_server.url)
    secret = capped(world, by_user(50))
    with Limiter(own_server.url, timeout=0.1) as limiter:
        state_of_user(limiter, secret, "u0")
        limiter._engine.health.breaker.trip("test")
        states = [state_of_user(limiter, secret, f"v{number}") for number in range(10)]
        assert eventually(lambda: not limiter._engine.health.breaker.open and not limiter.stats().journal_entries)
        total = [state_of_user(limiter, secret, user, costs=0).remaining for user in ("v0", "v9")]

    assert [state.overflow for state in states] == [False] * 5 + [True] * 5
    assert len(counters(world)) == CAP + 1
    # Four of v0 to v4 found a place beside u0. The fifth is charged to the overflow counter, like v5 to v9.
    assert total == [49, 50 - 6]


@pytest.mark.parametrize("cap", [0, -1, 1_000_001, True, 1.5, "10", None])
def test_a_cap_that_is_none_is_refused(cap):
    """The last good document stays then; a project without the field has the default."""
    with pytest.raises(InvalidDocument):
        parse_project(dumps({**project_document(), "partition_cap": cap}))
    assert parse_project(dumps(project_document())).partition_cap == 10_000


@pytest.mark.parametrize("ident", ["global", "doc", "proj_", "proj_{x}", "proj_" + "a" * 36, "proj_ü"])
def test_a_project_whose_id_is_no_hash_tag_is_refused(ident):
    """It would be the tag of other keys, or none."""
    with pytest.raises(InvalidDocument, match="id"):
        parse_project(dumps(project_document(ident)))


def test_decisions_by_overflow_counters_are_counted(limiter, world):
    """Eight users where five have counters: three decisions, and two more of one of them."""
    secret = capped(world, by_user(10))
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 7, 7):
        state_of_user(limiter, secret, f"u{number}")

    assert limiter.stats().overflow_decisions == 5


def test_a_slot_that_is_held_for_long_keeps_its_place(limiter, world):
    """Renewals say of its value what they say of the slot: it is still here."""
    slots = {"name": "user", "algorithm": "concurrency", "quota": 2, "window_seconds": 1, "partition_by": ["user"]}
    secret = capped(world, slots, fixed(100, name="all"))
    with limiter.admit(secret, attributes={"user": "u0"}):
        (census,) = world.client.keys(f"sg:{{{PROJECT}}}:n:*")
        (value,) = world.client.zrange(census, 0, -1)
        world.client.zadd(census, {value: 1})

        assert eventually(lambda: world.client.zscore(census, value) > world.client.time()[0] * 1_000_000)
    assert limiter.check(secret, attributes={"user": "u0"}, costs=0).limits[0].remaining == 2


def test_leases_do_not_outlive_the_trust_in_an_enrolment(limiter, world):
    """Permits at hand run out, and the next request says again that the value is here."""
    secret = capped(world, by_user(10_000_000, consistency="leased"))

    def sources(number=50):
        return {limiter.check(secret, attributes={"user": "u0"}).source for _ in range(number)}

    assert eventually(lambda: sources() == {"lease"})
    (census,) = world.client.keys(f"sg:{{{PROJECT}}}:n:*")
    before = world.client.zrange(census, 0, 0, withscores=True)[0][1]
    plan = limiter._engine.planner.plan_of(limiter._engine.planner.find(secret), {"user": "u0"})
    plan.registered_until = 0.001

    assert eventually(lambda: sources() and world.client.zrange(census, 0, 0, withscores=True)[0][1] > before)


def test_a_denial_by_the_overflow_counter_says_that_it_is_shared(limiter, world):
    """Whoever is denied for others' requests is told so."""
    secret = capped(world, by_user(1), cap=1)
    for user in ("u0", "u1"):
        assert limiter.check(secret, attributes={"user": user}).allowed
    denied = limiter.check(secret, attributes={"user": "u2"})

    assert denied.problem()["detail"].startswith(
        "user has 0 of 1 requests left for all values beyond the project's cap together. Try again in "
    )


def test_a_publication_makes_nobody_a_newcomer(limiter, world):
    """Plans are made anew then; that a value was enrolled a moment ago is still true."""
    secret = capped(world, by_user(10))
    state_of_user(limiter, secret, "u0")
    world.publish(world.policy("api", by_user(20), version=2))
    world.client.config_resetstat()

    assert state_of_user(limiter, secret, "u0").remaining == 20 - 2
    assert "cmdstat_zscore" not in world.client.info("commandstats")


def test_an_estimate_that_cannot_be_kept_stops_no_decision(limiter, world):
    """A key of another type in its place, or an account without the right: the overflow counter counts all the same."""
    secret = capped(world, by_user(10), cap=1)
    state_of_user(limiter, secret, "u0")
    (census,) = world.client.keys(f"sg:{{{PROJECT}}}:n:*")
    beyond = census.replace("}:n:", "}:o:")
    world.client.lpush(beyond, "x")
    decisions = [limiter.check(secret, attributes={"user": user}) for user in ("u1", "u2")]

    assert [(d.source, d.limits[0].remaining) for d in decisions] == [("store", 9), ("store", 8)]
    assert world.client.type(beyond) == "list"
