"""What a limiter adds to a request of an ASGI application under uvicorn, everything on one core."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from benchmarks import figures
from benchmarks.doors.servers import Server, observed, server
from benchmarks.figures import Row, us
from benchmarks.load import press
from benchmarks.measure import Effort, Sample, Series, interleave
from benchmarks.world import World
from enforcement.embedded import free_port

CONNECTIONS = 32


def compare(store: World, effort: Effort, *, leased: bool) -> tuple[list[Row], Series]:
    """Measure the bare application, and behind each limiter."""
    strict = store.tokens("fixed", 1)[0]
    # All get the same request, also the bare application: to read one more field costs a server something, too.
    headers = dict.fromkeys(("bare", "limits.aio", "limits.aio with headers", "strict"), authorization(strict))
    if leased:
        headers["leased"] = authorization(store.tokens("leased", 1)[0])
    with serving(headers, store.url) as servers:
        rounds = {
            name: observed(_pressing(it.port, headers[name], effort), store, strict=name == "strict", cpu=it)
            for name, it in servers.items()
        }
        series = interleave(rounds, effort.rounds)
    return _rows(series, leased), series


def authorization(token: str) -> str:
    """Return the header field that shows a token."""
    return f"Authorization: Bearer {token}\r\n"


def _pressing(port: int, headers: str, effort: Effort) -> Callable[[], Sample]:
    return lambda: asyncio.run(press(port, headers, CONNECTIONS, effort.http_seconds))


def _rows(series: Series, leased: bool) -> list[Row]:
    def added(name: str) -> str:
        return us(series.median(name, "cpu") - series.median("bare", "cpu"))

    rows = []
    for theirs, bar in (("limits.aio", figures.DOOR), ("limits.aio with headers", None)):
        ratio = series.added_ratio("strict", theirs, "bare", "cpu")
        rows.append(Row(f"ASGI, strict: added CPU a request / {theirs}", added("strict"), added(theirs), ratio, bar))
    figure = "ASGI, leased: CPU of the server a request / the application alone"
    if not leased:
        return [*rows, figures.absent(figure, figures.DOOR_LEASED)]
    told = [us(series.median(name, "cpu")) for name in ("leased", "bare")]
    return [*rows, Row(figure, *told, series.ratio("leased", "bare", "cpu"), figures.DOOR_LEASED)]


@contextmanager
def serving(names: Iterable[str], url: str, environment: Mapping[str, str] = {}) -> Iterator[dict[str, Server]]:
    """Serve applications while a block lasts, with further variables."""
    with ExitStack() as stack:
        servers = {}
        for name in names:
            port = free_port()
            command = [sys.executable, "-m", "benchmarks.apps", name, url, str(port)]
            servers[name] = stack.enter_context(server(command, port, **environment))
        yield servers
