"""A store for tests, and outages of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from enforcement.base import BaseLimiter
from enforcement.embedded import ValkeyServer
from enforcement.store.client import connect, load_library
from enforcement.store_calls.instances import DEGRADED

RETURN_SECONDS: Final = 10.0

Kind = Literal["down", "frozen", "lost"]


class Store:
    """
    A real server for one test session.

    Args:
        server: A running server. ``clear()`` deletes all that it holds.
    """

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server

    @property
    def url(self) -> str:
        """The URL for limiters."""
        return self.server.url

    def clear(self) -> None:
        """Delete all keys and load the function library, after starting the server if it is stopped."""
        if self.server.running:
            self.server.thaw()
        else:
            self.server.restart()
        with connect(self.url) as client:
            client.flushall()
            load_library(client)


class Outage:
    """
    Makes the store unavailable for the time of a block.

    Use it as ``with outage(): ...`` or ``with outage("frozen"): ...``. At the end of the block the store is back, all
    *limiters* use it again, and what they admitted without it is charged.

    Args:
        server: The server of the store.
        limiters: The block ends when all of them use the store again.
    """

    def __init__(self, server: ValkeyServer, limiters: Sequence[BaseLimiter]) -> None:
        self._server = server
        self._limiters = limiters

    @contextmanager
    def __call__(self, kind: Kind = "down") -> Iterator[None]:
        """
        Make the store unavailable while a block runs.

        Args:
            kind: With ``down`` connections are refused, and the store comes back with its data. With ``lost`` it comes
                back empty. With ``frozen`` connections stay open without a reply, so that the first requests wait for
                their time budget. The store may execute these requests later.
        Raises:
            ValueError: The kind is none of these.
            AssertionError: A limiter does not use the store again in time.
        """
        if kind not in ("down", "frozen", "lost"):
            raise ValueError(f"kind: must be 'down', 'frozen' or 'lost', got {kind!r}.")
        if kind == "frozen":
            self._server.freeze()
        else:
            self._server.kill()
        try:
            yield
        finally:
            if kind == "frozen":
                self._server.thaw()
            else:
                self._server.restart(empty=kind == "lost")
            self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + RETURN_SECONDS
        for limiter in self._limiters:
            engine = limiter._engine
            while not engine.health.examine() or limiter.state == DEGRADED or engine.fallback.owes():
                if time.monotonic() > deadline:
                    raise AssertionError(f"{limiter.stats().instance} does not use the store again: {limiter.stats()}")
                time.sleep(0.005)
