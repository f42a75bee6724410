"""What it costs nginx and Envoy to ask the decision service about each request."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial

from benchmarks import figures
from benchmarks.doors import generator
from benchmarks.doors.proxies import ENVOY, NGINX, PLAIN, envoy, found, nginx
from benchmarks.doors.servers import Server, application, observed, other_core, ours, sample_of, told
from benchmarks.figures import Row, rate, us
from benchmarks.measure import Effort, Round, Sample, Series, interleave, one_by_one
from benchmarks.peers import SyncPeers
from benchmarks.threads import USERS
from benchmarks.web import CONNECTIONS, authorization
from benchmarks.world import World

FILTERS = {NGINX: ("auth_request",), ENVOY: ("ext-authz-http", "ext-authz-grpc", "rls")}
_WITH_LEASES = ("auth_request", "rls")
_SILENT = "{}, does not ask"
_THROUGH = "{}: requests/s (CPU a request) / the proxy that does not ask"

FCALL = "redis-py FCALL of nothing"
_ADDED = "nginx auth_request, {}, one by one: added p50 / p50 of a bare FCALL"
_BARS = {"strict": figures.AUTH_REQUEST, "leased": figures.AUTH_REQUEST_LEASED}


def throughput(store: World, effort: Effort) -> tuple[list[Row], Series | None]:
    """Measure many requests at once. The service has a core of its own, everything else shares the other one."""
    core, paths = other_core(), {name: found(name) for name in FILTERS}
    if core is None or not any(paths.values()):
        return _absent(FILTERS), None
    fields = _fields(store)
    rounds: dict[str, Round] = {}
    with ExitStack() as stack:
        service = stack.enter_context(ours("serve", store.url, core=core))
        upstream = stack.enter_context(application("bare"))
        for name, path in paths.items():
            for filter_ in (PLAIN, *FILTERS[name]) if path else ():
                proxy = stack.enter_context(_start(name, str(path), filter_, service.port, upstream.port))
                watched = {"proxy": proxy, "service": service} if filter_ else {"proxy": proxy}
                rounds |= _rounds(store, effort, name, filter_, fields, watched)
        series = interleave(rounds, effort.rounds)
    return [*_rows(series), *_absent(name for name, path in paths.items() if not path)], series


def _fields(store: World) -> dict[str, str]:
    return {
        "strict": authorization(store.tokens("fixed", 1)[0]),
        "leased": authorization(store.tokens("leased", 1)[0]),
    }


def _start(name: str, path: str, filter_: str, service: int, upstream: int) -> AbstractContextManager[Server]:
    if name == NGINX:
        return nginx(path, service=service, application=upstream, asks=bool(filter_))
    return envoy(path, filter_, service=service, application=upstream)


def _rounds(
    store: World, effort: Effort, name: str, filter_: str, fields: Mapping[str, str], watched: Mapping[str, Server]
) -> Iterator[tuple[str, Round]]:
    for kind in fields if filter_ in _WITH_LEASES else ("strict",):
        ask = partial(_ask, watched["proxy"].port, fields[kind], CONNECTIONS, effort)
        shown = f"{name}, {filter_}, {kind}" if filter_ else _SILENT.format(name)
        yield shown, observed(ask, store, strict=bool(filter_) and kind == "strict", **watched)


def _ask(port: int, fields: str, connections: int, effort: Effort) -> Sample:
    return sample_of(*generator.get(port, fields, connections=connections, seconds=effort.door_seconds))


def _rows(series: Series) -> list[Row]:
    rows = []
    for name in series.samples:
        plain = _SILENT.format(name.partition(", ")[0])
        if name != plain:
            shown = [f"{rate(series.median(it, 'per_second'))}, {_costs(series, it)}" for it in (name, plain)]
            rows.append(Row(_THROUGH.format(name), *shown, series.ratio(name, plain, "per_second")))
    return rows


def _costs(series: Series, name: str) -> str:
    measured = [who for who in ("proxy", "service") if who in series.samples[name][0].more]
    return told({who: series.median(name, who) for who in measured})


def _absent(names: Iterable[str]) -> list[Row]:
    """Return a row for each filter of proxies that this machine cannot have."""
    return [figures.absent(_THROUGH.format(f"{name}, {filter_}"), None) for name in names for filter_ in FILTERS[name]]


def latency(store: World, effort: Effort) -> tuple[list[Row], Series | None]:
    """
    Measure what nginx' question adds to a request that comes alone.

    Everything shares one core, as the bare FCALL and the store do: it costs more than some calls to wake another core.
    """
    path = found(NGINX)
    if not path:
        return [figures.absent(_ADDED.format(name), bar) for name, bar in _BARS.items()], None
    fields = _fields(store)
    with ExitStack() as stack:
        service = stack.enter_context(ours("serve", store.url))
        upstream = stack.enter_context(application("bare"))
        ports = {"service": service.port, "application": upstream.port}
        plain = stack.enter_context(nginx(path, asks=False, **ports))
        asking = stack.enter_context(nginx(path, **ports))
        peers = stack.enter_context(closing(SyncPeers(store.url)))
        rounds = {FCALL: one_by_one(peers.nothing, USERS, effort.calls)}
        for name, kind, proxy in (("plain", "strict", plain), *((kind, kind, asking) for kind in fields)):
            ask = partial(_ask, proxy.port, fields[kind], 1, effort)
            rounds[name] = observed(ask, store, strict=name == "strict")
        series = interleave(rounds, effort.rounds)
    return [_added(series, name) for name in _BARS], series


def _added(series: Series, name: str) -> Row:
    each = zip(*(series.samples[it] for it in (name, "plain", FCALL)), strict=True)
    ratio = statistics.median((asks.p50 - alone.p50) / fcall.p50 for asks, alone, fcall in each)
    added = series.median(name) - series.median("plain")
    return Row(_ADDED.format(name), us(added), us(series.median(FCALL)), ratio, _BARS[name])
