"""A store that belongs to the tests, and ways to take it from those who use it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from enforcement.base import BaseLimiter
from enforcement.embedded import ValkeyServer
from enforcement.store.client import connect, load_library

RETURN_SECONDS: Final = 10.0

Kind = Literal["down", "frozen", "lost"]


class Store:
    """
    A real server of one test session.

    Args:
        server: Running; it is cleared without asking.
    """

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server

    @property
    def url(self) -> str:
        """What a limiter is given."""
        return self.server.url

    def clear(self) -> None:
        """Remove all that it holds, but for the function library; start it if it does not run."""
        if self.server.running:
            self.server.thaw()
        else:
            self.server.restart()
        with connect(self.url) as client:
            client.flushall()
            load_library(client)


class Outage:
    """
    Takes the store away while a block runs: ``with outage(): ...``, or ``with outage("frozen"): ...``.

    At the end of the block the store is back, and every limiter given decides with it again.

    Args:
        server: The store's.
        limiters: Who must have noticed that it is back.
    """

    def __init__(self, server: ValkeyServer, limiters: Sequence[BaseLimiter]) -> None:
        self._server = server
        self._limiters = limiters

    @contextmanager
    def __call__(self, kind: Kind = "down") -> Iterator[None]:
        """
        Take the store away.

        Args:
            kind: ``down``: connections are refused, and it comes back with all that it had. ``lost``: it comes back
                empty. ``frozen``: connections stay open and nothing answers, so that the first requests wait for their
                time budget; what they sent may still be executed when it goes on.
        Raises:
            ValueError: Another kind.
            AssertionError: A limiter does not come back in time.
        """
        if kind not in ("down", "frozen", "lost"):
            raise ValueError(f"kind: must be 'down', 'frozen' or 'lost', not {kind!r}.")
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
            while limiter.state == "degraded":
                if time.monotonic() > deadline:
                    raise AssertionError(f"{limiter.stats().instance} has not returned to the store: {limiter.stats()}")
                time.sleep(0.005)


__all__ = ["Outage", "Store"]
