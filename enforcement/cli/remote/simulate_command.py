"""The command ``sluicegate simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import typer

from enforcement.cli.remote.files.yaml_source import read_file
from enforcement.cli.remote.options import AsJson
from enforcement.cli.remote.screen import progress, show, show_json, show_table
from enforcement.cli.remote.simulation import LimitPlayer, Simulation
from enforcement.cli.remote.traffic import InvalidTraffic, Traffic, from_log, from_usage, log_size
from enforcement.model.limits import Limit
from enforcement.policy_files.fields import read_limit
from enforcement.policy_files.policy_file import PolicyFile, has_ended

_SHARED: Final = "All callers share the counters, because the file gives the policy to all of them."
_FORMATS: Final = "Must be of the combined or common format, or a JSON object with an instant as `at`."


def simulate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file.")],
    usage: Annotated[
        str, typer.Option(help="What `sluicegate usage --json` has printed. - reads standard input.")
    ] = "",
    log: Annotated[
        str, typer.Option(help="An access log: combined, common, or JSON lines, also as gzip. - reads standard input.")
    ] = "",
    policy: Annotated[str, typer.Option(help="Slug of the policy. Default: the only one of the file.")] = "",
    per: Annotated[
        Literal["caller", "project"] | None,
        typer.Option(help="Whether each caller has counters of their own, or all share. Default: as the file says."),
    ] = None,
    most: Annotated[int, typer.Option(min=0, max=1_000, help="How many of the most affected callers are shown.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Play requests of the past through a policy of a file, and show who would have been limited."""
    if bool(usage) == bool(log):
        raise typer.BadParameter("Exactly one of --usage and --log must be given.", param_hint="--log")
    wanted = read_file(file)
    slug = _chosen(wanted, policy)
    limits, of_callers = limits_of(wanted, slug, datetime.now(UTC))
    shared = per == "project" or (per is None and _is_shared(wanted, slug))
    path = usage or log
    with progress(f"Reading {path}", None if usage else log_size(path)) as bar:
        traffic = (from_usage if usage else from_log)(path, lambda done: bar.update(bar.task_ids[0], completed=done))
        player = LimitPlayer(limits, traffic, shared=shared, of_callers=of_callers)
        _check_judged(player.result)
        for request in traffic.requests:
            player.play(request)
    if not player.result.requests:
        first = f" The first line that is none: {traffic.first_unread}. {_FORMATS}" if traffic.unread else ""
        raise InvalidTraffic(f"{path}: Must have at least one request.{first}")
    sharing = _SHARED if shared and per is None else ""
    cautions = [text for text in (sharing, traffic.caution, _unread(traffic), _unordered(traffic)) if text]
    if as_json:
        show_json({**player.result.to_json(most), "cautions": cautions})
    else:
        _show(player.result, most, cautions)


def _chosen(file: PolicyFile, slug: str) -> str:
    """Return the slug of the policy to simulate."""
    if not slug and len(file.policies) == 1:
        (slug,) = file.policies
    if slug not in file.policies:
        names = ", ".join(sorted(file.policies)) or "none"
        raise typer.BadParameter(f"Must be a policy of the file ({names}), got {slug!r}.", param_hint="--policy")
    return slug


def _is_shared(file: PolicyFile, slug: str) -> bool:
    """Return whether a file says that a policy is that of the whole project, or of every request."""
    return slug == (file.project or {}).get("policy") or slug in file.chosen_global


def limits_of(file: PolicyFile, slug: str, now: datetime) -> tuple[list[Limit], dict[str, list[Limit]]]:
    """
    Return the limits of a policy of a file, and those of each token that has overrides, by its id.

    Args:
        now: An override that has ended by then does not apply.
    """
    # Those for one value of a partition are left out, as no value of the traffic is known to be of one team.
    everyone = {key: one for key, one in file.all_overrides.items() if not one.get("partition")}
    overrides = {key: one for key, one in everyone.items() if not has_ended(one, now)}
    limits = file.policies[slug]["limits"]
    common = [_overridden(limit, overrides.get(f"{slug}/{limit['name']}", {})) for limit in limits]
    of_callers: dict[str, list[Limit]] = {}
    for override in overrides.values():
        policy, _, name = override["limit"].partition("/")
        if "token" in override and policy == slug:
            own = of_callers.setdefault(override["token"], list(common))
            index = [limit["name"] for limit in limits].index(name)
            own[index] = _overridden(limits[index], override)
    return common, of_callers


def _overridden(limit: dict[str, object], override: Mapping[str, object]) -> Limit:
    given = {name: override[name] for name in ("quota", "burst") if name in override}
    if limit["algorithm"] != "token_bucket":
        given.pop("burst", None)
    return Limit.from_json(read_limit({**limit, **given}))


def _check_judged(result: Simulation) -> None:
    """Raise InvalidTraffic if no limit can be judged, which would look as if nobody were limited."""
    if not result.limits:
        reasons = [f" {name}: {reason}" for name, reason in result.unjudged.items()] or [" It has none."]
        raise InvalidTraffic(f"No limit of the policy can be judged by these requests.{''.join(reasons)}")


def _unread(traffic: Traffic) -> str:
    if not traffic.unread:
        return ""
    return f"{traffic.unread:,} lines are no requests, and were left out. The first is {traffic.first_unread}."


def _unordered(traffic: Traffic) -> str:
    if not traffic.unordered:
        return ""
    return f"{traffic.unordered:,} requests are more than a minute earlier than one before them. Sort the log by time."


def _show(result: Simulation, most: int, cautions: list[str]) -> None:
    show_table(
        ("limit", "mode", "requests", "denied", "callers"),
        [
            (limit.limit.name, limit.limit.mode, limit.requests, limit.denied, len(limit.callers))
            for limit in result.limits
        ],
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
