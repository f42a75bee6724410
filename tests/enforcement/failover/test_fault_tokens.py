"""What a process knows while the store is away: for how long, and after a start without it."""

import time

import pytest

from enforcement import Limit, Limiter
from enforcement.engine import agent, decide
from enforcement.model.tokens import mint
from enforcement.state import disk
from tests.enforcement.world import World, eventually, fixed
from tests.scale import scale

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


def test_a_limiter_that_is_started_again_trusts_tokens_no_longer(own_server, started, clock):
    """Nor does a forked child, which begins like that."""
    world, limiter = started
    secret = world.everything(fixed(100))
    assert limiter.check(secret).allowed
    own_server.kill()
    limiter.close()
    clock.ahead = decide.TOKEN_TRUST_SECONDS + 60
    limiter.start(0.0)
    assert limiter.check(secret).reason == "degraded_denied"


class HostClocks(disk.HostClock):
    """Clocks of a host that a test drives: seconds that have passed, and by how many the wall clock was set."""

    def __init__(self):
        self.passed = self.set_by = 0.0
        self.started = "first"

    def wall_us(self):
        return 1_800_000_000_000_000 + round((self.passed + self.set_by) * 1_000_000)

    def up_us(self):
        return 1_000_000_000 + round(self.passed * 1_000_000)

    def boot(self):
        return self.started


@pytest.mark.proof
@pytest.mark.usefixtures("quick_probes")
def test_trust_in_tokens_outlives_no_restarts(own_server, tmp_path, monkeypatch):
    """A crash loop in an outage: what the store confirmed last ends 600 s later, however often the process begins."""
    clocks = HostClocks()
    monkeypatch.setattr(agent, "HostClock", lambda: clocks)
    secret = World(own_server.url).everything(fixed(100_000))
    with Limiter(own_server.url, timeout=0.5, state_dir=tmp_path) as limiter:
        assert limiter.check(secret).allowed
        assert eventually(lambda: list(tmp_path.glob("confirmed-*")) and limiter._engine.agent._disk._saved[1])
    own_server.kill()
    restarts, reasons = scale(6, 50), []
    for number in range(restarts):
        clocks.passed = 1_000.0 * number / restarts
        clocks.set_by = -3_600.0 * (number % 2)  # set back and put right again
        with Limiter(own_server.url, timeout=0.05, state_dir=tmp_path) as limiter:
            reasons.append((clocks.passed, limiter.check(secret).reason))

    assert {reason for passed, reason in reasons if passed <= 580} == {"ok"}
    assert {reason for passed, reason in reasons if passed > 600} == {"degraded_denied"}


@pytest.mark.parametrize(
    ("passed", "set_by", "boot", "known"),
    [(60, 0, "first", 60), (60, -3_600, "first", 60), (60, 3_600, "first", 3_660), (60, 3_600, "second", 3_660),
     (60, 0, "second", 60), (60, -66, "second", disk.LONG_AGO_SECONDS), (60, 0, "", 60)],
)  # fmt: skip
def test_how_long_ago_the_store_confirmed(tmp_path, passed, set_by, boot, known):
    """The clock that nobody can set counts until the host is started anew, and what lies ahead was never."""
    clocks = HostClocks()
    disk.save_confirmation(tmp_path / "confirmed", 5.0, clocks)
    clocks.passed, clocks.set_by, clocks.started = passed, set_by, boot
    age = disk.unconfirmed_seconds(tmp_path / "confirmed", tmp_path / "documents", clocks)

    assert age == (known if known == disk.LONG_AGO_SECONDS else known + 5)


def test_a_confirmation_that_cannot_be_read_is_none(tmp_path, caplog):
    """What an earlier version has left is as old as its documents, and a spoilt file is no reason to trust."""
    (tmp_path / "documents").write_bytes(b"")
    assert 0 <= disk.unconfirmed_seconds(tmp_path / "none", tmp_path / "documents", disk.HostClock()) < 60
    (tmp_path / "confirmed").write_bytes(b"sluicegate-confirmed 1\n[1]\n")
    found = disk.unconfirmed_seconds(tmp_path / "confirmed", tmp_path / "documents", disk.HostClock())
    assert found == disk.LONG_AGO_SECONDS
    assert "Ignored when the store confirmed" in caplog.text


@pytest.mark.parametrize(("fleet_size", "told"), [(1, True), (2, False)])
def test_a_start_in_an_outage_names_the_settings(own_server, caplog, fleet_size, told):
    """Who knows nobody takes whole quotas, and says what would mend that."""
    own_server.kill()
    with Limiter(own_server.url, timeout=0.05, fleet_size=fleet_size) as limiter:
        assert eventually(lambda: limiter.hit(CODE, "k").degraded and limiter._engine.agent.degraded_since_us)
    assert ("SLUICEGATE_FLEET_SIZE" in caplog.text) == told


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
