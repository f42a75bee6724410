"""One report as CSV for a spreadsheet, HTML for a browser, text for a terminal."""

import csv
import io
from collections.abc import Iterator, Sequence

from django.template.loader import render_to_string

from controlplane.usage.report import Report, ReportLine

CSV_COLUMNS = ("project", "token", "token_id", "limit", "unit", "allowed", "denied", "would_deny", "cost")
# What makes a spreadsheet take a cell for a formula: a token's name is not ours.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
MOST_TOKENS_SHOWN = 200


def as_csv(report: Report) -> str:
    """Return every line; those without a limit count each decision of a token once."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["day", *CSV_COLUMNS])
    for line in (*report.tokens, *report.limits):
        writer.writerow([report.day.isoformat(), *(_cell(getattr(line, name)) for name in CSV_COLUMNS)])
    return file.getvalue()


def as_html(report: Report) -> str:
    """Return a whole page that needs nothing from anywhere; of many tokens it shows the busiest."""
    shown = report.tokens[:MOST_TOKENS_SHOWN]
    return render_to_string(
        "reports/daily.html", {"report": report, "tokens": shown, "hidden": len(report.tokens) - len(shown)}
    )


def as_text(report: Report) -> str:
    """Return what fits a terminal: the sums, the projects, and who was denied most."""
    sections = [_head(report)]
    for title, name, lines in (
        ("Projects", "project", report.projects),
        ("Most denied tokens", "token", report.top_denied_tokens),
        ("Most denied limits", "limit", report.top_denied_limits),
    ):
        if lines:
            sections.append("\n".join(_table(title, name, lines)))
    return "\n\n".join(sections) + "\n"


def _head(report: Report) -> str:
    totals, outage = report.totals, report.outage
    lines = [
        f"Usage of {report.day.isoformat()} (UTC){'' if report.complete else ', so far'}",
        f"{totals.allowed:,} allowed, {totals.denied:,} denied, {totals.would_deny:,} that shadow limits would deny",
    ]
    if outage.decisions:
        seconds = outage.at_most.total_seconds()
        lines.append(f"{outage.decisions:,} decided without the store, in at most {seconds:,.0f} s")
    return "\n".join(lines)


def _table(title: str, name: str, lines: Sequence[ReportLine]) -> Iterator[str]:
    labels = [f"{line.project} / {line.token}" if name == "token" else getattr(line, name) for line in lines]
    width = max(len(title), *map(len, labels))
    yield f"{title:<{width}}  {'allowed':>12}  {'denied':>12}"
    for label, line in zip(labels, lines, strict=True):
        yield f"{label:<{width}}  {line.allowed:>12,}  {line.denied:>12,}"


def _cell(value: str | int) -> str | int:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
