"""What it costs the reverse proxy to meter requests to a provider of models, beside passing them on unread."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks import figures
from benchmarks.doors import generator
from benchmarks.doors.provider import CHUNKS, PATH, chat
from benchmarks.doors.servers import Server, observed, other_core, ours, sample_of, server, told
from benchmarks.figures import Row, rate, us
from benchmarks.measure import Effort, Round, Sample, Series, interleave
from benchmarks.threads import PATIENCE
from benchmarks.web import CONNECTIONS, authorization
from benchmarks.world import World
from enforcement.aio import Admission, Limiter
from enforcement.embedded import free_port

REQUEST_US, CHUNK_US = 75, 2
TOGETHER = 16
"""How many settlements wait at the same time."""
TRIES = 5
STREAMS = 8
"""How many streams pass at the same time."""
PLAIN = "not metered"
KINDS = {
    "tokens": "tokens",
    "money": "money",
    "money under a bound": "bound",
    "requests, tokens, money and slots": "four kinds",
}
_ADDED = "Proxy, {} metered, 2 KB bodies: CPU that this adds to a request / {} us"
_CHUNK = f"Proxy, tokens metered, streams: CPU that this adds to a chunk / {CHUNK_US} us"
_RATE = "Proxy, {} metered, 2 KB bodies: requests/s of a core (CPU a request) / not metered"
_TRIPS = f"{TOGETHER} settlements at the same time: round trips / one after the other"


def compare(store: World, effort: Effort) -> tuple[list[Row], Series | None]:
    """
    Measure the proxy with and without meters, each with one limit. The series is None if there is no second core.

    The core that is measured has nothing but the proxies. The generator, the provider and the store share the other
    one.
    """
    core = other_core()
    if core is None:
        bars = {_ADDED.format("tokens", REQUEST_US): figures.METERED, _CHUNK: figures.METERED_CHUNK}
        bars |= {_RATE.format("tokens"): figures.METERED_RATE}
        return [*(figures.absent(name, bar) for name, bar in bars.items()), _round_trips(store)], None
    fields = {name: authorization(store.tokens(policy, 1)[0]) for name, policy in {PLAIN: "fixed", **KINDS}.items()}
    rounds: dict[str, Round] = {}
    with ExitStack() as stack:
        behind = stack.enter_context(provider())
        variables = {"SLUICEGATE_UPSTREAM_URL": f"http://127.0.0.1:{behind.port}"}
        proxies = [
            stack.enter_context(ours("proxy", store.url, core=core, SLUICEGATE_METER=meter, **variables))
            for meter in ("off", "auto")
        ]
        for name, field in fields.items():
            proxy = proxies[name != PLAIN]
            rounds[name] = observed(partial(_whole, proxy.port, field, effort), store, strict=True, cpu=proxy)
        for name in (PLAIN, "tokens"):
            proxy = proxies[name != PLAIN]
            ask = partial(_streams, proxy.port, fields[name], effort)
            rounds[f"{name}, streams"] = observed(ask, store, strict=True, cpu=proxy)
        series = interleave(rounds, effort.rounds)
    return [*_rows(series), _round_trips(store)], series


@contextmanager
def provider(*, core: int | None = None) -> Iterator[Server]:
    """Run the provider while the block runs."""
    port = free_port()
    with server([sys.executable, "-m", "benchmarks.doors.provider", str(port)], port, core=core) as running:
        yield running


def _whole(port: int, fields: str, effort: Effort) -> Sample:
    seconds = effort.door_seconds
    return sample_of(*generator.post(port, fields, chat(), connections=CONNECTIONS, seconds=seconds, path=PATH))


def _streams(port: int, fields: str, effort: Effort) -> Sample:
    seconds = effort.door_seconds
    body = chat(stream=True)
    return sample_of(*generator.post(port, fields, body, connections=STREAMS, seconds=seconds, path=PATH))


def _rows(series: Series) -> list[Row]:
    rows = []
    for name in KINDS:
        is_promised = name == "tokens"
        added = _added(series, name, PLAIN)
        figure = _ADDED.format(name, REQUEST_US)
        rows.append(Row(figure, us(added), f"{REQUEST_US} us", added / REQUEST_US, figures.METERED))
        shown = [f"{rate(series.median(it, 'per_second'))}, {_cpu(series, it)}" for it in (name, PLAIN)]
        bar = figures.METERED_RATE if is_promised else None
        rows.append(Row(_RATE.format(name), *shown, series.ratio(name, PLAIN, "per_second"), bar))
    # The rest of what is added to a stream is its request, which costs as much as one with a whole answer.
    chunk = (_added(series, "tokens, streams", f"{PLAIN}, streams") - _added(series, "tokens", PLAIN)) / CHUNKS
    return [*rows, Row(_CHUNK, us(chunk), f"{CHUNK_US} us", chunk / CHUNK_US, figures.METERED_CHUNK)]


def _added(series: Series, ours_: str, theirs: str) -> float:
    """Return the microseconds of processor time that one adds to a request of the other, the median over the rounds."""
    pairs = zip(series.samples[ours_], series.samples[theirs], strict=True)
    return statistics.median(a.value("cpu") - b.value("cpu") for a, b in pairs)


def _cpu(series: Series, name: str) -> str:
    return told({"CPU": series.median(name, "cpu")})


def _round_trips(store: World) -> Row:
    """Count how often the store reads from its connections while reservations are settled, the median of some tries."""
    # The background of the limiter asks something now and then.
    tries = [asyncio.run(_settled(store)) for _ in range(TRIES)]
    alone, together = (int(statistics.median(counts)) for counts in zip(*tries, strict=True))
    return Row(_TRIPS, str(together), str(alone), together / alone, figures.SHARED_TRIP)


async def _settled(store: World) -> tuple[int, int]:
    """Return the round trips of settlements one after the other, and at the same time."""
    (token,) = store.tokens("tokens", 1)
    async with Limiter(store.url, timeout=PATIENCE) as limiter:
        plan = await limiter.find_plan(token, {})
        counts = []
        for at_once in (False, True):
            held = [await limiter.admit_plan(plan, {"tokens": 900}, {}, {}) for _ in range(TOGETHER)]
            before = store.reads()
            await (_together(held) if at_once else _one_by_one(held))
            counts.append(store.reads() - before - 1)  # without the question itself
    return counts[0], counts[1]


async def _together(held: list[Admission]) -> None:
    await asyncio.gather(*(admission.conclude({"tokens": 500}) for admission in held))


async def _one_by_one(held: list[Admission]) -> None:
    for admission in held:
        await admission.conclude({"tokens": 500})
