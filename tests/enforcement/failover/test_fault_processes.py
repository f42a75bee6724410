"""Processes that fork, are ended or killed, or have too much to do: nothing is lost, and no reply is another's."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.embedded import free_port
from enforcement.model.keys import Keys
from enforcement.store.client import connect
from tests.enforcement.fleet import fleet
from tests.enforcement.world import eventually
from tests.forks import Forked

# What a process was at when it is forked or killed is chance, so that a proof does it more than once.
pytestmark = pytest.mark.proof(times=5)

ROOT = Path(__file__).parents[3]
DAY = 86_400


def sockets_to(port, pid):
    """Return the sockets of a process that lead to a loopback port, by their inodes."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    leading = {fields[9] for fields in lines if int(fields[2].rpartition(":")[2], 16) == port}
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    return {link[8:-1] for link in links if link.startswith("socket:[")} & leading


FORKING = """
import os, sys, time
import redis
from enforcement import Limit, Limiter

limiter, limit = Limiter(sys.argv[1], timeout=1.0), Limit(name="fork", quota=1000, window_seconds=86400)
assert limiter.hit(limit, "parent").source == "store"
with redis.Redis.from_url(sys.argv[1]) as admin:  # what the background connects while a process forks, both have
    while not any(client["cmd"] == "xread" for client in admin.client_list()):
        time.sleep(0.005)
children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        answers = [limiter.hit(limit, f"child{number}") for _ in range(50)]
        right = [a.remaining for a in answers] == list(range(999, 949, -1)) and {a.source for a in answers} == {"store"}
        os.write(1, f"{'right' if right else 'wrong'} {os.getpid()}\\n".encode())
        sys.stdin.read()
        os._exit(0)
    children.append(pid)
answers = [limiter.hit(limit, "parent") for _ in range(50)]
right = [a.remaining for a in answers] == list(range(998, 948, -1))
os.write(1, f"{'right' if right else 'wrong'} {os.getpid()}\\n".encode())
for pid in children:
    os.waitpid(pid, 0)
"""


def test_a_forked_child_shares_no_connection(server, world):
    """Parent and children decide at once; each has its own answers, and no socket to the store is held by two."""
    with Forked(["-c", FORKING, server.url]) as process:
        said = [process.stdout.readline().split() for _ in range(4)]
        held = [sockets_to(server.port, int(pid)) for _, pid in said]
        process.stdin.close()

    assert [word for word, _ in said] == ["right"] * 4
    assert all(held)
    assert sum(map(len, held)) == len(set().union(*held))


FORKING_IN_AN_OUTAGE = """
import os, sys, threading, time
from enforcement import Limit, Limiter

limiter, limit = Limiter(sys.argv[1], timeout=1.0), Limit(name="fork", quota=1_000_000, window_seconds=86400)
slots = Limit(name="slots", algorithm="concurrency", quota=5, window_seconds=60)
assert limiter.hit(limit, "busy").source == limiter.peek(limit, "parent").source == limiter.peek(slots, "k").source
limiter._engine.health.breaker.trip("test")
admission = limiter.admit(slots, "k")
assert admission.__enter__().decision.source == limiter.hit(limit, "parent", 10).source == "fallback"
forked = threading.Event()
def ask():
    while not forked.is_set():
        limiter.hit(limit, "busy")
threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for number in range(5):
    limiter._engine.health.breaker.trip("test")
    pid = os.fork()
    if not pid:
        limiter.hit(limit, f"child{number}")
        while limiter.peek(limit, f"child{number}").source == "fallback" or limiter._engine.fallback.owes():
            time.sleep(0.005)
        limiter.close()
        os._exit(limiter.peek(limit, f"child{number}").remaining != 999_999)
    children.append(pid)
forked.set()
for thread in threads:
    thread.join()
admission.__exit__(None, None, None)
limiter.close()
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 5
while limiter.peek(limit, "parent").source == "fallback":
    time.sleep(0.005)
assert limiter.peek(limit, "parent").remaining == 999_990
assert limiter.peek(slots, "k").remaining == 5
limiter.close()
"""


def test_a_process_that_forks_in_an_outage_pays_alone(server, world):
    """Its busy threads leave no lock behind in a child; what it admitted and holds is charged once, and by itself."""
    with Forked(["-c", FORKING_IN_AN_OUTAGE, server.url]) as process:
        assert process.wait(30) == 0


def test_gunicorn_may_load_the_application_before_it_forks(server, world, tmp_path):
    """Two workers from one limiter that had decided already: the quota holds, and each has connections of its own."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "-w",
        "2",
        "-b",
        f"127.0.0.1:{port}",
        "--no-control-socket",
    ]
    command += ["tests.enforcement.preloaded:app"]
    environment = os.environ | {"SLUICEGATE_REDIS_URL": server.url, "SLUICEGATE_TIMEOUT_MS": "1000"}
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as master:
        try:
            assert eventually(lambda: reply_from(port) is not None, 20.0), (tmp_path / "log").read_text()
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: reply_from(port), range(60)))
            workers = {int(pid) for _, pid, _ in answers}
            held = [sockets_to(server.port, pid) for pid in workers]
        finally:
            master.terminate()

    assert len(workers) == 2
    assert sum(status == 200 for status, _, _ in answers) == 24  # one was asked for before
    assert {source for _, _, source in answers} <= {"store", "denial_cache"}
    assert sum(map(len, held)) == len(set().union(*held))


def reply_from(port):
    """Return status, process and source of an answer; None: nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as reply:
            return (reply.status, *reply.read().decode().split())
    except urllib.error.HTTPError as error:
        with error:
            return (error.code, *error.read().decode().split())
    except OSError:
        return None


async def test_threads_and_tasks_of_one_process_get_their_own_answers(server, world):
    """Four threads and 200 tasks at once, each by a key of its own: every answer counts down that key alone."""
    limit = Limit(name="mixed", quota=1_000, window_seconds=DAY)
    sync, tasks = Limiter(server.url, timeout=2.0), aio.Limiter(server.url, timeout=2.0)

    def by_thread(key):
        return [sync.hit(limit, key).remaining for _ in range(100)]

    async def by_task(key):
        return [(await tasks.hit(limit, key)).remaining for _ in range(5)]

    threads = [asyncio.to_thread(by_thread, f"thread{number}") for number in range(4)]
    counted = await asyncio.gather(*threads, *(by_task(f"task{number}") for number in range(200)))

    assert all(remaining == list(range(999, 999 - len(remaining), -1)) for remaining in counted)
    sync.close()
    await tasks.close()


def test_a_process_told_to_end_gives_everything_back(server, world):
    """SIGTERM under load: its ledger is whole, its leases are given back, and it leaves the fleet."""
    leased = {
        "name": "rate",
        "algorithm": "fixed_window",
        "quota": 10**6,
        "window_seconds": DAY,
        "consistency": "leased",
    }
    with fleet(server.url, [leased], 2, "--seconds", "60", "--pause", "0.0005") as load:
        load.go()
        time.sleep(0.7)
        load.end_when_back("lease")
        ledgers = load.ledgers()
        assert load.wait(5) == [0, 0]
    admitted = sum(record.allowed for ledger in ledgers for record in ledger.records)
    limiter = Limiter(server.url, timeout=1.0)
    with connect(server.url) as client:
        assert client.zcard(Keys().instances) == 0
    used = 10**6 - limiter.peek(Limit(**leased), "k").remaining
    limiter.close()

    assert admitted > 100
    assert used == admitted


def test_a_killed_process_costs_the_request_it_was_at(server, world):
    """What it wrote down is whole; the store has at most the one more that was under way."""
    limit = {"name": "rate", "algorithm": "fixed_window", "quota": 10**6, "window_seconds": DAY}
    with fleet(server.url, [limit], 2, "--seconds", "60") as load:
        load.go()
        time.sleep(0.5)
        load.processes[0].send_signal(signal.SIGKILL)
        load.processes[1].terminate()
        assert load.broken(server.url, killed=1, margin_ms=1_000.0) == []
        assert load.processes[0].returncode == -signal.SIGKILL


def calls(world):
    """Return how often functions of the store were called."""
    return world.client.info("commandstats")["cmdstat_fcall"]["calls"]


async def test_a_busy_loop_is_no_outage(server, world):
    """Replies lay in the socket while the loop did something else: they are read, and nothing is decided alone."""
    limiter, limit = aio.Limiter(server.url, timeout=0.025), Limit(name="busy", quota=100, window_seconds=DAY)
    # The first calls connect, which may take longer than the budget on a machine with much to do.
    async with asyncio.timeout(20):
        while (await limiter.peek(limit, "loop")).source != "store":
            await asyncio.sleep(0.01)
    before, asked = limiter.stats().store_failures, calls(world)
    waiting = [asyncio.ensure_future(limiter.hit(limit, "loop")) for _ in range(10)]
    for _ in range(2):  # what is asked in one turn of the loop is sent together in the next
        await asyncio.sleep(0)
    time.sleep(0.3)  # what a loop must not do, and does
    assert eventually(lambda: calls(world) >= asked + 10)  # the store has replied, and the loop has not read
    decisions = await asyncio.gather(*waiting)

    assert {decision.source for decision in decisions} == {"store"}
    assert limiter.stats().store_failures == before
    await limiter.close()


@pytest.mark.parametrize("threads", [64])
def test_more_threads_than_cores_are_no_outage(server, world, threads):
    """They wait for each other, not for the store: no pool runs dry, and the breaker stays closed."""
    limiter, limit = Limiter(server.url, timeout=1.0), Limit(name="many", quota=10**6, window_seconds=DAY)
    sources: list[str] = []
    start = threading.Barrier(threads)

    def work():
        start.wait()
        sources.extend(limiter.hit(limit, "k").source for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sources == ["store"] * 20 * threads
    assert limiter.stats().servers_away == 0
    limiter.close()
