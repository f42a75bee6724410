"""How many requests the reverse proxy passes on a core of its own, beside those that a bare upstream answers there."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from benchmarks import figures
from benchmarks.doors import generator
from benchmarks.doors.servers import application, observed, other_core, ours, sample_of, told
from benchmarks.figures import Row, rate
from benchmarks.measure import Effort, Round, Sample, Series, interleave
from benchmarks.web import CONNECTIONS, authorization
from benchmarks.world import World

_FIGURE = "Proxy, {}: requests of a core by its CPU a request / the bare upstream"


def compare(store: World, effort: Effort) -> tuple[list[Row], Series | None]:
    """
    Measure an upstream alone, and the proxy in front of another one.

    The core that is measured has nothing but the upstream, or the proxy. The generator, the upstream behind the proxy
    and the store share the other core. The series is None if there is no second core.
    """
    core = other_core()
    if core is None:
        return [figures.absent(_FIGURE.format("strict"), figures.PROXY)], None
    shown = {"strict": store.tokens("fixed", 1)[0], "leased": store.tokens("leased", 1)[0]}
    with ExitStack() as stack:
        alone = stack.enter_context(application("bare", core=core))
        behind = stack.enter_context(application("bare"))
        address = f"http://127.0.0.1:{behind.port}"
        proxy = stack.enter_context(ours("proxy", store.url, core=core, SLUICEGATE_UPSTREAM_URL=address))
        rounds: dict[str, Round] = {}
        for name, token in {"bare": shown["strict"], **shown}.items():
            server = alone if name == "bare" else proxy
            ask = partial(_ask, server.port, authorization(token), effort)
            rounds[name] = observed(ask, store, strict=name == "strict", cpu=server)
        series = interleave(rounds, effort.rounds)
    return [_row(series, name) for name in shown], series


def _ask(port: int, fields: str, effort: Effort) -> Sample:
    return sample_of(*generator.get(port, fields, connections=CONNECTIONS, seconds=effort.door_seconds))


def _row(series: Series, name: str) -> Row:
    shown = [
        f"{rate(series.median(it, 'per_second'))}, {told({'CPU': series.median(it, 'cpu')})}" for it in (name, "bare")
    ]
    bar = figures.PROXY if name == "strict" else None
    return Row(_FIGURE.format(name), *shown, series.ratio("bare", name, "cpu"), bar)
