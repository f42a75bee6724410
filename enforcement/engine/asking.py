"""Send the command that decides, and send it again if it surely was not executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from enforcement.failover.health import Health
from enforcement.lua import load_command
from enforcement.plan.commands import Steps
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply
from enforcement.plan.request import Request
from enforcement.store import resp
from enforcement.store.errors import LibraryMissing, StoreError


@dataclass(slots=True)
class StoreAnswer:
    """
    The store's answer to a request on counters of one slot.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        reply: Its decision. None if it made none.
        overflowed: For each unregistered value of the plan, 1 if its overflow counter was used, 0 if its own was.
        cause: Why it made no decision. Empty if it made one, or was not asked.
        error: The error of the call. None if the call did not fail.
    """

    reply: Reply | None = None
    overflowed: Sequence[int] = ()
    cause: str = ""
    error: StoreError | None = None


NOT_ASKED: Final = StoreAnswer()
NOT_RESTORED: Final = StoreAnswer(cause="not_restored")
AWAY: Final = StoreAnswer(cause="away")


class Asker:
    """
    Asks the store to decide on counters that one call can reach.

    Args:
        health: Knows durable counters that the store has lost.
        failed: Records a failed call. None: as a failed decision.
    """

    def __init__(self, health: Health, failed: Callable[[StoreError], None] | None = None) -> None:
        self._health = health
        self._failed = failed or health.failed
        self._clock = health.clock is not None

    def asking(self, request: Request[Plan], *, registers: bool, result: object = None) -> Steps[StoreAnswer]:
        """
        Yield the commands that decide a request on counters of one slot, and return a :class:`StoreAnswer`.

        Args:
            registers: Whether the store must first register the attribute values that are new to it. A value that its
                limit has no room for is charged to the overflow counter.
            result: The reply to the command if it was sent already, or the StoreError that it raised. None if it was
                not sent.
        """
        health, now_us = self._health, self._health.now_us()
        for _ in range(2):  # again with the store's time, if that lies in another calendar window
            try:
                command = request.encode(now_us, clock=self._clock, registers=registers)
                reply, overflowed = request.read((yield from self.calling(command, result)), registers=registers)
            except StoreError as exc:
                self._failed(exc)
                return StoreAnswer(cause=exc.cause, error=exc)
            if reply.decided:
                return StoreAnswer(reply, overflowed)
            if reply.lost:
                health.lost_counters.add(request.plan.durable_sets)
                return NOT_RESTORED
            result, now_us = None, reply.now_us
        return StoreAnswer(cause="calendar")

    def paying(self, plan: Plan) -> Steps[StoreAnswer | None]:
        """
        Yield the commands that replay what this process owes to the counters of a plan, and return None, or a
        :class:`StoreAnswer` that says why that failed.
        """
        health = self._health
        batches = health.owed_to(plan)
        if batches and not plan.spread and not health.may_replay():
            return NOT_ASKED
        for batch in batches:
            try:
                if not health.replayed(batch, (yield from self.calling(health.replaying(batch)))):
                    return NOT_RESTORED
            except StoreError as exc:
                health.not_replayed(batch, exc)
                return StoreAnswer(cause=exc.cause)
        return None

    def calling(self, command: bytes, result: object = None) -> Steps[object]:
        """
        Yield a command unless *result* is given, again if it surely was not executed, and return the reply.

        Args:
            result: As for :meth:`asking`.
        Raises:
            StoreError: The last call failed.
        """
        try:
            if isinstance(result, StoreError):
                raise result
            return (yield command) if result is None else result
        except StoreError as exc:
            if not exc.retryable or self._health.breaker.open:
                raise
            yield from self._loading(exc)
        return (yield command)

    @staticmethod
    def _loading(exc: StoreError) -> Steps[None]:
        """
        Yield the command that loads the function library into the store, if the call failed because it was missing.

        Raises:
            StoreError: The library could not be loaded.
        """
        if not isinstance(exc, LibraryMissing):
            return
        try:
            yield resp.pack(load_command())
        except StoreError as refused:
            # If the account may not load functions, report the missing library, and not an account without rights.
            raise exc if refused.cause == "auth" else refused from None
