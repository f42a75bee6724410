"""What decisions on a cluster cost: one after the other, in equal pipelines, and on one counter that all hit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from time import perf_counter_ns
from typing import NamedTuple

from benchmarks.cluster.nodes import EVERYONE, EVERYONE_LEASED, LEASED, OWN, PROJECTS, Nodes
from benchmarks.measure import Effort, Round, Sample, Series, interleave
from benchmarks.pipelines import Pipe, encoded
from benchmarks.tasks import CONCURRENT
from benchmarks.world import FAR
from enforcement.model.keys import Keys
from enforcement.model.limits import Consistency, Limit
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
WARM_SECONDS = 0.4
"""Before decisions count: until leases have begun, and hold as much as the rate wants."""
_HOT_KEY = "all"


def measure(nodes: Nodes, effort: Effort) -> Series:
    """Measure every kind in turn. A sample has the calls and the processor time of the stores for a decision."""
    with ExitStack() as stack:
        pipes = [stack.enter_context(closing(Pipe(server.port))) for server in nodes.cluster.primaries]
        rounds = {name: _one_by_one(nodes, kind, effort.door_seconds) for name, kind in KINDS.items()}
        rounds[PIPELINED] = _pipelined(nodes, pipes, effort)
        rounds[HOT] = _hot(nodes, pipes, effort)
        rounds[HOT_LEASED] = _hot_leased(nodes, effort.door_seconds)
        return interleave(rounds, effort.rounds)


def shares(nodes: Nodes) -> dict[int, int]:
    """Return how many projects each node has."""
    nodes.globally(None)  # else the first counter of a plan is the global one
    keys = [nodes.limiter.find_plan(token, None).keys[0] for token in nodes.tokens[OWN]]
    return dict(sorted(Counter(map(nodes.cluster.index_of, keys)).items()))


def _sample(nodes: Nodes, ask: Callable[[], Sequence[float]], each: int = 1) -> Sample:
    """Measure an action that returns the nanoseconds of a decision, as the mean of *each* at a time."""
    before, start = nodes.load(), perf_counter_ns()
    spans = ask()
    elapsed, after, calls = perf_counter_ns() - start, nodes.load(), len(spans) * each
    used = [(b - a) / calls for a, b in zip(before.cpu_us, after.cpu_us, strict=True)]
    more = {"calls": (after.calls - before.calls) / calls, "store_us": sum(used), "fullest_us": max(used)}
    return Sample.of([round(span) for span in spans], elapsed, calls, **more)


def _timed(act: Callable[[], object], each: int) -> float:
    before = perf_counter_ns()
    act()
    return (perf_counter_ns() - before) / each


def _for(seconds: float, act: Callable[[], object], each: int = 1) -> list[float]:
    """Repeat an action for so long, and return the nanoseconds of each time, divided by *each*."""
    spans, end = [], perf_counter_ns() + int(seconds * 1e9)
    while perf_counter_ns() < end:
        spans.append(_timed(act, each))
    return spans


def _one_by_one(nodes: Nodes, kind: Kind, seconds: float) -> Round:
    """Measure one decision after the other, of all projects in turn."""
    tokens, check = itertools.cycle(nodes.tokens[kind.policy]), nodes.limiter.check

    def act() -> None:
        decision = check(next(tokens))
        if not decision.allowed or decision.source not in ("store", "lease"):
            raise AssertionError(f"A decision came from {decision.source}: nothing can be told of this run.")

    def measured() -> Sample:
        nodes.globally(kind.everybody)
        _for(WARM_SECONDS, act)
        return _sample(nodes, partial(_for, seconds, act))

    return measured


def _pipelined(nodes: Nodes, pipes: Sequence[Pipe], effort: Effort) -> Round:
    """Measure decisions that are written at once, one of each project, on a connection to each node."""
    commands: dict[int, list[bytes]] = {}
    for token, command in zip(nodes.tokens[OWN], encoded(nodes.limiter, nodes.tokens[OWN]), strict=True):
        key = nodes.limiter.find_plan(token, None).keys[0]
        commands.setdefault(nodes.cluster.index_of(key), []).append(command)

    def act() -> None:
        for node, some in commands.items():
            pipes[node].send(b"".join(some))
            pipes[node].replies(len(some))

    return lambda: _sample(nodes, partial(_for, effort.door_seconds, act, PROJECTS), PROJECTS)


def _hot(nodes: Nodes, pipes: Sequence[Pipe], effort: Effort) -> Round:
    """Measure equal pipelines of decisions about one counter."""
    plan = Plan(bind_in_code((_hot_limit("strict"),), _HOT_KEY, Keys()))
    pipe = pipes[nodes.cluster.index_of(plan.keys[0])]
    commands = Request(plan, 1).encode(0, clock=False, registers=False) * CONCURRENT

    def act() -> None:
        pipe.send(commands)
        pipe.replies(CONCURRENT)

    return lambda: _sample(nodes, partial(_for, effort.door_seconds, act, CONCURRENT), CONCURRENT)


def _hot_leased(nodes: Nodes, seconds: float) -> Round:
    """Measure decisions about one leased counter, as fast as one process makes them."""
    limit = _hot_limit("leased")

    def act() -> None:
        for _ in range(CONCURRENT):
            nodes.limiter.hit(limit, _HOT_KEY)

    def measured() -> Sample:
        _for(WARM_SECONDS, act)
        return _sample(nodes, partial(_for, seconds, act, CONCURRENT), CONCURRENT)

    return measured


def _hot_limit(consistency: Consistency) -> Limit:
    return Limit(name=consistency, quota=FAR, window_seconds=60, algorithm="fixed_window", consistency=consistency)
