from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet

from controlplane.core.periods import PERIODS
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.models import MeteredRow, UsageRow

TABLES: dict[str, type[UsageRow | MeteredRow]] = {"usage": UsageRow, "metered": MeteredRow}


class Command(BaseCommand):
    help = (
        "Write the usage of a span of time to a file of Parquet. It needs the extra: pip install 'sluicegate[parquet]'"
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", required=True, metavar="TIME", help="Such as 2026-11-01 or 2026-11-01T13:00Z.")
        parser.add_argument("--to", required=True, metavar="TIME", help="The end. Rows that begin then are left out.")
        parser.add_argument("--step", choices=PERIODS, default="day", help="Default: day.")
        parser.add_argument("--table", choices=TABLES, default="usage", help="Default: usage.")
        parser.add_argument("--project", help="Slug of a project, or the id of a deleted one. Default: all projects.")
        parser.add_argument("--output", type=Path, required=True, help="The file to write.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            from controlplane.traffic.reports import parquet
        except ModuleNotFoundError as exc:
            raise CommandError(str(exc)) from exc
        if options["output"].exists() and not options["output"].is_file():
            # The file would take the place of a device such as /dev/null.
            raise CommandError(f"--output: must be a file, but {options['output']} is something else.")
        try:
            number = parquet.write(_rows(options), options["output"])
        except OSError as exc:
            raise CommandError(f"--output: the file could not be written: {exc}") from exc
        self.stderr.write(f"{number} rows were written to {options['output']}.")


def _rows(options: dict[str, Any]) -> QuerySet[Any]:
    starts, ends = (_time(f"--{name}", options[name]) for name in ("from", "to"))
    if starts >= ends:
        raise CommandError(f"--to: must be after --from, got {options['to']}.")
    rows = TABLES[options["table"]].objects.filter(period=options["step"], at__gte=starts, at__lt=ends)
    return rows if options["project"] is None else rows.filter(project_id=_project(options["project"]))


def _time(name: str, text: str) -> datetime:
    """Return a time, which is in UTC if it has no offset of its own."""
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as exc:  # the latter near the years 1 and 9999
        raise CommandError(f"{name}: must be a day or a time such as 2026-11-01T13:00Z, got {text!r}.") from exc


def _project(text: str) -> str:
    project = Project.objects.filter(slug=text).values_list("pk", flat=True).first()
    if project is None and not text.startswith("proj_"):
        raise CommandError(f"--project: there is no project {text!r}.")
    return project or text
