"""A process that asks for many keys or tokens in turn, and writes a ledger; and several of them."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from enforcement import Limit, Limiter
from tests.forks import Forked


@dataclass(frozen=True)
class Asked:
    """One decision: of which process, when (Unix seconds), how long it took, for whom, by whom, and the cause."""

    process: int
    at: float
    took_ms: float
    who: str
    allowed: bool
    source: str
    cause: str


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--keys", type=json.loads, default=[])
    parser.add_argument("--tokens", type=json.loads, default=[])
    parser.add_argument("--quota", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=0, help="of each; 0: until the time is over")
    parser.add_argument("--at-least", type=int, default=0, help="of each, even if the time is over")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=0.1)
    options = parser.parse_args()
    limit = Limit(name="rate", quota=options.quota, window_seconds=86_400)
    limiter = Limiter(options.url, timeout=options.timeout)
    ask = {
        **{key: lambda key=key: limiter.hit(limit, key) for key in options.keys},
        **{token: lambda token=token: limiter.check(token) for token in options.tokens},
    }
    for key in options.keys:
        limiter.peek(limit, key)
    if options.tokens:
        limiter.start()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    print("ready", flush=True)
    sys.stdin.readline()
    end, rounds = time.monotonic() + options.seconds, 0
    while not stopped and (
        (time.monotonic() < end or rounds < options.at_least) and (not options.calls or rounds < options.calls)
    ):
        rounds += 1
        for who, asked in ask.items():
            began = time.time()
            decision = asked()
            took_ms = round((time.time() - began) * 1_000, 3)
            print(json.dumps([began, took_ms, who, decision.allowed, decision.source, decision.cause]), flush=True)
            time.sleep(options.pause)
    limiter.close()


class Crowd:
    """Processes that ask, started together; what they say is read while they go on."""

    def __init__(self, url: str, processes: int, *options: str) -> None:
        command = ["-m", "tests.enforcement.crowd", url, *options]
        self.processes = [Forked(command) for _ in range(processes)]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"
        self.said: list[list[Asked]] = [[] for _ in self.processes]
        """What each process has said so far."""
        self._threads = ThreadPoolExecutor(processes)
        self._readers: list[Future[None]] = []

    def end(self) -> None:
        """End those that have not ended."""
        for process in self.processes:
            process.kill()
            process.wait(10)
        self._threads.shutdown()
        for process in self.processes:
            process.stdin.close()
            process.stdout.close()

    def go(self) -> None:
        """Let all begin."""
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()
        # Read from the start: whoever finds the pipe full would stop asking.
        self._readers = [self._threads.submit(self._read, number) for number in range(len(self.processes))]

    def _read(self, number: int) -> None:
        for text in self.processes[number].stdout:
            self.said[number].append(Asked(number, *json.loads(text)))

    def all_have(self, who: str, source: str, since: float, times: int = 1) -> bool:
        """Return whether every process has so many decisions for somebody by this source, begun after an instant."""
        return all(
            sum(line.who == who and line.source == source and line.at > since for line in said) >= times
            for said in map(list, self.said)
        )

    def stop(self) -> None:
        """Have all end after their present round."""
        for process in self.processes:
            process.terminate()

    def ledger(self) -> list[Asked]:
        """Wait until all have ended, of themselves and well, and return what they wrote."""
        for process, reader in zip(self.processes, self._readers, strict=True):
            reader.result(120)
            assert process.wait(10) == 0
        return sorted((line for said in self.said for line in said), key=lambda line: line.at)


@contextmanager
def crowd(url: str, processes: int, **options: Any) -> Iterator[Crowd]:
    """Give a crowd, and leave none of its processes behind."""
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", _text(value))]
    made = Crowd(url, processes, *given)
    try:
        yield made
    finally:
        made.end()


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
