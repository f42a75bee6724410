"""
What a decision costs the store alone: its processor time, by how commands reach it.

Commands are encoded once and sent over plain sockets, so that nothing but the command differs between candidates.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from time import perf_counter_ns

import hiredis

from benchmarks import figures
from benchmarks.figures import Row, us
from benchmarks.measure import SUBJECTS, Effort, Round, Sample, Series, interleave
from benchmarks.peers import SyncPeers
from benchmarks.tasks import CONCURRENT
from benchmarks.threads import PATIENCE, USERS
from benchmarks.world import FAR, SHARED, World
from enforcement.limiter import Limiter
from enforcement.plan.request import Request
from enforcement.store.resp import numbers, pack

EVALSHA = "EVALSHA"
DECIDE = {1: "sg3_decide, 1 limit", 3: "sg3_decide, 3 limits"}
APART, ALONE = f"1 in flight on each of {CONCURRENT} connections", "1 in flight"
WAYS = {
    APART: f"1 limit, store CPU: one in flight on each of {CONCURRENT} connections, as threads / {CONCURRENT} on one",
    ALONE: f"1 limit, store CPU: one in flight on one connection / {CONCURRENT} on one",
}
_BARS = {1: figures.PIPELINED_ONE, 3: figures.PIPELINED_THREE}


class Pipe:
    """A connection that is sent encoded commands."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20.0)
        self._reader = hiredis.Reader()

    def send(self, commands: bytes) -> None:
        """Send commands in one write."""
        self._socket.sendall(commands)

    def replies(self, count: int) -> list[object]:
        """Wait for so many replies. Raises hiredis.ReplyError if one is an error."""
        found: list[object] = []
        while len(found) < count:
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(1 << 16))
            elif isinstance(reply, hiredis.ReplyError):
                raise reply
            else:
                found.append(reply)
        return found

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def encoded(limiter: Limiter, tokens: Sequence[str]) -> list[bytes]:
    """Return the call that decides a request of each token, as the library sends it."""
    now_us = time.time_ns() // 1_000
    plans = [limiter.find_plan(token, None) for token in tokens]
    return [Request(plan, 1).encode(now_us, clock=False, registers=False) for plan in plans]


def compare(store: World, effort: Effort) -> tuple[list[Row], Series]:
    """Measure the same number of calls in each write, and the same calls in other ways."""
    with ExitStack() as stack:
        peers = stack.enter_context(closing(SyncPeers(store.url)))
        limiter = stack.enter_context(Limiter(store.url, timeout=PATIENCE))
        together, *apart = (stack.enter_context(closing(Pipe(store.port))) for _ in range(1 + CONCURRENT))
        one = encoded(limiter, store.tokens("fixed", SUBJECTS))
        commands = {
            EVALSHA: [pack(("EVALSHA", peers.script, 1, f"script:{user}", 1, FAR, 60_000)) for user in USERS],
            DECIDE[1]: one,
            DECIDE[3]: encoded(limiter, store.tokens("two", SUBJECTS, project=SHARED)),
        }
        rounds = {name: _measured(store, effort, _in_one_write(together, calls)) for name, calls in commands.items()}
        rounds[APART] = _measured(store, effort, _on_each(apart, one))
        rounds[ALONE] = _measured(store, effort, _one_by_one(together, one))
        series = interleave(rounds, effort.rounds)
    return _rows(series), series


def _measured(store: World, effort: Effort, ask: Callable[[], list[object]]) -> Round:
    """Return a round of an action that makes ``CONCURRENT`` calls. One span is that of all of them, divided by it."""

    def measure() -> Sample:
        spans, used, start = [], store.main_thread_seconds(), perf_counter_ns()
        for _ in range(max(1, effort.concurrent_calls // CONCURRENT)):
            before = perf_counter_ns()
            replies = ask()
            spans.append((perf_counter_ns() - before) / CONCURRENT)
        elapsed, calls = perf_counter_ns() - start, len(spans) * CONCURRENT
        if not all(isinstance(reply, list) or numbers(reply)[0] == 1 for reply in replies):
            raise AssertionError("A decision did not admit: nothing can be told of this run.")
        return Sample.of(spans, elapsed, calls, store_us=(store.main_thread_seconds() - used) * 1e6 / calls)

    return measure


def _in_one_write(pipe: Pipe, commands: Sequence[bytes]) -> Callable[[], list[object]]:
    turns = itertools.cycle(commands)

    def ask() -> list[object]:
        pipe.send(b"".join(itertools.islice(turns, CONCURRENT)))
        return pipe.replies(CONCURRENT)

    return ask


def _on_each(pipes: Sequence[Pipe], commands: Sequence[bytes]) -> Callable[[], list[object]]:
    turns = itertools.cycle(commands)

    def ask() -> list[object]:
        for pipe in pipes:
            pipe.send(next(turns))
        return [pipe.replies(1)[0] for pipe in pipes]

    return ask


def _one_by_one(pipe: Pipe, commands: Sequence[bytes]) -> Callable[[], list[object]]:
    turns = itertools.cycle(commands)

    def ask() -> list[object]:
        found = []
        for _ in range(CONCURRENT):
            pipe.send(next(turns))
            found += pipe.replies(1)
        return found

    return ask


def _rows(series: Series) -> list[Row]:
    def row(figure: str, ours: str, theirs: str, bar: figures.Bar | None = None) -> Row:
        told = us(series.median(ours, "store_us")), us(series.median(theirs, "store_us"))
        return Row(figure, *told, series.ratio(ours, theirs, "store_us"), bar)

    figure = "sg3_decide / EVALSHA in equal pipelines, store CPU, {} limit{}"
    rows = [row(figure.format(n, "s" * (n > 1)), DECIDE[n], EVALSHA, bar) for n, bar in _BARS.items()]
    return [*rows, *(row(f"sg3_decide, {figure}", way, DECIDE[1]) for way, figure in WAYS.items())]
