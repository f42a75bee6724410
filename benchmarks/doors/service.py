"""What a decision of the decision service costs by itself, on a core of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import figures
from benchmarks.doors import generator
from benchmarks.doors.proxies import GRPC, found
from benchmarks.doors.servers import Server, observed, other_core, ours, sample_of, server, told
from benchmarks.figures import Row, rate
from benchmarks.measure import Effort, Sample, Series, interleave
from benchmarks.web import CONNECTIONS, authorization
from benchmarks.world import SHARED, World
from enforcement.embedded import free_port
from enforcement.service.rls import PATH

SERVERS = ("h2corn", "uvicorn")
STRICT = ("1 limit", "3 limits")
LIMITS = ("no limit", *STRICT, "leased")
PLAIN_GRPC = "grpc.aio that answers OK"
_HTTP = "Service on {}, {}: decisions/s (CPU a call) / no limit"
_RLS = "Service, RLS, 1 limit: CPU of a decision / grpc.aio that answers OK without deciding"
_OK = b"\x08\x01"


def tokens(store: World) -> dict[str, str]:
    """Publish a token for each number of limits."""
    return {
        "no limit": store.tokens(None, 1)[0],
        "1 limit": store.tokens("fixed", 1)[0],
        "3 limits": store.tokens("two", 1, project=SHARED)[0],
        "leased": store.tokens("leased", 1)[0],
    }


def compare(store: World, effort: Effort) -> tuple[list[Row], Series | None]:
    """Measure forward auth on each server, and RLS beside a server that decides nothing."""
    core = other_core()
    if core is None:
        return [figures.absent(_RLS, figures.RLS)], None
    shown, rounds = tokens(store), {}
    with ExitStack() as stack:
        for kind in SERVERS:
            running = stack.enter_context(ours("serve", store.url, "--server", kind, core=core))
            for name, token in shown.items():
                ask = partial(_http, running.port, token, effort)
                rounds[f"{kind}, {name}"] = observed(ask, store, strict=name in STRICT, cpu=running)
            if kind == "h2corn":
                ask = partial(_rls, running.port, message(shown["1 limit"]), effort)
                rounds["RLS"] = observed(ask, store, strict=True, cpu=running)
        python = found(GRPC)
        if python:
            other = stack.enter_context(_grpc(python, core))
            ask = partial(_rls, other.port, message(shown["1 limit"]), effort)
            rounds[PLAIN_GRPC] = observed(ask, store, strict=False, cpu=other)
        series = interleave(rounds, effort.rounds)
    rows = [_row(series, kind, name) for kind in SERVERS for name in LIMITS[1:]]
    if not python:
        return [*rows, figures.absent(_RLS, figures.RLS)], series
    costs = [_cost(series, name) for name in ("RLS", PLAIN_GRPC)]
    return [*rows, Row(_RLS, *costs, series.ratio("RLS", PLAIN_GRPC, "cpu"), figures.RLS)], series


def _http(port: int, token: str, effort: Effort) -> Sample:
    fields = authorization(token)
    return sample_of(
        *generator.get(port, fields, connections=CONNECTIONS, seconds=effort.door_seconds, path="/v1/check")
    )


def _rls(port: int, text: bytes, effort: Effort) -> Sample:
    return sample_of(*generator.call(port, PATH, text, _OK, streams=CONNECTIONS, seconds=effort.door_seconds))


def message(token: str) -> bytes:
    """Return a request of Envoy's rate limit service, with one descriptor, that shows a token."""
    entries = (("token", token), ("method", "GET"), ("path", "/"))
    descriptor = b"".join(_field(1, _field(1, key.encode()) + _field(2, value.encode())) for key, value in entries)
    return _field(1, b"website") + _field(2, descriptor)


def _field(number: int, value: bytes) -> bytes:
    assert len(value) < 0x4000
    size = bytes((len(value),)) if len(value) < 0x80 else bytes((len(value) & 0x7F | 0x80, len(value) >> 7))
    return bytes((number << 3 | 2,)) + size + value


@contextmanager
def _grpc(python: str, core: int) -> Iterator[Server]:
    port = free_port()
    command: Sequence[str | Path] = [python, Path(__file__).with_name("grpc_ok.py"), str(port)]
    with server(command, port, core=core, PYTHONPATH="") as running:
        yield running


def _cost(series: Series, name: str) -> str:
    return told({"CPU": series.median(name, "cpu")})


def _row(series: Series, kind: str, name: str) -> Row:
    both = [f"{kind}, {it}" for it in (name, "no limit")]
    shown = [f"{rate(series.median(it, 'per_second'))}, {_cost(series, it)}" for it in both]
    return Row(_HTTP.format(kind, name), *shown, series.ratio(*both, "per_second"))
