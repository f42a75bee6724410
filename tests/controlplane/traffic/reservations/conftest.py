"""A project with budgets, and a proxy that meters its requests until it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from django.db.models import Sum
from django.utils import timezone

from controlplane.traffic.reservations import recording
from controlplane.traffic.usage import drain as drainer
from controlplane.traffic.usage.models import UsageRow
from enforcement import Limiter
from enforcement.model.keys import Keys
from enforcement.model.metered import cost_name
from enforcement.plan.records import RecordKeys
from enforcement.store_calls.reservations import open_reservations

# The browser and the operator of the admin's tests.

HELLO = {"model": "gpt-x", "max_tokens": 500, "messages": [{"role": "user", "content": "x" * 400}]}
"""A chat request of 100 tokens whose answer may have 500. At the price below it may cost 2,100 micros."""
PRICE = {"model": "gpt-*", "input": 1_000_000, "output": 4_000_000}

PROXY = """
import asyncio, json, sys
from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.reservations import book
from tests.enforcement.doors.metered.provider import Provider, Visit

url, secret, number, life, hello = sys.argv[1:]
book.PROLONGED_SECONDS = float(life)

async def main():
    limiter, provider = aio.Limiter(url, timeout=2.0, lookup=2.0, instance="proxy-1"), Provider()
    provider.pause, provider.words = 0.1, 100_000
    door = LimitMiddleware(provider, limiter, metered=True)
    done = Visit(door, secret, json.loads(hello))
    await done.task
    visits = [Visit(door, secret, {**json.loads(hello), "stream": True}) for _ in range(int(number))]
    while not all(visit.answer.chunks for visit in visits):
        await asyncio.sleep(0.01)
    print(json.dumps([done.answer.status, *(visit.answer.status for visit in visits)]), flush=True)
    for line in sys.stdin:
        if line == "leave\\n":
            for visit in visits:
                visit.leave()
            await asyncio.gather(*(visit.task for visit in visits))
            await limiter.close()
            print("left", flush=True)

asyncio.run(main())
"""


@dataclass
class Proxy:
    """A process with open requests, besides one that it has settled."""

    process: subprocess.Popen

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def leave(self) -> None:
        """All clients leave, and the process ends in order."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("leave\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "left\n"


@pytest.fixture
def secret(api, store) -> str:
    """The secret of the token "ci" of "chat", with limits of tokens, money, slots and requests."""
    limits = [
        {"name": "tpm", "quota": 100_000, "window_seconds": 3600, "unit": "tokens"},
        {"name": "usd", "quota": 10_000_000, "window_seconds": 3600, "unit": "micros"},
        {"name": "slots", "algorithm": "concurrency", "quota": 10, "window_seconds": 3600},
        {"name": "rpm", "quota": 1_000, "window_seconds": 3600},
    ]
    made = api("POST", "policies", {"slug": "budget", "name": "Budget", "limits": limits})
    assert made.status_code == 201, made.content
    api("POST", "projects", {"slug": "chat", "name": "Chat"})
    assert api("PUT", "prices", PRICE).status_code == 201
    return api("POST", "projects/chat/tokens", {"name": "ci", "policy": "budget"}).json()["secret"]


@pytest.fixture
def project_id(api, secret) -> str:
    return api("GET", "projects/chat").json()["id"]


@pytest.fixture
def proxy(store, secret) -> Iterator[Callable[..., Proxy]]:
    """``proxy(3)``: a process with three requests that have begun to be answered, and one that was."""
    started: list[Proxy] = []

    def start(number: int, life: float = 0.5) -> Proxy:
        arguments = [sys.executable, "-c", PROXY, store.url, secret, str(number), str(life), json.dumps(HELLO)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        one = Proxy(subprocess.Popen(arguments, env=os.environ, text=True, **pipes))
        started.append(one)
        assert one.process.stdout
        assert json.loads(one.process.stdout.readline()) == [200] * (number + 1)
        return one

    yield start
    for one in started:
        one.kill()
        for pipe in (one.process.stdin, one.process.stdout):
            pipe.close()


@pytest.fixture
def killed(proxy, client_of_store, project_id) -> Callable[[int], list[str]]:
    """``killed(3)``: the reservations of a killed process, by id, once their life is over and the worker has run."""

    def make(number: int) -> list[str]:
        running = proxy(number)
        while UsageRow.objects.filter(period="day", limit_name="").aggregate(n=Sum("allowed"))["n"] != number + 1:
            time.sleep(0.05)
            drainer.drain(timezone.now(), client_of_store)  # a killed process takes its last second of usage with it
        running.kill()
        found: list[Any] = []
        while len(found) < number:
            time.sleep(0.05)
            found = open_reservations(client_of_store, Keys(), project_id, lost_only=True)
        recording.record(timezone.now(), client_of_store)
        drainer.drain(timezone.now(), client_of_store)
        return [one.id for one in found]

    return make


@pytest.fixture
def reserve(store, secret) -> Iterator[Callable[[], str]]:
    """``reserve()``: the id of one more open reservation of this process, as a metered door makes it."""
    with Limiter(store.url, timeout=2.0, instance="proxy-2") as limiter:
        plan = limiter.find_plan(secret, None)
        prices = {cost_name(bound.limit): PRICE for bound in plan.bounds if bound.limit.unit == "micros"}
        about = {"model": "gpt-x", "price_revision": 7, "input": 100, "output": 500, "prices": prices}
        yield lambda: limiter.admit_plan(plan, {"tokens": 600, "micros": 2_100}, None, about).id


@pytest.fixture
def reserved(reserve) -> str:
    """The id of an open reservation of this process."""
    return reserve()


@pytest.fixture
def lost(reserve, client_of_store) -> Callable[[int], list[str]]:
    """``lost(3)``: the ids of reservations whose life is over, once the worker has run."""

    def make(number: int) -> list[str]:
        ids = [reserve() for _ in range(number)]
        for one in ids:
            lose(client_of_store, one)
        recording.record(timezone.now(), client_of_store)
        return ids

    return make


def lose(client_of_store: redis.Redis, reservation_id: str) -> None:
    """End the life of a reservation, as if its process had not prolonged it."""
    where = RecordKeys.from_id(Keys(), reservation_id)
    client_of_store.zadd(where.index, {where.ident: 1})


@pytest.fixture
def used_by_limit(api, secret) -> Callable[[], dict[str, int]]:
    """What the counters of the token have charged, by limit."""
    token = api("GET", "projects/chat/tokens").json()["results"][0]["id"]

    def read() -> dict[str, int]:
        rows = api("GET", f"counters?token={token}").json()["results"]
        return {row["limit"].partition("/")[2]: row["used"] for row in rows}

    return read


@pytest.fixture
def reported(api, client_of_store) -> Callable[[], dict[str, int]]:
    """The cost in the usage of the token, by limit."""

    def read() -> dict[str, int]:
        drainer.drain(timezone.now(), client_of_store)
        rows = api("GET", "usage?project=chat&limit=*&step=hour").json()["results"]
        return {row["limit"].partition("/")[2]: row["cost"] for row in rows}

    return read
