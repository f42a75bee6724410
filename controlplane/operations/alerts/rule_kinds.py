"""The kinds of alerts, and what a rule of each kind says."""

from dataclasses import dataclass

from enforcement.model.instants import DAY_SECONDS

USUAL_THRESHOLDS = (50, 80, 100)
USAGE, FORECAST, DENIALS, WOULD_DENY = "usage", "forecast", "denials", "would_deny"
SPEND, RESERVATIONS, EXPIRING = "spend", "reservations_lost", "expiring"
OUTAGE, LOST, ROLLOUT = "store_outage", "instances_lost", "rollout_stuck"
UNPRICED, UNMETERED, BROKEN = "unpriced", "unmetered", "bound_broken"
# The longest time for which the sums of minutes are read.
LONGEST_LOOK_BACK = 3_600
LONGEST = 90 * DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind of rule.

    Attributes:
        words: Its name for people.
        limits: Whether it is about limits, so that it may name one.
        thresholds: The usual thresholds, in per cent. Empty: it has none.
        within: The usual number of seconds that it looks ahead or back. None: it does neither.
        most_within: The largest such number.
        amount: Whether it has an amount of money.
        everywhere: Whether it is about the whole installation, so that it has no project.
        recovers: Whether there is an event when it is over.
    """

    words: str
    limits: bool = False
    thresholds: tuple[int, ...] = ()
    within: int | None = None
    most_within: int = LONGEST
    amount: bool = False
    everywhere: bool = False
    recovers: bool = True


KINDS = {
    USAGE: Kind("a share of a limit is used", limits=True, thresholds=USUAL_THRESHOLDS),
    FORECAST: Kind("a limit will be used up before it resets", limits=True, within=DAY_SECONDS),
    DENIALS: Kind("a share of the requests is denied", thresholds=(10,), within=300, most_within=LONGEST_LOOK_BACK),
    WOULD_DENY: Kind(
        "shadow limits would deny a share of the requests", thresholds=(10,), within=300, most_within=LONGEST_LOOK_BACK
    ),
    SPEND: Kind("a share of an amount is spent in a month", thresholds=USUAL_THRESHOLDS, amount=True),
    RESERVATIONS: Kind("reservations are lost"),
    EXPIRING: Kind("a token, an override or a management key ends soon", within=7 * DAY_SECONDS, recovers=False),
    OUTAGE: Kind("the store is not reachable", everywhere=True),
    LOST: Kind("instances are lost", everywhere=True),
    ROLLOUT: Kind("a revision is not live everywhere", within=600, most_within=DAY_SECONDS, everywhere=True),
    UNPRICED: Kind("requests ask for a model without a price"),
    BROKEN: Kind("an answer used more than its bound", within=DAY_SECONDS),
    UNMETERED: Kind("a limit counts nothing, as requests give no cost in its unit", everywhere=True),
}


def usual_thresholds() -> list[int]:
    """Return the per cent of which a rule tells if nobody has chosen others, as a new list."""
    return list(USUAL_THRESHOLDS)
