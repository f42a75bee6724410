"""Findings of a look, before anybody decides whether they are events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from controlplane.operations.alerts.models import AlertEvent

LONGEST_SUBJECT = 300


@dataclass(frozen=True, slots=True)
class AlertFinding:
    """
    Something of which a rule tells.

    Attributes:
        subject: What it is about, as a key.
        title: What is the matter, as a sentence without a full stop.
        over: The same once it is over.
        level: The threshold that is reached, or 1.
        period: The window of the limit, as a key. Empty if it has none.
        ends_at: When that window ends.
        project: The id of the project that it is about, or None.
        data: What programs read, by name.
    """

    subject: str
    title: str
    over: str = ""
    level: int = 1
    period: str = ""
    ends_at: datetime | None = None
    project: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """
    The findings of one rule.

    Attributes:
        everything: Whether there is nothing else, so that what is not among the findings is over.
        subjects: Else those that were looked at, besides those of the findings.
    """

    findings: list[AlertFinding]
    everything: bool = True
    subjects: frozenset[str] = frozenset()

    def says_over(self, event: AlertEvent, now: datetime) -> bool:
        """Return whether what an open event is about is over, if it is not among the findings."""
        return self.everything or event.subject in self.subjects or (event.ends_at is not None and event.ends_at <= now)


UNKNOWN = Found([], everything=False)


def subject_of(*parts: str) -> str:
    """Return a key of these parts, which is a digest if it would be too long."""
    text = "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in parts)
    return text if len(text) <= LONGEST_SUBJECT else sha256(text.encode()).hexdigest()
