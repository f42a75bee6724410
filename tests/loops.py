"""An event loop for a test that is not a coroutine itself."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """
    Return the result of a coroutine, run in a thread of its own.

    In a test with a browser, Playwright's own loop runs in the main thread.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


class StandingLoop:
    """A loop in a thread of its own that stands still between two calls, with all of its tasks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._thread:
            self._thread.submit(self._runner.close).result()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine. Meanwhile the other tasks of the loop go on."""
        return self._thread.submit(self._runner.run, coroutine).result()
