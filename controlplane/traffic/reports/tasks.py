"""
The periodic task of this app.

A task may run twice, even at the same time. Each day has one report.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.traffic.reports import daily_reports as reports


@shared_task(name="controlplane.usage.tasks.daily_reports")
def daily_reports() -> list[str]:
    """Write the reports that are missing or that late usage has changed, and return their days as ISO dates."""
    return [day.isoformat() for day in reports.write_missing(timezone.now())]
