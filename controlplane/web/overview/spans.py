"""The ranges of time that the Overview shows."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils import timezone

from controlplane.core.periods import start_of

# As the browser's input of a time sends it, in the zone of the user.
INPUT_FORMAT = "%Y-%m-%dT%H:%M"


@dataclass(frozen=True, slots=True)
class Span:
    """A range of time that ends now, divided into steps of a period in which usage is counted."""

    name: str
    title: str
    short: str
    period: str
    step: timedelta
    steps: int
    label: str
    before: str

    def starts(self, now: datetime) -> list[datetime]:
        """Return the start of each step up to that of *now*, oldest first."""
        last = start_of(self.period, now)
        return [last - self.step * back for back in reversed(range(self.steps))]

    def before_start(self, now: datetime) -> datetime:
        """Return when the range before this one starts, which is as long."""
        return self.starts(now)[0] - self.step * self.steps

    def label_of(self, at: datetime) -> str:
        """Return the start of a step as the axis shows it. Days are those of UTC, and all others are in the zone."""
        return (at if self.period == "day" else timezone.localtime(at)).strftime(self.label)

    def start_of_row(self, at: datetime) -> str:
        """Return the start of a step as the table shows it. Days are those of UTC, and all others are in the zone."""
        return at.strftime("%Y-%m-%d") if self.period == "day" else f"{timezone.localtime(at):%Y-%m-%d %H:%M}"

    def query(self, now: datetime) -> str:
        """Return the parameters of the list of usage that show the same range."""
        return f"period={self.period}&at_from={input_of(self.starts(now)[0])}"


def input_of(at: datetime) -> str:
    """Return an instant as the filter of a list reads it, which is in UTC in the hour that a zone has twice."""
    local = timezone.localtime(at)
    is_twice = local.utcoffset() != local.replace(fold=not local.fold).utcoffset()
    return f"{at.astimezone(UTC):{INPUT_FORMAT}}Z" if is_twice else local.strftime(INPUT_FORMAT)


SPANS = {
    span.name: span
    for span in (
        Span("1h", "Last hour", "Hour", "minute", timedelta(minutes=1), 60, "%H:%M", "the hour before"),
        Span("24h", "Last 24 hours", "24 hours", "hour", timedelta(hours=1), 24, "%H:%M", "the day before"),
        Span("7d", "Last 7 days", "7 days", "hour", timedelta(hours=1), 7 * 24, "%a %H:%M", "the week before"),
        Span("30d", "Last 30 days", "30 days", "day", timedelta(days=1), 30, "%d %b", "the 30 days before"),
    )
}
