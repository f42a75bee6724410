"""An event loop for a test that is not a coroutine itself."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """
    Return the result of a coroutine, run in a thread of its own.

    After a test with a browser, Playwright's own loop goes on in the main thread until the session ends.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
