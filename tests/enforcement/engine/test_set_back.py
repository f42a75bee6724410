"""A store that was set back, emptied or moved: an earlier state of the same epoch is never obeyed."""

import shutil
import time
from contextlib import contextmanager

import pytest

from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from enforcement.model.documents import StateName, epoch_of, with_epoch
from enforcement.model.strict_json import dumps
from enforcement.model.tokens import digest, mint
from tests.enforcement.faults import FaultyPath
from tests.enforcement.world import World, eventually, fixed
from tests.forks import Forked

# Asks for a token until it is refused, and prints what it heard each time that it changes.
ASKER = """
import sys, time
from enforcement import Limiter
limiter, reason = Limiter(sys.argv[1], timeout=1.0, state_dir=sys.argv[2]), ""
while True:
    heard, reason = reason, limiter.check(sys.argv[3]).reason
    if heard != reason:
        print(reason, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def dumped():
    """Give a server whose only copy of its data is a dump."""
    with ValkeyServer(persistent=False) as server:
        yield server
        server.kill()


@contextmanager
def set_back(server):
    """Dump the data, run the block, and restart the server from the dump, as a restored backup does."""
    world = World(server.url)
    world.client.save()
    kept = server.directory / "older.rdb"
    shutil.copy(server.directory / "dump.rdb", kept)
    yield
    server.kill()
    shutil.copy(kept, server.directory / "dump.rdb")
    server.start()


def problems(limiter):
    return limiter._engine.agent._warnings.problems


@pytest.mark.usefixtures("quick_duties")
def test_a_store_restarted_from_an_older_dump_is_used_for_counters_only(dumped, tmp_path, caplog):
    """
    A token that was revoked in between stays revoked: where it is known, where it has to be looked up, and in a process
    that starts from its disk. Counters are used, and the instance says so until a later state is published.
    """
    world = World(dumped.url)
    secret, other = world.everything(fixed(100)), mint("live")
    world.publish(tokens={other: world.token("pol_api")})
    with Limiter(dumped.url, timeout=1.0) as knows, Limiter(dumped.url, timeout=1.0, state_dir=tmp_path) as asks:
        assert knows.check(secret).allowed
        assert asks.check(other).allowed
        with set_back(dumped):
            world.publish(tokens={secret: world.token("pol_api", revoked=True)})
            assert eventually(lambda: [knows.revision, asks.revision] == [3, 3])
            assert knows.check(secret).reason == "revoked"
            asks.close()
        asks.start()
        reasons = {limiter.check(secret).reason for limiter in (knows, asks) for _ in range(50)}
        assert eventually(lambda: problems(knows) == problems(asks) == ["set_back"])
        reasons |= {limiter.check(secret).reason for limiter in (knows, asks) for _ in range(50)}

        assert reasons <= {"revoked", "degraded_denied"}
        assert [limiter.revision for limiter in (knows, asks)] == [3, 3]
        assert asks.check(other).source == "store"
        assert asks.stats().state == "degraded"
        assert "The store was set back to revision 2; revision 3 remains in force" in caplog.text

        world = World(dumped.url)
        world.published.revision = 3  # as the control plane does, after the highest that an instance reports
        world.publish(tokens={secret: world.token("pol_api")}, full=True)
        assert eventually(lambda: all(limiter.check(secret).allowed for limiter in (knows, asks)), 10.0)
        assert eventually(lambda: problems(knows) == problems(asks) == [])


def test_a_token_is_not_looked_up_in_a_store_that_was_set_back(dumped):
    """Nobody has noticed yet, and the answer says so itself: the store is older than what this process obeys."""
    world = World(dumped.url)
    secret = world.everything(fixed(100))
    with Limiter(dumped.url, timeout=1.0) as limiter:
        world.publish(tokens={secret: world.token("pol_api", revoked=True)})
        assert eventually(lambda: limiter.revision == 2)
        latest = world.client.get(world.keys.revision)
        world.client.set(world.keys.revision, latest.replace("2 ", "1 ", 1))
        world.client.set(world.keys.token(digest(secret)), dumps(world.token("pol_api")))

        assert limiter.check(secret).reason == "degraded_denied"
        world.client.set(world.keys.revision, latest)
        assert limiter.check(secret).allowed  # control: with the right revision it would have been believed


def test_a_process_that_is_killed_does_not_forget_a_revocation(own_server, tmp_path):
    """It had the revocation for a second and is killed; the store is away when the next one starts from the disk."""
    world = World(own_server.url)
    secret = world.everything(fixed(100))
    with Forked(["-c", ASKER, own_server.url, str(tmp_path), secret]) as process:
        assert process.stdout.readline() == "ok\n"
        world.publish(tokens={secret: world.token("pol_api", revoked=True)})
        assert process.stdout.readline() == "revoked\n"
        time.sleep(1.2)
        process.kill()
    own_server.kill()

    with Limiter(own_server.url, timeout=0.1, state_dir=tmp_path) as limiter:
        assert limiter.check(secret).reason != "ok"


def test_a_process_that_was_cut_off_leaves_the_later_state_on_the_disk(own_server, tmp_path):
    """Two processes have one folder. One of them hears of a revocation; the other one ends last."""
    path = FaultyPath(own_server.port)
    world = World(own_server.url)
    secret, other = world.everything(fixed(100)), mint("live")
    world.publish(tokens={other: world.token("pol_api")})
    hears = Limiter(own_server.url, timeout=1.0, state_dir=tmp_path)
    cut_off = Limiter(path.url, timeout=1.0, state_dir=tmp_path)
    assert {it.check(secret).reason for it in (hears, cut_off)} == {"ok"}
    assert eventually(lambda: list(tmp_path.glob("documents-*")))
    assert cut_off.check(other).allowed  # there is something to save when it ends
    path.mode = "swallow"
    world.publish(tokens={secret: world.token("pol_api", revoked=True)})
    assert eventually(lambda: hears.check(secret).reason == "revoked")
    hears.close()
    cut_off.close()
    path.close()
    own_server.kill()

    with Limiter(own_server.url, timeout=0.1, state_dir=tmp_path) as limiter:
        assert limiter.check(secret).reason != "ok"


@pytest.mark.usefixtures("quick_duties")
def test_a_new_epoch_is_obeyed_at_any_revision(dumped, tmp_path):
    """Also by a process that starts from its disk, where it has a higher number."""
    world = World(dumped.url)
    secret = world.everything(fixed(100))
    for _ in range(3):
        world.publish()
    with Limiter(dumped.url, timeout=1.0) as runs, Limiter(dumped.url, timeout=1.0, state_dir=tmp_path) as starts:
        assert {runs.check(secret).allowed, starts.check(secret).allowed} == {True}
        starts.close()
        world.client.flushall()
        world = World(dumped.url)
        world.published._store_id = "restored.1"
        world.everything(fixed(7))
        starts.start()

        for limiter in (runs, starts):
            assert eventually(lambda limiter=limiter: limiter.stats().store_id == "restored.1", 10.0)
            assert limiter.revision == 1


def test_an_epoch_is_read_from_the_identity_of_a_store():
    """Identities of release 0.2 have epoch 0; names are compared by the epoch first."""
    assert [epoch_of(text) for text in ("", "5f0c", "a.1", "a.12", "a.0", "a.b", "a.1.2", ".1", "a.1 ")] == [
        *(0, 0, 1, 12, 0, 0, 0, 0, 0)
    ]
    assert [with_epoch("5f0c", 0), with_epoch("5f0c", 3)] == ["5f0c", "5f0c.3"]
    assert StateName(0, 9) < StateName(1, 2) < StateName(1, 3)
    assert [str(StateName(0, 9)), str(StateName(2, 9))] == ["revision 9", "revision 9 of epoch 2"]
