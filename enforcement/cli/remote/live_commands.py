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
from enforcement.cli.remote.rest import ControlPlane, RequestRefused, ServerAway
from enforcement.cli.remote.screen import bars, plot_width, safe, show, show_json, show_table, squeezed, table_lines
from enforcement.model.instants import PERIOD_SECONDS

DENIED: Final = 1
ANONYMOUS: Final = "anonymous"
TOP_ROWS: Final = 20
TOP_MINUTES: Final = 10
# In a large installation these are only some of the tokens. Usage over REST is not sorted by number.
TOP_READ: Final = 20_000
MOST_KEPT: Final = 100_000
# Proxies report at different times, so that a denial may arrive after later ones of others.
LATE: Final = timedelta(minutes=1)
SAMPLE: Final = (
    "This is a sample. Most denials are not in it, so do not count them. `sluicegate usage` counts every one."
)
Project = Annotated[str, typer.Option(help="Slug of a project.")]
Interval = Annotated[float, typer.Option(min=0.5, help="Seconds between two looks, at least 0.5.")]
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
    limit = limit or ("*" if by == "limit" else "")  # without a limit, a row counts all decisions
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
    each = _show_plot(about, sums) if by == "time" and len(sums) > 1 else 1
    width = f" A character of the plot is {each:,} {about['step']}s." if each > 1 else ""
    show(f"By the {about['step']}, from {about['from']} to {about['to']}.{width}", error=True)


def _show_plot(about: Mapping[str, str], sums: Mapping[str, Counter[str]]) -> int:
    """Print a plot of the whole range, also where nothing was counted, and return how many steps a character is."""
    first, last = (datetime.fromisoformat(about[name]) for name in ("from", "to"))
    step = timedelta(seconds=PERIOD_SECONDS[about["step"]])
    each = 1
    for name in ("allowed", "denied"):
        numbers = [0] * -(-(last - first) // step)
        for at, total in sums.items():
            numbers[(datetime.fromisoformat(at) - first) // step] += total[name]
        found, each = squeezed(numbers, plot_width())
        show(f"{name:<8} {bars(found)} at most {max(found):,}")
    return each


def _usage_pages(server: ControlPlane, query: dict[str, object]) -> Iterable[Row]:
    """Yield each page of a list of usage, of which each has the step and the range."""
    query = {"page_size": 200, **query}
    while True:
        page = server.page("usage", **query)
        yield page
        if not page["next_cursor"]:
            return
        # The first page says which range was chosen, which must stay the same.
        query |= {"cursor": page["next_cursor"], "from": page["from"], "to": page["to"], "step": page["step"]}


def _sums(rows: Iterable[Row], column: str) -> dict[str, Counter[str]]:
    """Return the sums of rows by the value of a column, in the order in which the values come."""
    result: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        name = row[column] or (ANONYMOUS if column == "token" else "all decisions")
        result[str(name)].update({one: row[one] for one in ("allowed", "denied", "would_deny", "cost")})
    return result


def top(
    project: Project = "", interval: Interval = 2.0, once: Once = False, as_json: AsJson = False, trace: Trace = False
) -> None:
    """Show the tokens with the most denials and requests of the last ten minutes, again and again. Ctrl-C ends it."""
    with control_plane(trace) as server:
        names: dict[str, str] = {}
        if once or as_json or not sys.stdout.isatty():
            found, is_cut = _busiest(server, project)
            if as_json:
                rows = [{"token": name, **total} for name, total in found]
                show_json({"minutes": TOP_MINUTES, "cut": is_cut, "results": rows})
            else:
                _learn_names(server, found, names)
                show(*_top_lines(found, names, is_cut=is_cut))
            return
        with Live(auto_refresh=False, screen=True) as live:
            while True:
                try:
                    found, is_cut = _busiest(server, project)
                    _learn_names(server, found, names)
                    lines = _top_lines(found, names, is_cut=is_cut)
                except ServerAway as exc:  # as while it is restarted
                    lines = [f"{exc} Trying again until Ctrl-C."]
                live.update(Text("\n".join(map(safe, lines))), refresh=True)
                time.sleep(interval)


def _busiest(server: ControlPlane, project: str) -> tuple[list[tuple[str, Counter[str]]], bool]:
    """Return the sums of each token, and whether there were more rows than are read."""
    begin = (datetime.now(UTC) - timedelta(minutes=TOP_MINUTES)).isoformat(timespec="seconds").replace("+00:00", "Z")
    query = {"from": begin, "step": "minute", **({"project": project} if project else {})}
    rows = list(islice(server.rows("usage", **query), TOP_READ + 1))
    sums = _sums(rows[:TOP_READ], "token")
    found = sorted(sums.items(), key=lambda one: (-one[1]["denied"], -one[1]["allowed"], one[0]))
    return found, len(rows) > TOP_READ


def _learn_names(server: ControlPlane, found: list[tuple[str, Counter[str]]], names: dict[str, str]) -> None:
    """Add the names of the tokens that are shown, or "" for one that is deleted or that the key may not read."""
    for token, _ in found[:TOP_ROWS]:
        if token not in names and token != ANONYMOUS:
            try:
                names[token] = server.get(f"tokens/{token}").body["name"]
            except RequestRefused:
                names[token] = ""


def _top_lines(found: list[tuple[str, Counter[str]]], names: Mapping[str, str], *, is_cut: bool) -> list[str]:
    head = ("token", "name", "allowed", "denied", "would_deny")
    rows = [[token, names.get(token, ""), *(total[one] for one in head[2:])] for token, total in found[:TOP_ROWS]]
    last = f"{len(found):,} tokens in the last {TOP_MINUTES} minutes. Usage arrives about a minute late."
    cut = f" Only the first {TOP_READ:,} rows were read, which are of the earliest minutes. Name a project."
    return [*table_lines(head, rows), "", last + (cut if is_cut else "")]


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
        rows = server.page("denials", page_size=lines, **query)["results"]
        _show_denials(rows, seen, as_json=as_json)
        if once:
            return
        query |= _since(rows)
        # The earlier ones of this minute, which are more than were asked for.
        seen |= {row["decision"]: None for row in (server.rows("denials", **query) if rows else ())}
        away = False
        while True:
            time.sleep(interval)
            rows, away = _fresh(server, query, was_away=away)
            _show_denials(rows, seen, as_json=as_json)
            query |= _since(rows)


def _since(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the query for denials that may arrive after these, of which the first is the newest."""
    return {"since": (datetime.fromisoformat(rows[0]["at"]) - LATE).isoformat()} if rows else {}


def _fresh(server: ControlPlane, query: Mapping[str, str], *, was_away: bool) -> tuple[list[dict[str, object]], bool]:
    """Return new denials, and whether the control plane is away, which is said once, as while it is restarted."""
    try:
        rows = list(server.rows("denials", **query))
    except ServerAway as exc:
        if not was_away:
            show(f"{exc} Trying again until Ctrl-C.", error=True)
        return [], True
    if was_away:
        show(f"{server.url} is back.", error=True)
    return rows, False


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
    body: dict[str, object] = {"decision" if asked.startswith("dec_") else "token": asked}
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
