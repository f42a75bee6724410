"""The commands about policy files."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final
from uuid import uuid4

import typer

from enforcement.cli.commands import CHANGES, DETAILED
from enforcement.cli.remote.account import account
from enforcement.cli.remote.files.applying import (
    ApplyReport,
    FilePlan,
    carry_out,
    check_base,
    confirmed_plan,
    make_plan,
    plan_from,
    reviews,
    warnings_of,
)
from enforcement.cli.remote.files.applying import Moved as StateMoved
from enforcement.cli.remote.files.present import read_present
from enforcement.cli.remote.files.steps import SIGNS, PlanStep, Wanted
from enforcement.cli.remote.files.yaml_source import read_file, to_yaml
from enforcement.cli.remote.options import AsJson, Reason, Trace, Yes, checked_slug, confirm, control_plane
from enforcement.cli.remote.rest import ControlPlane, RequestRefused, RestReply
from enforcement.cli.remote.screen import progress, show, show_json, write_utf8
from enforcement.policy_files import schema as file_schema
from enforcement.policy_files.clashes import clashes
from enforcement.policy_files.policy_file import FileTooLarge, PolicyFile, check_size
from enforcement.policy_files.source import InvalidFile, InvalidFiles

DIFFERS, UNREAD, REFUSED, MOVED, STOPPED, INTERRUPTED = 1, 2, 2, 3, 4, 130
MAX_MARK: Final = 200
MAX_PLAN_BYTES: Final = 16 * 1_048_576

PolicyPath = Annotated[str, typer.Argument(metavar="FILE", help="A policy file.")]
Mark = Annotated[
    str, typer.Option("--managed-by", help="Where the file is, which marks its objects. Default: the path as given.")
]
Unmarked = Annotated[bool, typer.Option("--no-mark", help="Mark nothing as managed from files.")]
Prune = Annotated[bool, typer.Option("--prune", help="Delete policies that were managed from files and are not in it.")]
PruneOverrides = Annotated[
    bool,
    typer.Option(
        "--prune-overrides", help="Delete overrides of the project that are not in the file, and of its tokens."
    ),
]

Detailed = Annotated[bool, typer.Option(DETAILED, help="Exit status 2 if something would change, 1 after an error.")]


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Policy files.")], as_json: AsJson = False
) -> None:
    """Check policy files without a control plane. Exit status 1 if something is wrong, 2 if one cannot be read."""
    invalid_files: list[InvalidFile] = []
    read: list[PolicyFile] = []
    unread: dict[str, str] = {}
    for name in dict.fromkeys(files):
        try:
            read.append(read_file(name))
        except InvalidFiles as exc:
            invalid_files += exc.errors
        except InvalidFile as exc:
            invalid_files.append(exc)
        except OSError as exc:
            unread[name] = exc.strerror or str(exc)
    invalid_files += clashes(read)
    if as_json:
        rows = [{"file": one.file, "line": one.line, "field": one.field, "reason": one.reason} for one in invalid_files]
        rows += [{"file": name, "line": 0, "field": "", "reason": reason} for name, reason in unread.items()]
        show_json({"valid": not rows, "errors": rows})
    else:
        show(*map(str, invalid_files), error=True)
        show(*(f"sluicegate validate: {name}: {reason}" for name, reason in unread.items()), error=True)
        if not invalid_files and not unread:
            show(f"{len(read)} valid file{'' if len(read) == 1 else 's'}.")
    raise typer.Exit(UNREAD if unread else DIFFERS if invalid_files else 0)


def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    sys.stdout.write(file_schema.text())


def export(
    project: Annotated[str, typer.Argument(help="Slug of the project.")] = "",
    shared: Annotated[bool, typer.Option("--shared", help="The policies that all projects share.")] = False,
    no_token_overrides: Annotated[
        bool,
        typer.Option("--no-token-overrides", help="Leave the overrides of tokens out, which then stay as they are."),
    ] = False,
    out: Annotated[str, typer.Option("--out", "-o", help="Write this file. Default: standard output.")] = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Write a project, or the shared policies, as a policy file."""
    if bool(project) == shared:
        raise typer.BadParameter("Exactly one of a project and --shared must be given.", param_hint="PROJECT")
    slug = None if shared else checked_slug(project)
    with control_plane(trace) as server:
        present = read_present(server, slug, tokens=not no_token_overrides)
        if project and present.file.project is None:
            raise typer.BadParameter(f"There is no project {project!r}.", param_hint="PROJECT")
        text = json.dumps(present.file.as_values(), indent=2, ensure_ascii=False) + "\n"
        if not as_json:
            text = to_yaml(present.file, f"{server.url}{file_schema.ADDRESS}")
    try:
        check_size(present.file, text)
    except FileTooLarge as exc:
        hint = " Give --no-token-overrides." if exc.field == "token_overrides" else ""
        raise typer.BadParameter(f"{exc}{hint}", param_hint="--shared" if shared else "PROJECT") from None
    if out:
        Path(out).write_text(text, encoding="utf-8")
    else:
        write_utf8(text)


def diff(
    file: PolicyPath,
    managed_by: Mark = "",
    no_mark: Unmarked = False,
    prune: Prune = False,
    prune_overrides: PruneOverrides = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Show in what a policy file and the control plane differ, as `plan` does. Exit status 1 if they differ."""
    wanted, found = _wanted(file, managed_by, no_mark, prune, prune_overrides), read_file(file)
    with control_plane(trace) as server:
        plan = make_plan(server, found, wanted)
    if as_json:
        rows = [step.to_json() for step in plan.changes.steps]
        show_json({"differs": bool(rows), "steps": rows, "stays": plan.changes.stays})
    else:
        _show_steps(plan.changes.steps, plan.changes.stays)
        if not plan.changes.steps:
            show("No difference.")
    raise typer.Exit(DIFFERS if plan.changes.steps else 0)


def plan(
    file: PolicyPath,
    out: Annotated[str, typer.Option("--out", "-o", help="Save the plan for `apply --plan`.")] = "",
    managed_by: Mark = "",
    no_mark: Unmarked = False,
    prune: Prune = False,
    prune_overrides: PruneOverrides = False,
    detailed: Detailed = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Show what applying a policy file would do, and whom it would have denied lately. Nothing is changed."""
    found = read_file(file)
    with control_plane(trace) as server:
        made = make_plan(server, found, _wanted(file, managed_by, no_mark, prune, prune_overrides))
        with progress("Trying the changes", None) as bar:
            tried = reviews(server, made, lambda done, most: bar.update(bar.task_ids[0], completed=done, total=most))
    if out:
        Path(out).write_text(json.dumps(made.to_json(), indent=2) + "\n", encoding="utf-8")
    warned = warnings_of(made, tried)
    if as_json:
        show_json({**made.to_json(), "reviews": tried, "warnings": warned})
    else:
        summaries = {slug: f"{one['headline']}. {one['preview']['summary']}" for slug, one in tried.items()}
        _show_plan(made, summaries, warned)
        if made.changes.steps:
            show(f"Nothing was changed. Apply it with: sluicegate apply {f'--plan {out}' if out else file}")
    raise typer.Exit(CHANGES if detailed and made.changes.steps else 0)


def apply(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file.")] = "",
    saved: Annotated[str, typer.Option("--plan", help="A plan that `plan --out` has saved.")] = "",
    base: Annotated[int | None, typer.Option(min=0, help="Do nothing unless this is the newest revision.")] = None,
    managed_by: Mark = "",
    no_mark: Unmarked = False,
    prune: Prune = False,
    prune_overrides: PruneOverrides = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """
    Change the control plane to what a policy file says.

    Exit status 3 if something was changed after the plan, so that nothing was done. 4 if it stopped after some changes.
    """
    if bool(file) == bool(saved):
        raise typer.BadParameter("Exactly one of a file and --plan must be given.", param_hint="FILE")
    if saved and (managed_by or no_mark or prune or prune_overrides):
        raise typer.BadParameter("A saved plan has these options already. Make a new plan.", param_hint="--plan")
    known = account()
    with control_plane(trace, known) as server:
        try:
            if saved:
                made = confirmed_plan(server, plan_from(_text_of(saved)), known)
            else:
                wanted = _wanted(file, managed_by, no_mark, prune, prune_overrides)
                made = make_plan(server, read_file(file), wanted)
            check_base(made, base)
        except StateMoved as exc:
            show(f"Nothing was changed. {exc}", error=True)
            raise typer.Exit(MOVED) from None
        _confirm(made, yes=yes, quiet=as_json)
        with _ended_like_ctrl_c():
            report = carry_out(server, made, reason or f"sluicegate apply {file or saved}"[:500], _tell(quiet=as_json))
    _show_report(report, as_json=as_json)


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM, by which a pipeline ends a job, like Ctrl-C meanwhile, so that the report is printed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wanted(file: str, managed_by: str, no_mark: bool, prune: bool, prune_overrides: bool) -> Wanted:
    if managed_by and no_mark:
        raise typer.BadParameter("Must not be combined with --no-mark.", param_hint="--managed-by")
    mark = "" if no_mark else managed_by or file
    if len(mark) > MAX_MARK:
        raise typer.BadParameter(
            f"Must have at most {MAX_MARK} characters, got {len(mark)}.", param_hint="--managed-by"
        )
    return Wanted(mark, bool(managed_by), prune, prune_overrides)


def _text_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_PLAN_BYTES)


def _confirm(made: FilePlan, *, yes: bool, quiet: bool) -> None:
    """Show the plan, and end the command unless the person agrees. Without a terminal, --yes must say so."""
    if not quiet:
        _show_plan(made, {})
    confirm("Apply this?", yes=yes or not made.changes.steps, quiet=quiet)


def _tell(*, quiet: bool):  # type: ignore[no-untyped-def]
    def told(step: PlanStep, reply: RestReply) -> None:
        # The reader may have gone, as in `2>&1 | head`. The other steps are made all the same.
        with suppress(BrokenPipeError):
            if not quiet:
                show(f"Done: {step.title}{f' (revision {reply.revision})' if reply.revision else ''}", error=True)
                show(*([f"Warning: {step.title}, {reply.warning}"] if reply.warning else []), error=True)

    return told


def _show_plan(made: FilePlan, reviewed: dict[str, str], warned: dict[str, list[str]] | None = None) -> None:
    base = "unknown" if made.revision is None else made.revision
    show(f"{made.file.title}, base revision {base}")
    _show_steps(made.changes.steps, made.changes.stays, reviewed)
    show(*(f"Warning: policy {slug}, {text}" for slug, texts in (warned or {}).items() for text in texts), error=True)
    counts = {action: sum(step.action == action for step in made.changes.steps) for action in SIGNS}
    total = ", ".join(f"{count} to {action}" for action, count in counts.items())
    show(f"Plan: {total}." if made.changes.steps else "Nothing to change.")


def _show_steps(steps: list[PlanStep], stays: list[str], reviewed: dict[str, str] | None = None) -> None:
    for step in steps:
        show(f"{SIGNS[step.action]} {step.kind} {step.name}", *(f"    {line}" for line in step.words))
        if reviewed and step.name in reviewed and step.kind == "policy":
            show(f"    {reviewed[step.name]}")
    show(*stays, error=True)


def _show_report(report: ApplyReport, *, as_json: bool) -> None:
    if as_json:
        show_json(report.to_json())
    elif report.stopped_at is None:
        show(f"Done: {len(report.done)} change{'' if len(report.done) == 1 else 's'}.")
    else:
        show(f"Stopped at: {report.stopped_at.title}", f"  {report.problem}", error=True)
        for title, steps in (("Done", [step for step, _ in report.done]), ("Not tried", report.left)):
            show(f"{title}: {', '.join(step.title for step in steps) or 'nothing'}", error=True)
    if report.stopped_at is not None:
        raise typer.Exit(_stopped(report))


def _stopped(report: ApplyReport) -> int:
    if report.interrupted:
        return INTERRUPTED
    if report.done or not report.refused:
        return STOPPED
    return MOVED if report.moved else REFUSED


def undo(
    revision: Annotated[int, typer.Argument(min=1, help="The revision to undo.")],
    reason: Annotated[str, typer.Option(help="Why, for the audit. Required.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would do.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Change back what one revision changed, and nothing that was changed since."""
    with control_plane(trace) as server:
        try:
            tried = server.ask(f"revisions/{revision}/undo", {"reason": reason}, dry_run="true")
        except RequestRefused as exc:
            if exc.status != 404:
                raise
            raise typer.BadParameter(f"There is no revision {revision}.", param_hint="REVISION") from None
        if not as_json:
            _show_undo(tried)
        if dry_run:
            if as_json:
                show_json(tried)
            return
        confirm("Undo this?", yes=yes, quiet=as_json)
        done = _undone(server, revision, reason, tried["plan"])
    if as_json:
        show_json(done)
    else:
        now = done["revision"]
        show(f"Undone as revision {now}." if now else "Undone. The change is saved, and is published soon.")


def _undone(server: ControlPlane, revision: int, reason: str, seen: str) -> dict[str, object]:
    body = {"reason": reason, "plan": seen}
    result: dict[str, object] = server.change("POST", f"revisions/{revision}/undo", body, key=str(uuid4())).body
    return result


def _show_undo(tried: dict[str, object]) -> None:
    for one in tried["objects"]:  # type: ignore[attr-defined]
        show(f"~ {one['type']} {one['label']}")
        for line in one["changes"]:
            what = " ".join(filter(None, [line["part"], line["field"], line["text"]]))
            show(f"    {what}: {line['before']} -> {line['after']}" if not line["text"] else f"    {what}")
    show(*tried["stays"], error=True)  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (validate, schema, export, diff, plan, apply, undo):
        app.command(command.__name__)(command)
