"""The kinds of alerts, and what a rule of each kind says."""

from dataclasses import dataclass

from enforcement.model.limits import DAY_SECONDS

USUAL_THRESHOLDS = (50, 80, 100)
USAGE, EXPIRING = "usage", "expiring"
OUTAGE, LOST = "store_outage", "instances_lost"


@dataclass(frozen=True, slots=True)
class Kind:
    """
    What a rule of a kind says.

    Attributes:
        words: Its name for people.
        thresholds: Whether it has thresholds, in per cent.
        within: The usual number of seconds that it looks ahead. None: it does not look ahead.
        everywhere: Whether it is about the whole installation, so that it has no project.
        recovers: Whether there is an event when it is over.
    """

    words: str
    thresholds: bool = False
    within: int | None = None
    everywhere: bool = False
    recovers: bool = True


KINDS = {
    USAGE: Kind("a share of a limit is used", thresholds=True),
    EXPIRING: Kind("a token, an override or a management key ends soon", within=7 * DAY_SECONDS, recovers=False),
    OUTAGE: Kind("the store is not reachable", everywhere=True),
    LOST: Kind("instances are lost", everywhere=True),
}


def usual_thresholds() -> list[int]:
    """Return the per cent of which a rule tells if nobody has chosen others, as a new list."""
    return list(USUAL_THRESHOLDS)
