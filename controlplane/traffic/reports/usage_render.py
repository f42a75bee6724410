"""The formats of a report, which are CSV, HTML and plain text."""

import csv
import io
from collections.abc import Iterator, Sequence

from django.template.loader import render_to_string

from controlplane.core.files import cell
from controlplane.traffic.reports.usage_report import ModelLine, Report, ReportLine

CSV_COLUMNS = ("project", "token", "token_id", "limit", "unit", "allowed", "denied", "would_deny", "cost")
MOST_TOKENS_SHOWN = 200


def as_csv(report: Report) -> str:
    """Return every line of the report as CSV. The lines without a limit count each decision once."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["day", *CSV_COLUMNS])
    for line in (*report.tokens, *report.limits):
        writer.writerow([report.day.isoformat(), *(cell(getattr(line, name)) for name in CSV_COLUMNS)])
    return file.getvalue()


def as_html(report: Report) -> str:
    """Return the report as an HTML page that needs no other file. It shows the tokens with most decisions."""
    shown = report.tokens[:MOST_TOKENS_SHOWN]
    return render_to_string(
        "reports/daily.html", {"report": report, "tokens": shown, "hidden": len(report.tokens) - len(shown)}
    )


def as_text(report: Report) -> str:
    """Return the sums, the projects and the most denied tokens and limits as text for a terminal."""
    sections = [_head(report)]
    for title, name, lines in (
        ("Projects", "project", report.projects),
        ("Most denied tokens", "token", report.top_denied_tokens),
        ("Most denied limits", "limit", report.top_denied_limits),
    ):
        if lines:
            sections.append("\n".join(_table(title, name, lines)))
    if report.models:
        sections.append("\n".join(_models(report.models)))
    return "\n\n".join(sections) + "\n"


def _head(report: Report) -> str:
    totals, outage = report.totals, report.outage
    lines = [
        f"Usage of {report.day.isoformat()} (UTC){'' if report.complete else ', so far'}",
        f"{totals.allowed:,} allowed, {totals.denied:,} denied, {totals.would_deny:,} would be denied by shadow limits",
    ]
    if outage.decisions:
        seconds = outage.at_most.total_seconds()
        lines.append(f"{outage.decisions:,} decided without the store, during at most {seconds:,.0f} s")
    lost = report.reservations
    if lost.lost:
        lines.append(f"{lost.lost:,} reservations lost by their process, {lost.unsettled:,} of them not settled yet")
    return "\n".join(lines)


def _models(lines: Sequence[ModelLine]) -> Iterator[str]:
    names = [line.model or "(not metered)" for line in lines]
    width = max(map(len, ("Models", *names)))
    yield f"{'Models':<{width}}  {'requests':>12}  {'input tokens':>16}  {'output tokens':>16}  {'money':>18}"
    for name, line in zip(names, lines, strict=True):
        yield f"{name:<{width}}  {line.requests:>12,}  {line.all_input:>16,}  {line.output:>16,}  {line.money:>18}"


def _table(title: str, name: str, lines: Sequence[ReportLine]) -> Iterator[str]:
    labels = [f"{line.project} / {line.token}" if name == "token" else getattr(line, name) for line in lines]
    width = max(len(title), *map(len, labels))
    yield f"{title:<{width}}  {'allowed':>12}  {'denied':>12}  {'would deny':>12}"
    for label, line in zip(labels, lines, strict=True):
        yield f"{label:<{width}}  {line.allowed:>12,}  {line.denied:>12,}  {line.would_deny:>12,}"
