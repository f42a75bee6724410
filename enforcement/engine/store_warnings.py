"""Warnings about a store that answers. Each of them makes this instance report itself as degraded."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("sluicegate.agent")


class StoreWarnings:
    """
    Keeps the problems that a store has now. Each is logged when it begins and when it ends.

    Args:
        now_us: Returns the store's time in microseconds.

    Attributes:
        since_us: When the oldest of them began, or None if there is none.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._texts: dict[str, str] = {}
        self.since_us: int | None = None

    @property
    def problems(self) -> list[str]:
        """The names of the present problems, sorted. See :mod:`enforcement.store_calls.instances`."""
        return sorted(self._texts)

    def begin(self, problem: str, text: str) -> None:
        """Note a problem, and log *text* if it differs from the last one."""
        if self._texts.get(problem) == text:
            return
        self.since_us = self.since_us or self._now_us()
        self._texts = {**self._texts, problem: text}
        logger.warning("%s", text)

    def end(self, problem: str, text: str) -> None:
        """Note that a problem is over, and log *text* if there was one."""
        if problem not in self._texts:
            return
        self._texts = {name: known for name, known in self._texts.items() if name != problem}
        if not self._texts:
            self.since_us = None
        logger.warning("%s", text)
