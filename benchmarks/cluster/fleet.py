"""
How many decisions a second a fleet makes: a simulation, which says what is busy first.

Projects lie on the nodes on which a cluster puts them, and leases are those of the library, on a clock that jumps from
one request to the next. Only the processor time of a call is a number, which ``python -m benchmarks cluster`` measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from math import inf
from unittest.mock import patch

from benchmarks.world import FAR
from enforcement.model.keys import GLOBAL_TAG, Keys
from enforcement.model.limits import Limit
from enforcement.plan.binding import bind_in_code
from enforcement.plan.reply import MARKED, Reply
from enforcement.state import lease as leasing
from enforcement.state.live_plan import LivePlan
from enforcement.store.cluster.slot_map import SLOTS, slot_of

BUSY = 0.7
"""The share of a core that is planned with: if it is always busy, everybody waits."""
MILLION = 1_000_000
FILL_SECONDS = 0.001
"""From when a lease is asked for until its permits are there."""
WARM_SECONDS, SECONDS = 3.0, 5.0
START, WINDOW_US = 1_000_000.0, 3_600_000_000
MOST_NODES = 200
MOST_RATE = 1_000.0
"""Requests a second of one lease. More cost as many calls, because each lease takes more."""
STRICT, LEASED = "strict", "leased"


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of processor time: of the store for a call, and of a process for a decision."""

    store: float
    process: float
    leased_process: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """
    Processes that decide, and the nodes that they ask.

    Attributes:
        decisions: How many a second.
        projects: Ids, which decide on which node the counters are. Each has its share of the tokens.
        tokens: How many are busy. Each has its share of the decisions.
        own: Whether the limit of each token is strict or leased.
        everybody: The same of a global limit. None: there is none.
        routed: Whether all requests of a token come to one process, and not to each of them in turn.
        largest: The share of all calls that one project has. 0: no more than the others.
    """

    decisions: float
    nodes: int
    processes: int
    projects: Sequence[str] = field(default_factory=lambda: [f"proj_{number}" for number in range(480)])
    tokens: int = 10_000
    own: str = STRICT
    everybody: str | None = None
    routed: bool = True
    largest: float = 0.0

    def own_calls(self) -> float:
        """Return how many calls a second the limits of all tokens cost."""
        if self.own == STRICT:
            return self.decisions
        pairs = self.tokens * (1 if self.routed else self.processes)
        return pairs * lease_calls(round(min(MOST_RATE, self.decisions / pairs), 1))

    def calls_of_everybody(self) -> float:
        """Return how many calls a second the global limit costs, all of them on one node."""
        if self.everybody is None:
            return 0.0
        if self.everybody == STRICT:
            return self.decisions
        return self.processes * lease_calls(round(min(MOST_RATE, self.decisions / self.processes), 1))

    def calls_by_node(self) -> list[float]:
        """Return the calls a second of each node. The global counters are on the last one of the list."""
        shares, own = Counter(node_of(project, self.nodes) for project in self.projects), self.own_calls()
        calls = [shares[node] * own * (1 - self.largest) / len(self.projects) for node in range(self.nodes)]
        calls[node_of(self.projects[0], self.nodes)] += own * self.largest
        everybody = node_of(GLOBAL_TAG, self.nodes)
        calls[everybody] += self.calls_of_everybody()
        return [*calls[:everybody], *calls[everybody + 1 :], calls[everybody]]

    def busy(self, costs: Costs) -> dict[str, float]:
        """Return which share of a core is busy: of the fullest node, of that of the global counters, of a process."""
        *others, everybody = [calls * costs.store / MILLION for calls in self.calls_by_node()]
        process = costs.process if STRICT in (self.own, self.everybody) else costs.leased_process
        found = {"the fullest node": max([*others, everybody]), "a process": self.decisions * process / MILLION}
        found["a process"] /= self.processes
        return found | ({"the node of the global limit": everybody} if self.everybody else {})

    def first(self, costs: Costs) -> str:
        """Return what is busiest."""
        shares = self.busy(costs)
        return max(reversed(shares), key=shares.__getitem__)

    def carries(self, costs: Costs) -> float:
        """
        Return at how many decisions a second, to 1 %, the first of these is as busy as planned.

        Where leases begin, more decisions cost fewer calls. So it is looked for upwards, from its own decisions if the
        fleet makes those.
        """

        def fits(decisions: float) -> bool:
            return max(replace(self, decisions=decisions).busy(costs).values()) <= BUSY

        low, high = 0.0, self.decisions
        while fits(high) and high < 100 * MILLION:
            low, high = high, 1.1 * high
        while high - low > 0.01 * high:
            middle = (low + high) / 2
            if fits(middle):
                low = middle
            else:
                high = middle
        return low

    def enough(self, costs: Costs) -> Fleet:
        """Return this fleet with as many processes and nodes as its decisions need, or ``MOST_NODES`` if none do."""
        fleet = self
        while fleet.busy(costs)["a process"] > BUSY:
            fleet = replace(fleet, processes=fleet.processes + 1)
        for nodes in count(3):
            fleet = replace(fleet, nodes=nodes)
            if nodes == MOST_NODES or max(fleet.busy(costs).values()) <= BUSY:
                return fleet
        raise AssertionError("count() has no end")


FLEETS: Mapping[str, Fleet] = {
    "strict": Fleet(MILLION, 3, 1),
    "strict, half of all in one project": Fleet(MILLION, 3, 1, largest=0.5),
    "strict, with a strict global limit": Fleet(MILLION, 3, 1, everybody=STRICT),
    "leased, each token's requests in one process": Fleet(MILLION, 3, 100, own=LEASED),
    "leased, each token's requests in all processes": Fleet(MILLION, 3, 100, own=LEASED, routed=False),
}
"""
Those of the table. Each makes a million decisions a second for 10,000 tokens of 480 projects. Processes that lease are
mostly proxies, which do more than to decide, so there are at least a hundred of them.
"""


def node_of(tag: str, nodes: int) -> int:
    """Return which of so many nodes, with equal shares of the slots in order, has the keys of a hash tag."""
    return ((slot_of(b"{%b}" % tag.encode()) + 1) * nodes - 1) // SLOTS


@cache
def lease_calls(rate: float) -> float:
    """
    Return how many calls a second the users of one lease cost that make so many requests a second, evenly spaced.

    Those that fill the lease count, and those of requests that found no permit in it.
    """
    calls, until = 0, WARM_SECONDS + SECONDS
    with _clock() as clock:
        lease, fills_at = leasing.Lease(_plan()), inf
        for number in range(1, int(until * rate) + 1):
            if (at := number / rate) > fills_at:
                clock.now, fills_at = START + fills_at, inf
                calls += _fill(lease, clock) and at > WARM_SECONDS
            clock.now = START + at
            left = lease.take(1)
            calls += left < 0 and at > WARM_SECONDS
            if left <= lease.low and not lease.asking and lease.steady():
                lease.asking, fills_at = True, at + FILL_SECONDS
    return calls / SECONDS


def _fill(lease: leasing.Lease, clock: _Clock) -> bool:
    """Fill a lease as the background thread does, and return whether that was a call."""
    lease.asking = False
    wanted = lease.wanted(FAR)
    if wanted > 0:
        now_us, ends_us = int(clock.now * MILLION), int(START * MILLION) + WINDOW_US
        left_us = ends_us - now_us
        lease.plan.last = reply = Reply([wanted, now_us, FAR, left_us, 0, left_us, ends_us], MARKED)
        lease.fill(leasing.Grant(wanted, ends_us / MILLION, reply))
    return wanted > 0


class _Clock:
    now = START

    def __call__(self) -> float:
        return self.now


@contextmanager
def _clock() -> Iterator[_Clock]:
    """Let leases read another clock while the block runs."""
    clock = _Clock()
    with patch.object(leasing, "monotonic", clock):
        yield clock


def _plan() -> LivePlan:
    limit = Limit(name="leased", quota=FAR, window_seconds=3_600, algorithm="fixed_window", consistency="leased")
    return LivePlan(bind_in_code((limit,), "user", Keys()))


def to_a_million(costs: Mapping[str, Costs]) -> list[list[str]]:
    """
    Return the rows of the table of what a million decisions a second need.

    Args:
        costs: By how processes reach the store. Leases are filled as the last of them do.
    """
    rows = []
    for shown, fleet in FLEETS.items():
        for kind in costs if fleet.own == STRICT else list(costs)[-1:]:
            needed = fleet.enough(costs[kind])
            kept = needed.nodes < MOST_NODES
            calls = f"{sum(needed.calls_by_node()):,.0f}"
            makes = needed.carries(costs[kind])
            first = replace(needed, decisions=makes).first(costs[kind])
            nodes = f"{needed.nodes}" if kept else "no number is enough"
            rows.append(
                [f"{shown}, {kind}", calls, nodes, f"{needed.processes}", first, f"{float(f'{makes:.2g}'):,.0f}"]
            )
    return rows
