"""Waiting until every live instance runs the revision that contains a change."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import BoundedSemaphore
from time import monotonic, sleep

from django.conf import settings

from controlplane.core import store
from controlplane.core.optional import HEARTBEATS, optional
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.publisher import revision_of
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import Instance
from enforcement.model.documents import StateName

ACKNOWLEDGED = "acknowledged"
HEADER = "Sluicegate-Acknowledged"
MOST_SECONDS = 10
USUAL_SECONDS = 5
# An instance reports a new revision after a tenth of a second. The pauses become longer, up to half a second.
FIRST_PAUSE, LONGER, LAST_PAUSE = 0.05, 1.5, 0.5
# A request that waits keeps a thread of its process, which has four. Others are answered without waiting.
_turns = BoundedSemaphore(2)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """
    How far a change has come.

    Attributes:
        state: The published state that contains it, or None while it is pending.
        instances: How many live instances there are. None if the store did not say.
        behind: How many of them run an earlier state.
    """

    state: StateName | None
    instances: int | None = None
    behind: int = 0

    @property
    def revision(self) -> int | None:
        return None if self.state is None else self.state.revision

    @property
    def is_everywhere(self) -> bool:
        """Whether there are live instances, and all of them run it. A fleet that nobody sees may run anything."""
        return self.revision is not None and bool(self.instances) and not self.behind

    @property
    def may_come(self) -> bool:
        """Whether it is worth to look again."""
        return self.revision is None or self.instances is None or self.behind > 0

    def header(self, *, with_numbers: bool) -> str:
        """Return the value of the header, in which a key limited to projects does not find the size of the fleet."""
        text = "true" if self.is_everywhere else "false"
        if self.instances is None or not with_numbers:
            return text
        return f"{text}; instances={self.instances}; behind={self.behind}"


def acknowledgement_of(
    change: str,
    seconds: float,
    clock: Callable[[], float] = monotonic,
    pause: Callable[[float], None] = sleep,
) -> Acknowledgement:
    """
    Wait until every live instance runs the revision with this change, at most for *seconds*, and say who does.

    The heartbeats are read from the store. SQL is asked only while the change is pending.
    """
    until, length = clock() + seconds, FIRST_PAUSE
    may_wait = _turns.acquire(blocking=False)
    try:
        acknowledgement = _look(change, None)
        while may_wait and acknowledgement.may_come and (left := until - clock()) > 0:
            pause(min(length, left))
            length = min(length * LONGER, LAST_PAUSE)
            acknowledgement = _look(change, acknowledgement.state)
        return acknowledgement
    finally:
        if may_wait:
            _turns.release()


def _look(change: str, state: StateName | None) -> Acknowledgement:
    state = _state_with(change) if state is None else state
    if state is None:
        return Acknowledgement(None)
    fleet = _fleet()
    if fleet is None:
        return Acknowledgement(state)
    having, instances = heartbeats.acknowledged(state.revision, state.epoch, fleet)
    return Acknowledgement(state, instances, instances - having)


@optional(HEARTBEATS, lambda: None, of_store=True)
def _fleet() -> list[Instance] | None:
    return heartbeats.live_instances(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))


def _state_with(change: str) -> StateName | None:
    """Return the state with a change, the last one if enforcers need not know it, or None while it is pending."""
    if not change or not OutboxEntry.objects.filter(change=change).exists():
        return last_state()
    number = revision_of(change)
    row = None if number is None else Revision.objects.filter(pk=number).values_list("epoch", "number").first()
    return StateName(*row) if row else None
