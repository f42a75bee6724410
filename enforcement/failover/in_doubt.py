"""
Calls that timed out, so that it is not known whether the store charged their requests.

The requests were admitted by this process. A late reply says whether the store charged them. If the connection ended
without a reply, it did not, and they are added to the journal. If the reply was lost on the way, neither happens. Then
the call is treated as executed, so that nothing is charged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import hiredis

from enforcement.failover.journal import JournalCharge, Ready
from enforcement.store.errors import StoreError
from enforcement.store.late_replies import LOST, Late
from enforcement.store.resp import numbers

PATIENCE_SECONDS: Final = 1.0
"""How long to wait for late replies once the store is back."""
MAX_IN_DOUBT: Final = 1_000
"""Each call keeps a connection open. Further calls are treated as executed."""


@dataclass(slots=True)
class InDoubtCall:
    """
    A call without a reply so far.

    Attributes:
        late: The reply.
        charges: Those of its request.
        since: When it was first looked at after the store came back, in monotonic seconds.
    """

    late: Late
    charges: Sequence[JournalCharge]
    since: float | None = None


class InDoubtCalls:
    """
    Keeps the calls of one process whose execution is in doubt.

    Args:
        add_charge: Called with each charge that the store did not make.
    """

    def __init__(self, add_charge: Callable[[JournalCharge], None]) -> None:
        self._add_charge = add_charge
        self._calls: list[InDoubtCall] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, late: Late, charges: Sequence[JournalCharge]) -> None:
        """
        Add a call of which it is not known yet whether the store executed it, or drop it if it has no charges or there
        are too many.
        """
        if charges and len(self._calls) < MAX_IN_DOUBT:
            self._calls.append(InDoubtCall(late, charges))
        else:
            late.close()

    def resolve(self, ready: Ready) -> None:
        """
        Read late replies to calls whose charges are all *ready*, and add to the journal what the store did not charge.
        """
        now, calls, self._calls = monotonic(), self._calls, []
        for call in calls:
            if all(map(ready, call.charges)) and self._is_over(call, now):
                call.late.close()
            else:
                self._calls.append(call)

    def _is_over(self, call: InDoubtCall, now: float) -> bool:
        reply = call.late.look()
        if reply is None:
            call.since = now if call.since is None else call.since
            return now - call.since > PATIENCE_SECONDS
        if not charged(reply):
            for charge in call.charges:
                self._add_charge(charge)
        return True

    def clear(self) -> None:
        """Drop all calls, and stop waiting for their late replies."""
        for call in self._calls:
            call.late.close()
        self._calls.clear()


def charged(reply: object) -> bool:
    """Return whether a late reply to a decision or a registration proves the charge, which a garbled one does too."""
    if reply is LOST or isinstance(reply, hiredis.ReplyError):
        return False
    decision = reply[0] if isinstance(reply, list) and reply else reply
    if isinstance(decision, list):
        return decision[:1] == [1]
    try:
        return numbers(decision)[0] == 1
    except StoreError:  # a garbled reply proves that the call was executed
        return True
