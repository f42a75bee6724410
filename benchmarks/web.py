"""What a limiter adds to a request of an ASGI application under uvicorn, everything on one core."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from benchmarks import figures
from benchmarks.figures import Row, us
from benchmarks.load import press
from benchmarks.measure import Effort, Sample, Series, interleave
from benchmarks.world import World
from enforcement.embedded import free_port

CONNECTIONS = 32
START_SECONDS = 20.0


def compare(store: World, effort: Effort, *, leased: bool) -> tuple[list[Row], Series]:
    """Measure the bare application, and behind each limiter."""
    strict = store.tokens("fixed", 1)[0]
    # All get the same request, also the bare application: to read one more field costs a server something, too.
    headers = dict.fromkeys(("bare", "limits.aio", "limits.aio with headers", "strict"), authorization(strict))
    if leased:
        headers["leased"] = authorization(store.tokens("leased", 1)[0])
    with serving(headers, store.url) as ports:
        rounds = {name: pressing(store, ports[name], headers, name, effort.http_seconds) for name in headers}
        series = interleave(rounds, effort.rounds)
    return _rows(series, leased), series


def authorization(token: str) -> str:
    """Return the header field that shows a token."""
    return f"Authorization: Bearer {token}\r\n"


def pressing(store: World, port: int, headers: Mapping[str, str], name: str, seconds: float) -> Callable[[], Sample]:
    """Return a function that asks one application for so long."""

    def measure() -> Sample:
        before = store.calls("fcall")
        sample = asyncio.run(press(port, headers[name], CONNECTIONS, seconds))
        requests = sample.per_second * seconds
        if name == "strict" and store.calls("fcall") - before < 0.95 * requests:
            raise AssertionError("The limiter fell back: nothing can be told of this run.")
        return sample

    return measure


def _rows(series: Series, leased: bool) -> list[Row]:
    def added(name: str) -> str:
        return us(series.median(name, "us_a_request") - series.median("bare", "us_a_request"))

    rows = []
    for theirs, bar in (("limits.aio", figures.DOOR), ("limits.aio with headers", None)):
        ratio = series.added_ratio("strict", theirs, "bare", "us_a_request")
        rows.append(Row(f"ASGI, strict: added time a request / {theirs}", added("strict"), added(theirs), ratio, bar))
    figure = "ASGI, leased: requests/s / the app without a limiter"
    if not leased:
        return [*rows, figures.absent(figure, figures.DOOR_LEASED)]
    told = [figures.rate(series.median(name, "per_second")) for name in ("leased", "bare")]
    return [*rows, Row(figure, *told, series.ratio("leased", "bare", "per_second"), figures.DOOR_LEASED)]


@contextmanager
def serving(names: Iterable[str], url: str, environment: Mapping[str, str] = {}) -> Iterator[dict[str, int]]:
    """Serve applications while a block lasts, with further variables; give their ports."""
    ports = {name: free_port() for name in names}
    commands = [[sys.executable, "-m", "benchmarks.apps", name, url, str(port)] for name, port in ports.items()]
    processes = [subprocess.Popen(command, env={**os.environ, **environment}) for command in commands]
    try:
        for process, port in zip(processes, ports.values(), strict=True):
            _wait(process, port)
        yield ports
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"uvicorn did not start on port {port}.")
