"""The commands that show usage, denials, and why a request was denied."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Final, Literal

import typer
from rich.live import Live
from rich.text import Text

from enforcement.cli.remote.options import AsJson, Trace, control_plane
from enforcement.cli.remote.rest import ControlPlane
from enforcement.cli.remote.screen import bars, safe, show, show_json, show_table, table_lines

DENIED: Final = 1
TOP_ROWS: Final = 20
TOP_MINUTES: Final = 10
# Of a large installation, a part of the tokens. Usage over REST is not sorted by number.
TOP_READ: Final = 20_000
MOST_KEPT: Final = 10_000
SAMPLE: Final = (
    "This is a sample. Most denials are not in it, so do not count them. `sluicegate usage` counts every one."
)
Project = Annotated[str, typer.Option(help="Slug of a project.")]
Interval = Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")]
Once = Annotated[bool, typer.Option("--once", help="Look once and end, for scripts.")]
Row = Mapping[str, Any]


def usage(
    project: Project = "",
    token: Annotated[str, typer.Option(help="Id of a token.")] = "",
    limit: Annotated[str, typer.Option(help="policy-slug/limit-name, or * for each limit.")] = "",
    begin: Annotated[str, typer.Option("--from", help="Beginning, such as 2026-12-01T00:00:00Z.")] = "",
    end: Annotated[str, typer.Option("--to", help="End. Default: now.")] = "",
    step: Annotated[Literal["minute", "hour", "day"] | None, typer.Option(help="Length of a row.")] = None,
    by: Annotated[Literal["time", "token", "project", "limit"], typer.Option(help="What is summed up.")] = "time",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Show decisions and permits, with a plot. With --json, every row, which `simulate` reads."""
    query = {"project": project, "token": token, "limit": limit, "from": begin, "to": end, "step": step}
    with control_plane(trace) as server:
        pages = list(_usage_pages(server, {name: value for name, value in query.items() if value}))
    rows = [row for page in pages for row in page["results"]]
    about = {name: pages[0][name] for name in ("step", "from", "to")}
    if as_json:
        show_json({**about, "results": rows})
        return
    column = "at" if by == "time" else by
    sums = _sums(rows, column)
    head = (column, "allowed", "denied", "would_deny", "cost")
    show_table(head, ([name, *(total[one] for one in head[1:])] for name, total in sums.items()))
    if by == "time" and len(sums) > 1:
        for name in ("allowed", "denied"):
            show(f"{name:<8} {bars([total[name] for total in sums.values()])}")
    show(f"By the {about['step']}, from {about['from']} to {about['to']}.", error=True)


def _usage_pages(server: ControlPlane, query: dict[str, Any]) -> Iterable[Row]:
    """Yield each page of a list of usage, of which each has the step and the range."""
    query = {"page_size": 200, **query}
    while True:
        page = server.get("usage", **query).body
        yield page
        if not page["next_cursor"]:
            return
        # The first page says which range was chosen, which must stay the same.
        query |= {"cursor": page["next_cursor"], "from": page["from"], "to": page["to"], "step": page["step"]}


def _sums(rows: Iterable[Row], column: str) -> dict[str, Counter[str]]:
    """Return the sums of rows by the value of a column, in the order in which the values come."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        name = row[column] or ("anonymous" if column == "token" else "all decisions")
        found[str(name)].update({one: row[one] for one in ("allowed", "denied", "would_deny", "cost")})
    return found


def top(
    project: Project = "", interval: Interval = 2.0, once: Once = False, as_json: AsJson = False, trace: Trace = False
) -> None:
    """Show the tokens with the most denials and requests of the last ten minutes, again and again. Ctrl-C ends it."""
    with control_plane(trace) as server:
        if once or as_json or not sys.stdout.isatty():
            found = _busiest(server, project)
            if as_json:
                show_json({"minutes": TOP_MINUTES, "results": [{"token": name, **total} for name, total in found]})
            else:
                show(*_top_lines(found))
            return
        with Live(auto_refresh=False, screen=True) as live:
            while True:
                lines = _top_lines(_busiest(server, project))
                live.update(Text("\n".join(map(safe, lines))), refresh=True)
                time.sleep(interval)


def _busiest(server: ControlPlane, project: str) -> list[tuple[str, Counter[str]]]:
    begin = (datetime.now(UTC) - timedelta(minutes=TOP_MINUTES)).isoformat(timespec="seconds").replace("+00:00", "Z")
    query = {"from": begin, "step": "minute", **({"project": project} if project else {})}
    sums = _sums(islice(server.rows("usage", **query), TOP_READ), "token")
    return sorted(sums.items(), key=lambda one: (-one[1]["denied"], -one[1]["allowed"], one[0]))


def _top_lines(found: list[tuple[str, Counter[str]]]) -> list[str]:
    head = ("token", "allowed", "denied", "would_deny")
    rows = [[name, *(total[one] for one in head[1:])] for name, total in found[:TOP_ROWS]]
    last = f"{len(found)} tokens in the last {TOP_MINUTES} minutes. Usage arrives about a minute late."
    return [*table_lines(head, rows), "", last]


def tail(
    project: Project = "",
    token: Annotated[str, typer.Option(help="Id of a token.")] = "",
    limit: Annotated[str, typer.Option(help="policy-slug/limit-name")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=200, help="Denials to begin with.")] = 10,
    interval: Interval = 2.0,
    once: Once = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Show denials as they come, from the sample that proxies report. Ctrl-C ends it."""
    given = {"project": project, "token": token, "limit": limit}
    query = {name: value for name, value in given.items() if value}
    show(SAMPLE, error=True)
    seen: dict[str, None] = {}
    with control_plane(trace) as server:
        rows = server.get("denials", page_size=lines, **query).body["results"]
        _show_denials(rows, seen, as_json=as_json)
        since = rows[0]["at"] if rows else None
        while not once:
            time.sleep(interval)
            # Those of the same instant too, because a second report may have the same time.
            fresh = list(server.rows("denials", **query, **({"since": since} if since else {})))
            _show_denials(fresh, seen, as_json=as_json)
            since = fresh[0]["at"] if fresh else since


def _show_denials(rows: list[dict[str, Any]], seen: dict[str, None], *, as_json: bool) -> None:
    """Print those denials that were not shown yet, the oldest first, each on a line."""
    for row in reversed(rows):
        if row["decision"] in seen:
            continue
        seen[row["decision"]] = None
        if len(seen) > MOST_KEPT:
            del seen[next(iter(seen))]
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        values = " ".join(f"{name}={value}" for name, value in row["attributes"].items())
        parts = (row["at"], row["project"] or "-", row["token"] or "-", row["limit"] or "-", row["reason"], values)
        show(" ".join(filter(None, (*parts, row["decision"]))))
    sys.stdout.flush()


def explain(
    subject: Annotated[str, typer.Argument(metavar="TOKEN|ID", help="A decision id, a token, its id, or - for stdin.")],
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", "-a", help="Of the request, such as path=/v1. May be repeated.")
    ] = None,
    at: Annotated[str, typer.Option(help="Time of the request, with a token. Default: now.")] = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """
    Show why a request was denied, or which limits apply to a token. Nothing is charged.

    With --redis or --prefix, the store is asked instead of the control plane. Exit status 1 if a token is denied now.
    """
    asked = (sys.stdin.readline() if subject == "-" else subject).strip()
    body: dict[str, Any] = {"decision" if asked.startswith("dec_") else "token": asked}
    body |= {"at": at} if at else {}
    body |= {"attributes": _attributes(attribute)} if attribute else {}
    with control_plane(trace) as server:
        found = server.ask("explain", body)
    if as_json:
        show_json(found)
    else:
        show(found["summary"], "")
        head = ("limit", "scope", "result", "quota", "used", "remaining_now", "why")
        show_table(head, ([row[name] for name in head] for row in found["limits"]))
    raise typer.Exit(DENIED if "token" in body and found["passes_now"] is False else 0)


def _attributes(given: list[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    if any(not name or not equals for name, equals, _ in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter("Must be names and values such as path=/v1, each once.", param_hint="--attribute")
    return {name: value for name, _, value in pairs}


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (usage, top, tail, explain):
        app.command(command.__name__)(command)


__all__ = ["register"]
