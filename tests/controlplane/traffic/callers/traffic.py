"""Recorded requests of invented callers, whose every instant is known."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from controlplane.objects.policies.models import Policy
from controlplane.releases.preview.previews import Preview, Recorded
from controlplane.releases.preview.replay import Days
from controlplane.traffic.callers.chunks import Chunk
from enforcement.model.algorithms import Reference
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit

DAY = 86_400
BEGINS = 1_795_478_400  # 2026-11-24 00:00 UTC
SECOND = 1_000_000


def preview(policy: Policy, limits: Sequence[Limit], *asked: Any, **named: Any) -> Preview:
    """What *limits* would have denied of the callers of a policy; the other arguments are those of Recorded."""
    return Recorded(policy, *asked, **named).preview(limits)


def poisson(rng: random.Random, rate: float, hours: int) -> Iterator[float]:
    at = rng.expovariate(rate)
    while at < hours * 3600:
        yield at
        at += rng.expovariate(rate)


def bursts(rng: random.Random, rate: float, hours: int) -> Iterator[float]:
    """On for half a minute, off for some."""
    for start in poisson(rng, rate / 60, hours):
        at = start
        while at < min(start + 30, hours * 3600):
            yield at
            at += rng.expovariate(2)


def every_minute(rng: random.Random, rate: float, hours: int) -> Iterator[float]:
    """A job at the full minute."""
    for minute in range(hours * 60):
        for _ in range(rng.randrange(max(2, int(rate * 60)))):
            yield minute * 60 + rng.random() * 2


def callers(number: int, hours: int, seed: int) -> list[list[int]]:
    """Return the instants of the requests of some callers, in microseconds since the epoch, in order."""
    rng = random.Random(seed)
    kinds = (poisson, bursts, every_minute)
    return [
        sorted(int((BEGINS + at) * SECOND) for at in kinds[n % 3](rng, 0.05 * 1.3**n, hours)) for n in range(number)
    ]


def recorded(instants: Iterable[int]) -> Days:
    """Return what the recording keeps of these requests."""
    minutes: dict[int, list] = {}
    for second, count in sorted(Counter(instant // SECOND for instant in instants).items()):
        row = minutes.setdefault((second - BEGINS) // 60, [0, 0, [0] * 6])
        row[0] += count
        row[1] |= 1 << second % 60
        row[2][second % 60 // 10] += count
    rows = [(minute, demand, demand, bits, parts) for minute, (demand, bits, parts) in minutes.items()]
    return [(BEGINS, Chunk.of(rows))]


def truly_denied(instants: Sequence[int], limits: Sequence[Limit]) -> Counter[int]:
    """Return by hour how many of the requests the reference algorithms deny, all limits of a request together."""
    reference, denied = Reference(), Counter()
    bounds = [BoundLimit(limit, f"{{x}}:{number}", "token") for number, limit in enumerate(limits)]
    for now in instants:
        if not reference.decide(now, [(bound.key, bound.spec(now), 1) for bound in bounds])[0]:
            denied[(now // SECOND - BEGINS) // 3600] += 1
    return denied
