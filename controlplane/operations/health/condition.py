"""What needs a hand, as a value."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple


class Level(IntEnum):
    """How bad a condition is."""

    LOOK = 1  # it will get there, or is over and must be known
    URGENT = 2  # requests are denied or let through that should not be


class Target(NamedTuple):
    """
    What a link leads to.

    Attributes:
        model: Its label, such as ``fleet.Instance``, or ``docs`` for a page of the documentation.
        pk: The id of one row, or the name of the page. Empty for the list.
        query: The query of the list, without the question mark.
    """

    model: str
    pk: str = ""
    query: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """
    One thing that needs a hand.

    Attributes:
        subject: Its key, which stays the same for as long as it lasts.
        fault: What is the matter, such as "proxy-3 is 27 revisions behind".
        text: What goes on behind that, without a full stop. May be empty.
        deed: The one thing to do, in the words of a link.
        target: Where that is done.
        since: Since when, or None if nobody knows.
        project: The id of the project whose members see it. None: only operators do.
        weight: Grows as it gets worse.
    """

    subject: str
    level: Level
    fault: str
    text: str
    deed: str
    target: Target
    since: datetime | None = None
    project: str | None = None
    weight: int = 0


TOP = 3


def named(names: list[str]) -> str:
    """Return some names in words, such as "a, b and 4 more"."""
    if len(names) > TOP:
        return f"{', '.join(names[: TOP - 1])} and {len(names) - TOP + 1:,} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "2 instances"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
