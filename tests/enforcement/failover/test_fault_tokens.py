"""What a process knows while the store is away: for how long, and after a start without it."""

import time

import pytest

from enforcement import Limit, Limiter
from enforcement.engine import decide
from enforcement.model.tokens import mint
from tests.enforcement.world import World, eventually, fixed

CODE = Limit(name="code", quota=100, window_seconds=3_600)


class Clock:
    """Monotonic seconds that a test may advance."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def started(own_server, clock):
    """Give a world, and a started limiter by whose clock time passes as the test says."""
    world = World(own_server.url)
    limiter = Limiter(own_server.url, timeout=0.1)
    limiter._engine.agent.clock.monotonic = clock
    limiter.start(0.0)
    world.followers.append(limiter)
    yield world, limiter
    limiter.close()


def test_an_unknown_token_costs_the_store_one_operation(started):
    """Whoever invents well-formed tokens makes the store read each once, and nothing else."""
    world, limiter = started
    world.everything(fixed(100))
    before = commands(world)
    reasons = {limiter.check(mint("live")).reason for _ in range(300)}
    after = commands(world)

    assert reasons == {"unknown_token"}
    assert after["mget"] - before.get("mget", 0) == 300
    assert [after.get(name, 0) - before.get(name, 0) for name in ("get", "hget")] == [0, 0]


def test_a_store_that_0_2_published_to_has_the_revision_in_its_documents(started):
    """An unknown token is unknown there too; in a store without documents it may be a known one."""
    world, limiter = started
    world.everything(fixed(100))
    world.client.delete(world.keys.revision)

    assert limiter.check(mint("live")).reason == "unknown_token"
    world.client.delete(world.keys.documents)
    assert limiter.check(mint("live")).reason == "degraded_denied"


def commands(world):
    """Return how often the store ran each command."""
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in world.client.info("commandstats").items()}


@pytest.mark.parametrize("rule", ["local", "allow"])
def test_tokens_are_good_for_ten_minutes_without_the_store(own_server, started, clock, rule):
    """The store alone would say that one was revoked; no rule of a limit makes up for that. Limits in code go on."""
    world, limiter = started
    secret = world.everything(fixed(100, on_store_failure=rule))
    assert limiter.check(secret).source == "store"
    own_server.kill()
    assert eventually(lambda: limiter.check(secret).source == "fallback")
    assert limiter.check(mint("live")).reason == "degraded_denied"

    clock.ahead = decide.TOKEN_TRUST_SECONDS - 60
    assert limiter.check(secret).allowed
    clock.ahead = decide.TOKEN_TRUST_SECONDS + 60
    refused = limiter.check(secret)
    assert (refused.allowed, refused.reason, refused.status, refused.degraded) == (False, "degraded_denied", 503, True)
    assert limiter.hit(CODE, "k").allowed

    own_server.start()
    assert eventually(lambda: limiter.check(secret).source == "store")


def test_a_token_without_limits_is_trusted_no_longer_either(own_server, started, clock):
    """Nothing is asked of the store for it, and yet the store would know that it was revoked."""
    world, limiter = started
    secret = world.everything()
    assert limiter.check(secret).allowed
    own_server.kill()
    assert eventually(lambda: limiter.stats().servers_away == 1)
    assert limiter.check(secret).allowed

    clock.ahead = decide.TOKEN_TRUST_SECONDS + 60
    assert limiter.check(secret).reason == "degraded_denied"


def test_control_with_the_store_there_tokens_do_not_grow_old(started, clock):
    """A day without a change is no day without the store: it confirms what is known every two seconds."""
    world, limiter = started
    secret = world.everything(fixed(100))
    clock.ahead = 86_400.0

    assert limiter.check(secret).source == "store"
    assert eventually(lambda: limiter.stats().documents_age_seconds is not None)


def flipped(content):
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize(
    "spoil", [flipped, lambda content: content[:-20], lambda content: b""], ids=["bit", "cut", "empty"]
)
def test_a_spoilt_copy_starts_nobody_with_half_of_the_truth(own_server, tmp_path, spoil):
    """A process that starts without the store ignores it, judges no token, and still decides what stands in code."""
    world = World(own_server.url)
    secret = world.everything(fixed(4))
    with Limiter(own_server.url, state_dir=tmp_path, timeout=0.1) as limiter:
        limiter.check(secret)
    own_server.kill()
    with Limiter(own_server.url, state_dir=tmp_path, timeout=0.1) as limiter:
        assert limiter.check(secret).allowed  # the copy is good, for now
    [copy] = tmp_path.glob("documents-*")
    copy.write_bytes(spoil(copy.read_bytes()))

    began = time.monotonic()
    with Limiter(own_server.url, state_dir=tmp_path, timeout=0.1) as limiter:
        assert time.monotonic() - began < 2.0
        assert limiter.revision == 0
        assert limiter.check(secret).reason == "degraded_denied"
        assert limiter.hit(CODE, "k").allowed
        assert limiter.stats().disk_failures == 1
        own_server.start()
        world = World(own_server.url)
        assert eventually(lambda: limiter.check(secret).source == "store")


def test_a_store_that_is_loading_is_away_and_waited_for(own_server):
    """It listens, and answers LOADING: decisions go on, it is asked seldom, and is used when it has read its data."""
    world = World(own_server.url)
    for number in range(60):
        world.client.set(f"weight:{number}", "x" * 100_000)
    world.client.bgrewriteaof()
    assert eventually(lambda: not world.client.info("persistence")["aof_rewrite_in_progress"])
    own_server.kill()
    # 60 keys of 25 ms: a second and a half in which it is there, and is not.
    own_server._directives |= {"key-load-delay": "25000", "loading-process-events-interval-bytes": "1024"}
    limiter, causes = Limiter(own_server.url, timeout=0.1), []
    process = own_server._spawn()
    try:
        assert eventually(
            lambda: causes.append(limiter.hit(CODE, "k").cause) or "loading" in limiter.stats().store_failures
        )
        assert eventually(lambda: limiter.hit(CODE, "k", 0).source == "store")
        stats = limiter.stats()
        assert stats.outages == 1
        assert sum(stats.store_failures.values()) < 30
    finally:
        limiter.close()
        process.terminate()
        process.wait(10)
