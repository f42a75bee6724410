"""How many requests the reverse proxy passes on a core of its own, beside those of the bare upstream."""

from __future__ import annotations

import os

from benchmarks import figures
from benchmarks.apps import CORE, UPSTREAM
from benchmarks.figures import Row
from benchmarks.measure import Effort, Series, interleave
from benchmarks.web import authorization, pressing, serving
from benchmarks.world import World

_FIGURE = "Proxy on a core of its own, {}: requests/s / the bare upstream"


def compare(store: World, effort: Effort, *, leased: bool) -> tuple[list[Row], Series | None]:
    """Measure the upstream alone, and through the proxy. The series is None if there is no second core."""
    core = _other_core()
    if core is None:
        return [figures.absent(_FIGURE.format("strict"), figures.PROXY)], None
    strict = store.tokens("fixed", 1)[0]
    headers = {"bare": authorization(strict), "strict": authorization(strict)}
    if leased:
        headers["leased"] = authorization(store.tokens("leased", 1)[0])
    with serving(["bare"], store.url) as upstream:
        address = f"http://127.0.0.1:{upstream['bare']}"
        with serving(["proxy"], store.url, {UPSTREAM: address, CORE: str(core)}) as proxy:
            ports = {**upstream, "strict": proxy["proxy"], "leased": proxy["proxy"]}
            rounds = {name: pressing(store, ports[name], headers, name, effort.http_seconds) for name in headers}
            series = interleave(rounds, effort.rounds)
    return [_row(series, name) for name in headers if name != "bare"], series


def _row(series: Series, name: str) -> Row:
    ours, theirs = (figures.rate(series.median(who, "per_second")) for who in (name, "bare"))
    bar = figures.PROXY if name == "strict" else None
    return Row(_FIGURE.format(name), ours, theirs, series.ratio(name, "bare", "per_second"), bar)


def _other_core() -> int | None:
    """Return a core that this process is not bound to and may use, or None if there is none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    bound = os.sched_getaffinity(0)
    try:
        for core in range(os.cpu_count() or 1):
            if core not in bound:
                try:
                    os.sched_setaffinity(0, {core})
                except OSError:
                    continue
                return core
        return None
    finally:
        os.sched_setaffinity(0, bound)
