"""The worker processes as the parent sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis

from benchmarks.compare.trees import ROOT


class WorkerError(RuntimeError):
    """A worker ended, or what it measures cannot be measured."""


class WorkerProcess:
    """
    A running worker of one tree.

    Args:
        tree: Whose ``enforcement`` it imports.
        url: The store.
        prefix: What the keys of this tree begin with.
        seed: Of the hashes of strings; the order of keys in sets and dictionaries' speed depend on them.
    """

    def __init__(self, tree: Path, url: str, prefix: str, seed: int) -> None:
        self._tree = tree
        command = [sys.executable, "-m", "benchmarks.compare.worker", str(tree), url, prefix]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Let the worker do something and return its answer. Raises WorkerError."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which shows when its answer is read
            print(json.dumps({"do": do, **request}), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"The worker of {self._tree} ended; the reason was printed before.")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Libraries:
    """
    The function libraries that each tree wants in the store.

    Two trees may give one name to libraries of different contents. Then the library of a tree is loaded again before
    each of its blocks.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._wanted: dict[str, dict[str, str]] = {}

    def read(self, tree: str) -> None:
        """Note what the store has, now that a worker of *tree* has loaded its library."""
        listed = self._client.function_list(withcode=True)
        found = [dict(zip(one[::2], one[1::2], strict=True)) for one in listed]
        self._wanted[tree] = {one["library_name"]: one["library_code"] for one in found}

    @property
    def differ(self) -> bool:
        """Whether the trees have different libraries under one name."""
        return len({code for codes in self._wanted.values() for code in codes.values()}) > len(self._names)

    @property
    def _names(self) -> set[str]:
        return {name for codes in self._wanted.values() for name in codes}

    def select(self, tree: str) -> None:
        """Load the library of a tree, if it is not there."""
        if self.differ:
            for code in self._wanted[tree].values():
                self._client.function_load(code, replace=True)


def store_time(client: Redis) -> tuple[int, float]:
    """Return how many functions the store has called, and the microseconds of processor time of its main thread."""
    info = client.info("everything")
    seconds = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
    return int(info.get("cmdstat_fcall", {}).get("calls", 0)), seconds * 1e6
