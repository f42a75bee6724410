"""The command ``sluicegate simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from enforcement.cli.remote.files.fields import read_limit
from enforcement.cli.remote.files.policy_file import PolicyFile, read_file
from enforcement.cli.remote.options import AsJson
from enforcement.cli.remote.screen import progress, show, show_json, show_table
from enforcement.cli.remote.simulation import LimitPlayer, Simulation
from enforcement.cli.remote.traffic import InvalidTraffic, Traffic, from_log, from_usage
from enforcement.model.limits import Limit


def simulate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file.")],
    usage: Annotated[str, typer.Option(help="What `sluicegate usage --json` has printed.")] = "",
    log: Annotated[str, typer.Option(help="An access log: combined, common, or JSON lines.")] = "",
    policy: Annotated[str, typer.Option(help="Slug of the policy. Default: the only one of the file.")] = "",
    per: Annotated[
        Literal["caller", "project"], typer.Option(help="Whether each caller has counters of their own, or all share.")
    ] = "caller",
    most: Annotated[int, typer.Option(min=0, max=1_000, help="How many of the most affected callers are shown.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Play requests of the past through a policy of a file, and show who would have been limited."""
    if bool(usage) == bool(log):
        raise typer.BadParameter("Exactly one of --usage and --log must be given.", param_hint="--log")
    limits = _limits(read_file(file), policy)
    path = usage or log
    with progress(f"Reading {path}", None if usage else Path(path).stat().st_size) as bar:
        traffic = (from_usage if usage else from_log)(path, lambda done: bar.update(bar.task_ids[0], completed=done))
        player = LimitPlayer(limits, traffic, shared=per == "project")
        for request in traffic.requests:
            player.play(request)
    if not player.result.requests:
        first = f" The first line that is none: {traffic.first_unread}." if traffic.unread else ""
        raise InvalidTraffic(f"{path}: Must have at least one request.{first}")
    cautions = [text for text in (traffic.caution, _unread(traffic)) if text]
    if as_json:
        show_json({**player.result.to_json(most), "cautions": cautions})
    else:
        _show(player.result, most, cautions)


def _limits(file: PolicyFile, slug: str) -> list[Limit]:
    """Return the limits of a policy of a file, with the overrides of the file applied."""
    if not slug and len(file.policies) == 1:
        (slug,) = file.policies
    if slug not in file.policies:
        names = ", ".join(sorted(file.policies)) or "none"
        raise typer.BadParameter(f"Must be a policy of the file ({names}), got {slug!r}.", param_hint="--policy")
    return [Limit.from_json(_overridden(file, slug, limit)) for limit in file.policies[slug]["limits"]]


def _overridden(file: PolicyFile, slug: str, limit: dict[str, Any]) -> dict[str, Any]:
    override = file.overrides.get(f"{slug}/{limit['name']}", {})
    given = {name: override[name] for name in ("quota", "burst") if name in override}
    if limit["algorithm"] != "token_bucket":
        given.pop("burst", None)
    return read_limit({**limit, **given})


def _unread(traffic: Traffic) -> str:
    if not traffic.unread:
        return ""
    return f"{traffic.unread:,} lines are no requests, and were left out. The first is {traffic.first_unread}."


def _show(result: Simulation, most: int, cautions: list[str]) -> None:
    show_table(
        ("limit", "mode", "requests", "denied", "callers"),
        [(one.limit.name, one.limit.mode, one.requests, one.denied, len(one.callers)) for one in result.limits],
    )
    share = 100 * result.denied / result.requests
    limited, callers = len(result.limited), len(result.callers)
    show(
        "",
        f"{result.denied:,} of {result.requests:,} requests denied ({share:.2f} %).",
        f"{limited:,} of {callers:,} callers limited.",
    )
    if result.limited and most:
        show("")
        rows = [(name, result.callers[name], count) for name, count in result.most(most)]
        show_table(("caller", "requests", "denied"), rows)
    for name, reason in result.unjudged.items():
        show(f"Not judged: {name}. {reason}", error=True)
    show(*cautions, error=True)


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("simulate")(simulate)


__all__ = ["register"]
