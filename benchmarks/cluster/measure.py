"""What decisions on a cluster cost: one after the other, in equal pipelines, and on one counter that all hit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from time import perf_counter_ns
from typing import NamedTuple

from benchmarks.cluster.nodes import EVERYONE, EVERYONE_LEASED, LEASED, OWN, Nodes
from benchmarks.measure import Effort, Round, Sample, Series, interleave
from benchmarks.pipelines import Pipe, encoded
from benchmarks.tasks import CONCURRENT
from benchmarks.world import FAR
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.plan.binding import bind_in_code
from enforcement.plan.plan import Plan
from enforcement.plan.request import Request


class Kind(NamedTuple):
    """Requests of tokens with one policy, while another one, or none, applies to everybody."""

    policy: str
    everybody: str | None


KINDS: Mapping[str, Kind] = {
    "own limit": Kind(OWN, None),
    "own limit, global limit": Kind(OWN, EVERYONE),
    "own limit, leased global limit": Kind(OWN, EVERYONE_LEASED),
    "leased own limit": Kind(LEASED, None),
    "leased own limit, leased global limit": Kind(LEASED, EVERYONE_LEASED),
}
PIPELINED, HOT, HOT_LEASED = "own limit, pipelined", "one counter, pipelined", "one counter, leased"
WARM_CALLS = 1_000
"""Before those that count: leases begin when a token has had ten requests within a quarter of a second."""
_HOT_KEY = "all"


def measure(nodes: Nodes, effort: Effort) -> Series:
    """Measure every kind in turn. A sample has the calls and the processor time of the stores for a decision."""
    with ExitStack() as stack:
        pipes = [stack.enter_context(closing(Pipe(server.port))) for server in nodes.cluster.primaries]
        rounds = {name: _one_by_one(nodes, kind, effort.calls) for name, kind in KINDS.items()}
        rounds[PIPELINED] = _pipelined(nodes, pipes, effort)
        rounds[HOT] = _hot(nodes, pipes, effort)
        rounds[HOT_LEASED] = _hot_leased(nodes, effort.local_calls)
        return interleave(rounds, effort.rounds)


def _sample(nodes: Nodes, calls: int, ask: Callable[[], Sequence[float]]) -> Sample:
    before, start = nodes.load(), perf_counter_ns()
    spans = ask()
    elapsed, after = perf_counter_ns() - start, nodes.load()
    used = sorted(((b - a) / calls for a, b in zip(before.cpu_us, after.cpu_us, strict=True)), reverse=True)
    asked = (after.calls - before.calls) / calls
    return Sample.of([int(span) for span in spans], elapsed, calls, calls=asked, store_us=sum(used), fullest_us=used[0])


def _one_by_one(nodes: Nodes, kind: Kind, calls: int) -> Round:
    """Measure one decision after the other, of all projects in turn."""
    tokens, check = itertools.cycle(nodes.tokens[kind.policy]), nodes.limiter.check

    def ask() -> list[int]:
        spans = []
        for _ in range(calls):
            token, before = next(tokens), perf_counter_ns()
            decision = check(token)
            spans.append(perf_counter_ns() - before)
            if not decision.allowed or decision.source not in ("store", "lease"):
                raise AssertionError(f"A decision came from {decision.source}: nothing can be told of this run.")
        return spans

    def measured() -> Sample:
        nodes.globally(kind.everybody)
        for _ in range(WARM_CALLS):
            check(next(tokens))
        return _sample(nodes, calls, ask)

    return measured


def _pipelined(nodes: Nodes, pipes: Sequence[Pipe], effort: Effort) -> Round:
    """Measure equal pipelines on a connection to each node, for as many decisions of each project."""
    turns = max(1, effort.concurrent_calls // CONCURRENT // len(pipes))

    def measured() -> Sample:
        nodes.globally(None)
        commands: dict[int, list[bytes]] = {}
        for token, command in zip(nodes.tokens[OWN], encoded(nodes.limiter, nodes.tokens[OWN]), strict=True):
            key = nodes.limiter.find_plan(token, None).keys[0]
            commands.setdefault(nodes.cluster.index_of(key), []).append(command)
        count = turns * sum(map(len, commands.values()))

        def ask() -> list[float]:
            spans = []
            for _ in range(turns):
                before = perf_counter_ns()
                for node, some in commands.items():
                    pipes[node].send(b"".join(some))
                    pipes[node].replies(len(some))
                spans.append((perf_counter_ns() - before) / sum(map(len, commands.values())))
            return spans

        return _sample(nodes, count, ask)

    return measured


def shares(nodes: Nodes) -> dict[int, int]:
    """Return how many projects each node has."""
    keys = [nodes.limiter.find_plan(token, None).keys[0] for token in nodes.tokens[OWN]]
    return dict(sorted(Counter(map(nodes.cluster.index_of, keys)).items()))


def _hot(nodes: Nodes, pipes: Sequence[Pipe], effort: Effort) -> Round:
    """Measure equal pipelines of decisions about one counter."""
    limit = Limit(name="hot", quota=FAR, window_seconds=60, algorithm="fixed_window")
    turns = max(1, effort.concurrent_calls // CONCURRENT)

    def measured() -> Sample:
        nodes.limiter.hit(limit, _HOT_KEY)
        plan = Plan(bind_in_code((limit,), _HOT_KEY, Keys()))
        pipe = pipes[nodes.cluster.index_of(plan.keys[0])]
        command = Request(plan, 1).encode(0, clock=False, registers=False)

        def ask() -> list[float]:
            spans = []
            for _ in range(turns):
                before = perf_counter_ns()
                pipe.send(command * CONCURRENT)
                pipe.replies(CONCURRENT)
                spans.append((perf_counter_ns() - before) / CONCURRENT)
            return spans

        return _sample(nodes, turns * CONCURRENT, ask)

    return measured


def _hot_leased(nodes: Nodes, calls: int) -> Round:
    """Measure decisions about one leased counter, as fast as one process makes them."""
    limit = Limit(name="hot-leased", quota=FAR, window_seconds=60, algorithm="fixed_window", consistency="leased")

    def ask() -> list[float]:
        before = perf_counter_ns()
        for _ in range(calls):
            nodes.limiter.hit(limit, _HOT_KEY)
        return [(perf_counter_ns() - before) / calls]

    def measured() -> Sample:
        for _ in range(WARM_CALLS):
            nodes.limiter.hit(limit, _HOT_KEY)
        return _sample(nodes, calls, ask)

    return measured
