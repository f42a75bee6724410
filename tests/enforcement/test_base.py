"""A process that ends without closing its limiter: what it has counted is reported, and it leaves the fleet."""

import json
import subprocess
import sys

import pytest

from enforcement import Limit, Limiter, base
from tests.enforcement.stalls import timed
from tests.enforcement.world import World, fixed
from tests.repository import ROOT

PLAIN = """
import sys
from enforcement import Limiter

def main():
    limiter = Limiter(sys.argv[1], timeout=1.0)
    assert all(limiter.check(sys.argv[2]).allowed for _ in range(3))

main()
"""

AWAITED = """
import asyncio, sys
from enforcement.aio import Limiter

async def main():
    limiter = Limiter(sys.argv[1], timeout=1.0)
    assert all([(await limiter.check(sys.argv[2])).allowed for _ in range(3)])

asyncio.run(main())
"""

FORKED = """
import os, sys
from enforcement import Limiter

limiter = Limiter(sys.argv[1], timeout=1.0)
assert limiter.check(sys.argv[2]).allowed
child = os.fork()
assert all(limiter.check(sys.argv[2]).allowed for _ in range(2 - (child == 0)))
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    sys.exit()  # as the worker of a server that forks
"""

FROZEN = """
import os, signal, sys
from enforcement import Limiter

limiter = Limiter(sys.argv[1], timeout=0.1)
assert limiter.check(sys.argv[2]).allowed
os.kill(int(sys.argv[3]), signal.SIGSTOP)
"""


def ran(code, *arguments):
    """Run a process to its end, and return the seconds that it took."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)]
    done, seconds = timed(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60))
    assert (done.returncode, done.stderr) == (0, "")
    return seconds


def admitted(world):
    """Return how many requests the usage in the store has, and how many instances there are."""
    batches = [json.loads(fields["rows"]) for _, fields in world.client.xrange(world.keys.usage)]
    return sum(row[6] for rows in batches for row in rows if row[3] == ""), world.client.keys("sg:{fleet}:instance:*")


@pytest.mark.parametrize(("code", "count"), [(PLAIN, 3), (AWAITED, 3), (FORKED, 4)], ids=["plain", "aio", "forked"])
def test_a_process_that_ends_reports_its_usage_and_leaves_the_fleet(server, world, code, count):
    """It closed nothing and kept nothing, as a script does, or a worker of a server that was asked to stop."""
    secret = world.everything(fixed(100))
    ran(code, server.url, secret)

    assert admitted(world) == (count, [])


def test_a_limiter_for_each_request_is_logged_once(server, world, caplog, monkeypatch):
    """Each is a member of the fleet, so that the shares of an outage become small, and nobody would see why."""
    monkeypatch.setattr(base, "MANY_LIMITERS", len(base._running) + 3)
    limiters = [Limiter(server.url, timeout=1.0) for _ in range(5)]
    for limiter in limiters:
        limiter.hit(Limit.parse("5/minute"), "k")
    found = [text for text in caplog.messages if "limiters run in this process" in text]
    for limiter in limiters:
        limiter.close()

    assert len(found) == 1
    assert "make it once" in found[0]


def test_a_process_ends_soon_while_the_store_is_frozen(own_server):
    """What it could not deliver is lost. It does not wait for that."""
    secret = World(own_server.url).everything(fixed(100))
    assert ran(FROZEN, own_server.url, secret, own_server.pid) < 15
