"""Send a request to the store to be decided, and once more if that is harmless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enforcement.failover.health import Health
from enforcement.lua import library_source
from enforcement.plan import commands
from enforcement.plan.commands import Steps
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply, read_enrolled, read_plain
from enforcement.plan.request import Request
from enforcement.store import resp
from enforcement.store.errors import LibraryMissing, StoreError


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The result of a call about counters of one slot.

    Attributes:
        reply: The store's decision, or None if it made none.
        overflowed: For each unregistered value of the plan 1 if its overflow counter decided, or 0.
        cause: Why there is no decision. Empty if there was no call.
        error: The failed call, if that is the cause.
    """

    reply: Reply | None = None
    overflowed: Sequence[int] = ()
    cause: str = ""
    error: StoreError | None = None


NOT_ASKED: Final = Answer()
NOT_RESTORED: Final = Answer(cause="not_restored")


class Asker:
    """
    Makes the calls about counters that one call can reach.

    Args:
        health: Gets the failed calls, and the durable counters that the store has lost.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._clock = health.clock is not None

    def asking(self, request: Request[Plan], *, registers: bool, came: object = None) -> Steps:
        """
        Have the store decide on counters of one slot, and return an :class:`Answer`.

        Args:
            registers: Whether the store has to register values first. A value without room uses an overflow counter.
            came: The reply or the StoreError, if the command was sent already.
        """
        health, now_us = self._health, self._health.now_us()
        encode, reads = (commands.register, read_enrolled) if registers else (commands.decide, read_plain)
        for _ in range(2):  # once more if the store's time lies in another window than this process thought
            try:
                raw = yield from self._calling(encode(request, now_us, clock=self._clock), came)
                reply, overflowed = reads(raw, request.width)
            except StoreError as exc:
                health.failed(exc)
                return Answer(cause=exc.cause, error=exc)
            if reply.decided:
                return Answer(reply, overflowed)
            if reply.lost:
                health.lost_counters.add(request.plan.durable_sets)
                return NOT_RESTORED
            came, now_us = None, reply.now_us
        return Answer(cause="calendar")

    def _calling(self, command: bytes, came: object) -> Steps:
        """Send a command, and once more if it certainly was not executed. Raises StoreError."""
        try:
            if isinstance(came, StoreError):
                raise came
            return (yield command) if came is None else came
        except StoreError as exc:
            if not exc.retryable or self._health.breaker.open:
                raise
            yield from self._loading(exc)
        return (yield command)

    @staticmethod
    def _loading(exc: StoreError) -> Steps:
        """Load the function library into the store if it was missing. Raises StoreError."""
        if not isinstance(exc, LibraryMissing):
            return
        try:
            yield resp.pack(("FUNCTION", "LOAD", "REPLACE", library_source()))
        except StoreError as refused:
            # If this account may not load the library, the missing library is still the cause to report.
            raise exc if refused.cause == "auth" else refused from None


__all__ = ["NOT_ASKED", "NOT_RESTORED", "Answer", "Asker"]
