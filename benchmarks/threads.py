"""Decisions one after the other: latency of the limiter for threads beside its peers, known denials, bytes, tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

from benchmarks import figures
from benchmarks.figures import Row, rate, us
from benchmarks.measure import SUBJECTS, Effort, Round, Sample, Series, in_batches, interleave, one_by_one
from benchmarks.peers import CLOSED as PEERS_CLOSED
from benchmarks.peers import MINUTE, SyncPeers
from benchmarks.world import (
    BUCKET,
    CLOSED,
    LEASED,
    PER_DAY,
    PER_MINUTE,
    PROJECT_MINUTE,
    SHARED,
    SLIDING,
    World,
    token_id,
    world,
)
from enforcement.limiter import Limiter
from enforcement.plan.binding import bind_in_code

PATIENCE = 0.25
"""
Seconds a decision may take here, instead of 0.025: on a busy machine a process may lose its core for that long, and the
answers of the fallback, which are quicker, must not be taken for decisions of the store.
"""
USERS = [f"user:{i}" for i in range(SUBJECTS)]
IN_CODE = (PER_MINUTE, PER_DAY, PROJECT_MINUTE)


def compare(store: World, effort: Effort) -> tuple[list[Row], Series]:
    """Measure serial decisions of every kind."""
    with ExitStack() as stack:
        peers = stack.enter_context(closing(SyncPeers(store.url)))
        limiter = stack.enter_context(Limiter(store.url, timeout=PATIENCE))
        candidates = _candidates(store, peers, limiter)
        rounds = {name: one_by_one(call, subjects, effort.calls) for name, (call, subjects) in candidates.items()}
        series = interleave(rounds, effort.rounds)
        _assert_healthy(limiter, limiter.hit(PER_MINUTE, USERS[0]).source)
    return _rows(series), series


def _candidates(
    store: World, peers: SyncPeers, limiter: Limiter
) -> dict[str, tuple[Callable[..., Any], Sequence[str]]]:
    return {
        "redis-py FCALL of nothing": (peers.nothing, USERS),
        "redis-py EVALSHA": (peers.evalsha, USERS),
        "limits fixed": (lambda key: peers.fixed.hit(MINUTE, key), USERS),
        "limits sliding": (lambda key: peers.sliding.hit(MINUTE, key), USERS),
        "throttled-py GCRA": (peers.gcra, USERS),
        "limits, three calls": (peers.three, USERS),
        "check fixed": (limiter.check, store.tokens("fixed", SUBJECTS)),
        "check sliding": (limiter.check, store.tokens("sliding", SUBJECTS)),
        "check bucket": (limiter.check, store.tokens("bucket", SUBJECTS)),
        "check three": (limiter.check, store.tokens("two", SUBJECTS, project=SHARED)),
        "hit fixed": (lambda key: limiter.hit(PER_MINUTE, key), USERS),
        "hit sliding": (lambda key: limiter.hit(SLIDING, key), USERS),
        "hit bucket": (lambda key: limiter.hit(BUCKET, key), USERS),
        "hit three": (lambda key: limiter.hit(IN_CODE, key), USERS),
    }


def _rows(series: Series) -> list[Row]:
    def row(figure: str, ours: str, theirs: str, bar: figures.Bar | None) -> Row:
        told = us(series.median(ours)), us(series.median(theirs))
        return Row(f"{ours.split()[0]}, {figure}", *told, series.ratio(ours, theirs), bar)

    rows = []
    for call in ("check", "hit"):
        rows += [
            row("1 limit: p50 / bare FCALL of nothing", f"{call} fixed", "redis-py FCALL of nothing", None),
            row("1 limit: p50 / redis-py EVALSHA", f"{call} fixed", "redis-py EVALSHA", figures.EVALSHA),
            row("1 limit: p50 / limits fixed", f"{call} fixed", "limits fixed", figures.PEER),
            row("1 limit: p50 / limits sliding", f"{call} sliding", "limits sliding", figures.PEER),
            row("1 limit: p50 / throttled-py GCRA", f"{call} bucket", "throttled-py GCRA", figures.PEER),
            row("3 limits: p50 / three limits calls", f"{call} three", "limits, three calls", figures.THREE_CALLS),
            row("3 limits / 1 limit, ours", f"{call} three", f"{call} fixed", figures.THREE_TO_ONE),
        ]
    return rows


def denials(store: World, effort: Effort) -> tuple[list[Row], Series]:
    """Measure denials that are known, the calls to the store that renew that knowledge included."""
    with closing(SyncPeers(store.url)) as peers, Limiter(store.url, timeout=PATIENCE) as limiter:
        token = store.tokens("closed", 1)[0]
        candidates: dict[str, Round] = {
            "limits denial": one_by_one(lambda key: peers.fixed.hit(PEERS_CLOSED, key), ["user:1"], effort.calls),
            "check denial": in_batches(limiter.check, token, effort.local_calls),
            "hit denial": in_batches(lambda key: limiter.hit(CLOSED, key), "user:1", effort.local_calls),
        }
        series = interleave(candidates, effort.rounds)
        limiter.check(token)  # asks the store if what was known has become old
        _assert_healthy(limiter, limiter.check(token).source, "denial_cache")
    rows = []
    for ours in ("check denial", "hit denial"):
        told = us(series.median(ours)), us(series.median("limits denial"))
        ratio = series.ratio(ours, "limits denial")
        rows.append(Row(f"{ours.split()[0]}, known denial / limits denial", *told, ratio, figures.KNOWN_DENIAL))
    return rows, series


def leases(store: World, effort: Effort) -> tuple[list[Row], Series | None]:
    """Measure leased decisions, refills included, if there are any."""
    name = "leased decision incl. refills: speed over limits memory storage"
    with closing(SyncPeers(store.url)) as peers, Limiter(store.url, timeout=PATIENCE) as limiter:
        if not any(limiter.hit(LEASED, "user:1").source == "lease" for _ in range(1_000)):
            return [figures.absent(name, figures.LEASED)], None
        candidates: dict[str, Round] = {
            "limits memory": in_batches(lambda key: peers.memory.hit(MINUTE, key), "user:1", effort.local_calls),
            "check leased": in_batches(limiter.check, store.tokens("leased", 1)[0], effort.local_calls),
            "hit leased": in_batches(lambda key: limiter.hit(LEASED, key), "user:1", effort.local_calls),
        }
        series = interleave(candidates, effort.rounds)
    rows = []
    for ours in ("check leased", "hit leased"):
        told = rate(series.median(ours, "per_second")), rate(series.median("limits memory", "per_second"))
        ratio = series.ratio(ours, "limits memory", "per_second")
        rows.append(Row(f"{ours.split()[0]}, {name}", *told, ratio, figures.LEASED))
    return rows, series


def sizes(store: World) -> list[Row]:
    """Compare what one live counter of a fixed window takes in the store, for the same person or token."""
    with closing(SyncPeers(store.url)) as peers, Limiter(store.url, timeout=PATIENCE) as limiter:
        token = store.tokens("fixed", 1)[0]
        before = set(store.client.scan_iter("sg:{proj_*", count=1_000))
        for _ in range(2):  # a second call may store a counter in another shape than the first
            limiter.check(token)
            limiter.hit(PER_MINUTE, "user:size")
        named = next(iter(set(store.client.scan_iter("sg:{proj_*", count=1_000)) - before))
        in_code = bind_in_code([PER_MINUTE], "user:size", store.keys)[0].key
        pairs = {"check": (named, token_id(0)), "hit": (in_code, "user:size")}
        rows = []
        for call, (ours, identity) in pairs.items():
            for _ in range(2):
                peers.fixed.hit(MINUTE, identity)
            theirs = MINUTE.key_for(identity)
            mine, other = (int(store.client.memory_usage(key) or 0) for key in (ours, f"LIMITS:{theirs}"))
            figure = f"{call}, bytes a live counter / limits fixed, same identity"
            rows.append(Row(figure, f"{mine} B", f"{other} B", mine / other, figures.BYTES))
    return rows


def many_tokens(few: World, effort: Effort) -> tuple[list[Row], Series]:
    """Measure checks where many tokens are published beside checks where a hundred are."""
    with ExitStack() as stack:
        many = stack.enter_context(world())
        near, far = (stack.enter_context(Limiter(store.url, timeout=PATIENCE)) for store in (few, many))
        peer_near, peer_far = (stack.enter_context(closing(SyncPeers(store.url))) for store in (few, many))
        here, there = few.tokens("fixed", 100), many.tokens("fixed", effort.tokens)
        sample = random.Random(1).sample(there, 100)
        candidates: dict[str, Round] = {
            "check of 100": one_by_one(near.check, here, effort.calls),
            "check of many": one_by_one(far.check, sample, effort.calls),
            "EVALSHA of 100": one_by_one(peer_near.evalsha, USERS, effort.calls),
            "EVALSHA of many": one_by_one(peer_far.evalsha, USERS, effort.calls),
            "first check of 100": _first_checks(few.url, lambda: here),
            "first check of many": _first_checks(many.url, lambda: random.sample(there, 100)),
        }
        series = interleave(candidates, effort.rounds)
    # The peer knows nothing of tokens: what it loses is what any store loses that holds more keys.
    kinds = {"check": figures.MANY_TOKENS, "first check": figures.MANY_TOKENS, "EVALSHA": None}
    rows = []
    for kind, bar in kinds.items():
        ours, theirs = f"{kind} of many", f"{kind} of 100"
        told = us(series.median(ours)), us(series.median(theirs))
        figure = f"{kind} with {effort.tokens:,} tokens published: p50 / with 100"
        rows.append(Row(figure, *told, series.ratio(ours, theirs), bar))
    return rows, series


def _first_checks(url: str, tokens: Callable[[], Sequence[str]]) -> Round:
    """Check tokens that a limiter has not met: it asks the store for each."""

    def measure() -> Sample:
        warm, *others = tokens()
        with Limiter(url, timeout=PATIENCE) as limiter:
            limiter.check(warm)  # connects
            return one_by_one(limiter.check, others, len(others))()

    return measure


def _assert_healthy(limiter: Limiter, source: str, expected: str = "store") -> None:
    """Make sure that what was measured is what is told."""
    if (limiter.state, source) != ("ok", expected):
        raise AssertionError(
            f"The limiter was {limiter.state} and decided by {source}: nothing can be told of this run."
        )
