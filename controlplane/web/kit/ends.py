"""The ends that people usually give an override or a suspension, in their own time zone."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

HOUR, TODAY, FRIDAY, MONTH = "hour", "today", "friday", "month"
NAMES = {HOUR: "In one hour", TODAY: "End of today", FRIDAY: "Friday 18:00", MONTH: "End of the month"}
_FRIDAY, _EVENING = 4, time(18)


def quick_end(name: str, now: datetime, zone: ZoneInfo) -> datetime:
    """
    Return the next end of this name after *now*, in UTC.

    Args:
        name: ``hour`` is an hour from now, ``today`` the next midnight, ``friday`` the next Friday at 18:00, and
            ``month`` the midnight before the first day of the next month.
        zone: The zone whose clock counts. A day in which its clock changes is shorter or longer.
    Raises:
        KeyError: There is no such name.
    """
    local = now.astimezone(zone)
    if name == HOUR:
        return (now + timedelta(hours=1)).astimezone(UTC)
    days = {
        TODAY: (local.date() + timedelta(days=1), time()),
        FRIDAY: (_next_friday(local), _EVENING),
        MONTH: ((local.date().replace(day=1) + timedelta(days=32)).replace(day=1), time()),
    }
    return datetime.combine(*days[name], tzinfo=zone).astimezone(UTC)


def _next_friday(local: datetime) -> date:
    ahead = (_FRIDAY - local.weekday()) % 7
    if ahead == 0 and local.time() >= _EVENING:
        ahead = 7
    return local.date() + timedelta(days=ahead)


def in_words(end: datetime, now: datetime, zone: ZoneInfo) -> str:
    """Return an end with its zone, UTC beside, and the time until then, such as "Fri 27 Nov 2026, 18:00 UTC"."""
    local, utc = end.astimezone(zone), end.astimezone(UTC)
    beside = "" if local.utcoffset() == utc.utcoffset() else f" ({utc:%a %H:%M} UTC)"
    name = "UTC" if not beside else str(zone)
    left = end - now
    minutes = round(left.total_seconds() / 60)
    hours = minutes // 60
    ahead = f"in {hours // 24} days" if hours >= 48 else f"in {hours} h" if hours >= 1 else f"in {minutes} min"
    return f"{local:%a %d %b %Y, %H:%M} {name}{beside}, {ahead}"
