"""Prove that processes share a counter. Two processes charge it, and each sees what the other charged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from secrets import token_hex
from statistics import quantiles
from typing import Final

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from enforcement.doctor.findings import Finding
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.plan import commands
from enforcement.plan.binding import bind_in_code
from enforcement.plan.plan import Plan
from enforcement.plan.reply import read
from enforcement.plan.request import Request
from enforcement.store import errors
from enforcement.store.client import connect, is_unknown_function

# A log has no window that could end between two calls. Its permits expire after a minute, even if the doctor is killed.
LIMIT: Final = Limit(name="doctor", algorithm="sliding_log", quota=10, window_seconds=60)
OURS: Final = 3
THEIRS: Final = 4
ROUNDS: Final = 200
CHILD_SECONDS: Final = 30.0


class SharedCounter:
    """Charges one counter of the store as a limiter does."""

    def __init__(self, client: Redis, keys: Keys, key: str) -> None:
        self._client = client
        self._plan = Plan(bind_in_code([LIMIT], key, keys))

    def charge(self, cost: int) -> int:
        """Charge a cost, or nothing if it is 0, and return the remaining permits."""
        arguments = commands.decide_arguments(Request(self._plan, cost, charge=cost > 0), 0, clock=False)
        reply = self._client.execute_command(*arguments, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
        return read(reply, 1).remaining(0)

    def forget(self) -> None:
        """Delete the counter."""
        self._client.execute_command(*commands.reset(self._plan.keys))  # type: ignore[no-untyped-call]


def proof(client: Redis, keys: Keys, url: str) -> Iterator[Finding]:
    """
    Charge a counter in this process and in a second one, and yield a finding on whether each sees the other's charges.
    """
    key = f"doctor:{token_hex(8)}"
    counter = SharedCounter(client, keys, key)
    try:
        ours = counter.charge(OURS)
    except ResponseError as exc:
        yield _refused(exc)
        return
    try:
        theirs = _second_process({"url": url, "prefix": keys.prefix, "key": key})
        seen = counter.charge(0)
    finally:
        counter.forget()
    value = (
        f"{LIMIT.quota} permits: process {os.getpid()} took {OURS} and left {ours}; process {theirs.get('pid')} saw "
        f"{theirs.get('saw')}, took {THEIRS} and left {theirs.get('left')}; the first then saw {seen}"
    )
    expected = LIMIT.quota - OURS, LIMIT.quota - OURS, LIMIT.quota - OURS - THEIRS, LIMIT.quota - OURS - THEIRS
    shared = (ours, theirs.get("saw"), theirs.get("left"), seen) == expected
    advice = "" if shared else f"Both processes must reach the same store. {theirs.get('error', '')}".strip()
    yield Finding("shared counter", "ok" if shared else "problem", value, advice)


def _refused(exc: ResponseError) -> Finding:
    # For a command inside a function, the server reports a missing right by another error.
    if isinstance(exc, NoPermissionError) or errors.trouble(exc).cause == "auth":
        advice = "This is right for the control plane, and for a proxy that may only use some projects."
        return Finding("shared counter", "unseen", "this account may not charge limits in code", advice)
    advice = "As long as it refuses, on_store_failure of each limit decides."
    if is_unknown_function(exc):
        advice = "Load the functions with an account that is permitted to: 'manage.py publish --all'."
    return Finding("shared counter", "problem", f"the server refuses to charge: {exc}", advice)


def round_trips(client: Redis, keys: Keys, budget: float) -> Iterator[Finding]:
    """
    Make the same decision many times, and yield a finding that compares the latency with a decision's time budget.
    """
    counter = SharedCounter(client, keys, f"doctor:{token_hex(8)}")
    counter.charge(0)
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        counter.charge(0)
        took.append((time.perf_counter() - began) * 1_000)
    cuts = quantiles(took, n=100)
    p50, p99, budget_ms = cuts[49], cuts[98], budget * 1_000
    value = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms of {ROUNDS} decisions; the time budget is {budget_ms:g} ms"
    if p50 > budget_ms:
        advice = "Most decisions would be made without the store. Move it closer, or raise SLUICEGATE_TIMEOUT_MS."
        yield Finding("round trip", "problem", value, advice)
    elif p99 > budget_ms / 2:
        advice = (
            "Under load decisions may exceed the time budget. Move the store closer, or raise SLUICEGATE_TIMEOUT_MS."
        )
        yield Finding("round trip", "warning", value, advice)
    else:
        yield Finding("round trip", "ok", value)


def _second_process(task: dict[str, str]) -> dict[str, object]:
    """
    Charge the counter from a second process, and return as a dictionary the numbers that it reports, or an error.

    The task may hold a password, so it is passed through standard input, and not as an argument that others can see.
    """
    command = [sys.executable, "-c", "from enforcement.doctor.sharing import second; second()"]
    try:
        done = subprocess.run(
            command, input=json.dumps(task), capture_output=True, text=True, timeout=CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"The second process did not end within {CHILD_SECONDS:g} s."}
    if done.returncode:
        return {"error": f"The second process failed: {done.stderr.strip().rpartition(chr(10))[2][:200]}"}
    result: dict[str, object] = json.loads(done.stdout)
    return result


def second() -> None:
    """
    Read a task from standard input, charge its counter in this second process of :func:`proof`, and print what it saw.
    """
    task = json.load(sys.stdin)
    with connect(task["url"]) as client:
        counter = SharedCounter(client, Keys(task["prefix"]), task["key"])
        result = {"pid": os.getpid(), "saw": counter.charge(0), "left": counter.charge(THEIRS)}
    print(json.dumps(result))
