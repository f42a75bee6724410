"""Servers that run beside the benchmark, each on a core that is chosen, with the processor time that each has used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import us
from benchmarks.measure import Round, Sample
from benchmarks.threads import PATIENCE
from benchmarks.world import World
from enforcement.embedded import free_port

START_SECONDS = 30.0


class Server:
    """A server that listens on *port*."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port, self._process = port, process

    def cpu_us(self) -> float:
        """Return the microseconds of processor time that it and its children have used."""
        return sum(_on_cpu_us(pid) for pid in _family(self._process.pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _on_cpu_us(pid: int) -> float:
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e3


def other_core() -> int | None:
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


@contextmanager
def server(
    command: Sequence[str | Path],
    port: int,
    *,
    core: int | None = None,
    folder: Path | None = None,
    patience: float = START_SECONDS,
    **environ: str,
) -> Iterator[Server]:
    """
    Run a server while the block runs.

    Args:
        command: What starts it.
        port: Where it will listen.
        core: The core that it is bound to. None: that of this process.
        folder: In which it runs.
        patience: Seconds until it must listen.
        environ: Variables beside those of this process.
    """
    with tempfile.TemporaryFile() as log:
        with _bound_to(core):
            process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environ}, stdout=log, stderr=log)
        try:
            if not _listens(process, port, patience):
                log.seek(0)
                raise RuntimeError(f"{command} does not listen on port {port}: {log.read().decode()[-2_000:]}")
            yield Server(process, port)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def ours(command: str, url: str, *options: str, core: int | None = None, **environ: str) -> Iterator[Server]:
    """Run ``sluicegate serve`` or ``sluicegate proxy`` on the store at *url* while the block runs."""
    port = free_port()
    words = [sys.executable, "-m", "enforcement", command, "--port", str(port), *options]
    variables = {"SLUICEGATE_REDIS_URL": url, "SLUICEGATE_TIMEOUT_MS": str(int(PATIENCE * 1_000))}
    with server(words, port, core=core, **variables, **environ) as running:
        yield running


@contextmanager
def application(name: str, *, core: int | None = None) -> Iterator[Server]:
    """Run an application of ``benchmarks.apps`` that needs no store, while the block runs."""
    port = free_port()
    with server([sys.executable, "-m", "benchmarks.apps", name, "", str(port)], port, core=core) as running:
        yield running


@contextmanager
def _bound_to(core: int | None) -> Iterator[None]:
    """Bind this process to a core while the block runs. Its children stay there."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _listens(process: subprocess.Popen[bytes], port: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def observed(round_: Round, store: World, *, strict: bool, **watched: Server) -> Round:
    """
    Return a round that also tells the processor time of servers a request, in microseconds, by their names.

    Args:
        round_: Asks.
        store: Where decisions are made.
        strict: Whether each request is a decision of the store. If one was not, the run ends in an error.
        watched: The servers.
    """

    def measure() -> Sample:
        calls, used = store.calls("fcall"), {name: it.cpu_us() for name, it in watched.items()}
        sample = round_()
        count = sample.value("requests")
        if strict and store.calls("fcall") - calls < 0.95 * count:
            raise AssertionError("The limiter fell back: nothing can be told of this run.")
        spent = {name: (it.cpu_us() - used[name]) / count for name, it in watched.items()}
        return Sample(sample.p50, sample.p99, sample.per_second, {**sample.more, **spent})

    return measure


def sample_of(spans: list[int], elapsed: int) -> Sample:
    """Return what the generator found."""
    return Sample.of(spans, elapsed, requests=float(len(spans)))


def told(values: Mapping[str, float]) -> str:
    """Return processor times, readable."""
    return ", ".join(f"{name} {us(value)}" for name, value in values.items())
