"""
Requests that were admitted here because the store did not answer in time, while it still may charge them by itself.

Its late answer says whether it did. It did not if the connection ended without one: then they are owed like any other.
Where neither comes, for replies get lost on the way, the call is taken for executed: nothing is charged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

import hiredis

from enforcement.store.errors import StoreError
from enforcement.store.late_replies import LOST, Late
from enforcement.store.resp import numbers

if TYPE_CHECKING:
    from enforcement.failover.journal import JournalCharge, Ready

PATIENCE_SECONDS: Final = 1.0
"""So long a store that is back may be silent on the connections of before."""
MAX_DOUBTS: Final = 1_000
"""Each keeps a connection open; further ones are taken for executed."""


@dataclass(slots=True)
class InDoubtCall:
    """What one request is to be charged if its call was not executed; looked at since a monotonic instant."""

    late: Late
    entries: Sequence[JournalCharge]
    since: float | None = None


class InDoubtCalls:
    """
    The doubts of one process.

    Args:
        owe: Called with each entry that turns out to be owed.
    """

    def __init__(self, owe: Callable[[JournalCharge], None]) -> None:
        self._owe = owe
        self._in_doubt: list[InDoubtCall] = []

    def __len__(self) -> int:
        return len(self._in_doubt)

    def add(self, late: Late, entries: Sequence[JournalCharge]) -> None:
        """Keep a request in mind until it is known what became of its call."""
        if entries and len(self._in_doubt) < MAX_DOUBTS:
            self._in_doubt.append(InDoubtCall(late, entries))
        else:
            late.close()

    def resolve(self, ready: Ready) -> None:
        """Look at those whose counters can be paid to now, and owe what the store did not charge."""
        now, in_doubt, self._in_doubt = monotonic(), self._in_doubt, []
        for doubt in in_doubt:
            if all(map(ready, doubt.entries)) and self._is_over(doubt, now):
                doubt.late.close()
            else:
                self._in_doubt.append(doubt)

    def _is_over(self, doubt: InDoubtCall, now: float) -> bool:
        answer = doubt.late.look()
        if answer is None:
            doubt.since = now if doubt.since is None else doubt.since
            return now - doubt.since > PATIENCE_SECONDS
        if not charged(answer):
            for entry in doubt.entries:
                self._owe(entry)
        return True

    def clear(self) -> None:
        """Wait for no answer any longer."""
        for doubt in self._in_doubt:
            doubt.late.close()
        self._in_doubt.clear()


def charged(reply: object) -> bool:
    """Return whether a late reply says that the request was charged; it may belong to a decision or an enrolment."""
    if reply is LOST or isinstance(reply, hiredis.ReplyError):
        return False
    decision = reply[0] if isinstance(reply, list) and reply else reply
    if isinstance(decision, list):
        return decision[:1] == [1]
    try:
        return numbers(decision)[0] == 1
    except StoreError:  # garbled on its way: as elsewhere, the call is treated as executed
        return True


__all__ = ["InDoubtCalls", "charged"]
