"""Greenlets in place of threads: decisions keep their budget there, and the other greenlets run meanwhile."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

BUDGET_MS = 300  # twice of it is far from the budgets of a hundred greenlets one after another, and from a busy machine
GREENLETS = 100

GREENLETS_DECIDE = """
from gevent import monkey
monkey.patch_all()

import json, sys, time
import gevent
from enforcement import Limit, Limiter

limit = Limit(name="wide", quota=1_000_000, window_seconds=86_400)
limiter = Limiter(sys.argv[1], timeout=float(sys.argv[2]) / 1_000)
ticks = []


def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.005)


def decide(number):
    began = time.monotonic()
    decision = limiter.hit(limit, "k")
    return decision.source, 1_000 * (time.monotonic() - began)


def all_at_once():
    jobs = [gevent.spawn(decide, number) for number in range(int(sys.argv[3]))]
    gevent.joinall(jobs)
    return [job.get() for job in jobs]


while limiter.hit(limit, "k").source != "store":  # the first call loads the functions
    gevent.sleep(0.01)
before = [decide(number) for number in range(20)]
print("ready", flush=True)
sys.stdin.readline()
ticker, began = gevent.spawn(tick), time.monotonic()
away = all_at_once()
ran = [at - began for at in ticks]
print(json.dumps({"before": before, "away": away, "ran": ran, "later": all_at_once()}), flush=True)
sys.stdin.readline()
while limiter.hit(limit, "k").source != "store":
    gevent.sleep(0.01)
limiter.close()
print("back", flush=True)
"""

EVENTLET = """
import _socket, socket, types

class GreenSocket:
    __module__ = "eventlet.greenio.base"

socket.socket = GreenSocket
from enforcement import Limiter
try:
    Limiter("redis://127.0.0.1:6379/0")
except RuntimeError as exc:
    print(exc)
"""


def started(code, *arguments):
    """Start a process that runs this code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        cwd=Path(__file__).parents[2],
    )


def test_greenlets_decide_in_time_while_the_store_is_frozen(own_server):
    """Each waits for its own budget, none for another's, and whoever has something else to do does it."""
    with started(GREENLETS_DECIDE, own_server.url, BUDGET_MS, GREENLETS) as process:
        assert process.stdout.readline() == "ready\n"
        own_server.freeze()
        rescue = threading.Timer(5.0, own_server.thaw)  # for decisions that would wait for that
        rescue.start()
        process.stdin.write("\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        rescue.cancel()
        own_server.thaw()
        process.communicate("\n", timeout=20)

    assert {source for source, _ in found["before"]} == {"store"}
    assert {source for source, _ in found["away"]} == {"fallback"}
    assert max(took for _, took in found["away"]) <= 2 * BUDGET_MS
    assert max(took for _, took in found["away"]) >= BUDGET_MS / 2  # it was frozen
    assert sum(at < BUDGET_MS / 1_000 for at in found["ran"]) >= 3
    assert max(took for _, took in found["later"]) < BUDGET_MS
    assert process.returncode == 0


def test_sockets_of_another_library_are_refused():
    """They do not keep the budget, as far as we know; the sentence says what can be used."""
    with started(EVENTLET) as process:
        text, _ = process.communicate(timeout=20)

    assert text == (
        "Sluicegate does not run on the sockets of eventlet.greenio.base. Use threads, asyncio or gevent, and do not "
        "patch the socket module otherwise.\n"
    )
