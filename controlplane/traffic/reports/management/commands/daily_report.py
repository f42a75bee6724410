from argparse import ArgumentParser
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from controlplane.traffic.reports import daily_reports, usage_render, usage_report

FORMATS = {"csv": usage_render.as_csv, "html": usage_render.as_html, "text": usage_render.as_text}


class Command(BaseCommand):
    help = (
        "Print the usage report of a day. If the day is over, also save it, and the admin shows it under Daily reports."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--day", help="The day as YYYY-MM-DD in UTC. Default: yesterday.")
        parser.add_argument("--format", choices=FORMATS, default="text")
        parser.add_argument("--output", type=Path, help="The file to write. Default: the terminal.")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        day = _day(options["day"], now)
        built = usage_report.build(day, now)
        if built.complete:
            daily_reports.write(day, now)
        text = FORMATS[options["format"]](built)
        if options["output"] is None:
            self.stdout.write(text, ending="")
            return
        try:
            options["output"].write_text(text, encoding="utf-8")
        except OSError as exc:
            raise CommandError(f"--output: the report could not be written: {exc}") from exc


def _day(text: str | None, now: datetime) -> date:
    today = now.astimezone(UTC).date()
    if text is None:
        return today - timedelta(days=1)
    try:
        day = date.fromisoformat(text)
    except ValueError as exc:
        raise CommandError(f"--day: must be a day as YYYY-MM-DD, got {text!r}.") from exc
    if day > today:
        raise CommandError(f"--day: must not be in the future, got {text}.")
    return day
