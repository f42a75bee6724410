"""The saved reports, one for each day that is over."""

from datetime import UTC, date, datetime, timedelta

from controlplane.core.periods import COUNTS
from controlplane.core.sums import read_sums, sums
from controlplane.traffic.reports import usage_render, usage_report
from controlplane.traffic.usage.models import DailyReport

# The days for which a missing report is still written, because a worker was down or usage came late.
DAYS_BACK = 7


def write(day: date, now: datetime) -> DailyReport:
    """Save the report of a day that is over, in place of an earlier report of that day, and return it."""
    built = usage_report.build(day, now)
    fields = {
        "created_at": now,
        "csv": usage_render.as_csv(built),
        "html": usage_render.as_html(built),
        "summary": built.summary,
    }
    return DailyReport.objects.update_or_create(day=day, defaults=fields)[0]


def write_missing(now: datetime) -> list[date]:
    """Write the reports of the past week that are missing or that late usage has changed, and return their days."""
    yesterday = now.astimezone(UTC).date() - timedelta(days=1)
    days = [yesterday - timedelta(days=back) for back in reversed(range(DAYS_BACK))]
    due = [day for day in days if _is_due(day, is_yesterday=day == yesterday)]
    for day in due:
        write(day, now)
    return due


def _is_due(day: date, *, is_yesterday: bool) -> bool:
    summary = DailyReport.objects.filter(day=day).values_list("summary", flat=True).first()
    counts = read_sums(usage_report.day_rows(day).filter(limit_name="").aggregate(**sums(COUNTS)), COUNTS)
    if summary is None:
        # Yesterday always has a report, an earlier day only if it had usage.
        return is_yesterday or any(counts.values())
    return any(summary.get(name) != counts[name] for name in COUNTS)
