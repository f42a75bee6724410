"""The commands about policy files."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

import typer

from enforcement.cli.commands import CHANGES, DETAILED
from enforcement.cli.remote.account import account
from enforcement.cli.remote.files.applying import (
    SIGNS,
    FilePlan,
    JobUnread,
    Moved,
    Options,
    Wish,
    carry_out,
    make_plan,
    saved_wish,
)
from enforcement.cli.remote.files.present import read_present
from enforcement.cli.remote.files.yaml_source import read_file, to_yaml
from enforcement.cli.remote.options import AsJson, Reason, Trace, Yes, checked_slug, confirm, control_plane
from enforcement.cli.remote.rest import ControlPlane, RequestRefused, ServerAway
from enforcement.cli.remote.screen import change_words, show, show_json, write_utf8
from enforcement.policy_files import schema as file_schema
from enforcement.policy_files.clashes import clashes
from enforcement.policy_files.policy_file import FileTooLarge, PolicyFile, check_size
from enforcement.policy_files.source import InvalidFile, InvalidFiles

DIFFERS, UNREAD, REFUSED, MOVED, UNKNOWN, INTERRUPTED = 1, 2, 2, 3, 4, 130
MAX_MARK: Final = 200
MAX_PLAN_BYTES: Final = 16 * 1_048_576
# What the control plane counts, and what a person calls it.
COUNTS: Final = {"created": "create", "updated": "change", "deleted": "delete"}
_MAY_BE_DONE: Final = "It may have been made. Make a new plan, which shows whether it was."

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
        if present is None:
            raise typer.BadParameter(f"There is no project {project!r}.", param_hint="PROJECT")
        text = json.dumps(present.as_values(), indent=2, ensure_ascii=False) + "\n"
        if not as_json:
            text = to_yaml(present, f"{server.url}{file_schema.ADDRESS}")
    try:
        check_size(present, text)
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
    wish = Wish(read_file(file), _options(file, managed_by, no_mark, prune, prune_overrides))
    with control_plane(trace) as server:
        plan = make_plan(server, wish)
    if as_json:
        show_json({"differs": bool(plan.steps), "steps": plan.steps, "stays": plan.found["stays"]})
    else:
        _show_steps(plan, {})
        if not plan.steps:
            show("No difference.")
    raise typer.Exit(DIFFERS if plan.steps else 0)


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
    wish = Wish(read_file(file), _options(file, managed_by, no_mark, prune, prune_overrides))
    with control_plane(trace) as server:
        made = make_plan(server, wish)
    if out:
        Path(out).write_text(json.dumps(made.to_json(), indent=2) + "\n", encoding="utf-8")
    if as_json:
        show_json({**made.to_json(), "reviews": made.reviews, "warnings": made.found["warnings"]})
    else:
        _show_plan(made)
        if made.steps:
            show(f"Nothing was changed. Apply it with: sluicegate apply {f'--plan {out}' if out else file}")
    raise typer.Exit(CHANGES if detailed and made.steps else 0)


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
    Change the control plane to what a policy file says, all of it or nothing.

    Exit status 3 if something was changed after the plan, so that nothing was done. 4 if it is unknown what was done.
    """
    if bool(file) == bool(saved):
        raise typer.BadParameter("Exactly one of a file and --plan must be given.", param_hint="FILE")
    if saved and (managed_by or no_mark or prune or prune_overrides):
        raise typer.BadParameter("A saved plan has these options already. Make a new plan.", param_hint="--plan")
    known = account()
    with control_plane(trace, known) as server:
        try:
            if saved:
                wish = saved_wish(_text_of(saved), known.url)
            else:
                wish = Wish(read_file(file), _options(file, managed_by, no_mark, prune, prune_overrides))
            made = make_plan(server, replace(wish, base=base))
        except Moved as exc:
            show(str(exc), error=True)
            raise typer.Exit(MOVED) from None
        if not as_json:
            _show_plan(made)
        confirm("Apply this?", yes=yes or not made.steps, quiet=as_json)
        why = reason or f"sluicegate apply {file or saved}"[:500]
        outcome = _apply(server, made, why) if made.steps else FileOutcome()
    _show_outcome(made, outcome, as_json=as_json)


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """
    What became of a plan.

    Attributes:
        status: The exit status. 0 if everything was made.
        problem: Why nothing was made, or may have been.
        revision: The revision with the change, or ``pending``. Empty if nothing was changed.
        warnings: As of the response.
    """

    status: int = 0
    problem: str = ""
    revision: str = ""
    warnings: Sequence[Mapping[str, str]] = ()


def _apply(server: ControlPlane, made: FilePlan, reason: str) -> FileOutcome:
    """Make what a plan says, and return what became of it."""
    try:
        with _ended_like_ctrl_c():
            reply = carry_out(server, made, reason)
    except Moved as exc:
        return FileOutcome(MOVED, str(exc))
    except (RequestRefused, InvalidFiles) as exc:
        return FileOutcome(REFUSED, str(exc))
    except JobUnread as exc:
        return FileOutcome(UNKNOWN, str(exc))
    except ServerAway as exc:
        return FileOutcome(UNKNOWN, f"{exc} {_MAY_BE_DONE}") if exc.sent else FileOutcome(REFUSED, str(exc))
    except KeyboardInterrupt:
        return FileOutcome(INTERRUPTED, f"Interrupted. {_MAY_BE_DONE}")
    return FileOutcome(revision=reply.revision, warnings=reply.body["warnings"])


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM, by which a pipeline ends a job, like Ctrl-C meanwhile, so that the outcome is printed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _options(file: str, managed_by: str, no_mark: bool, prune: bool, prune_overrides: bool) -> Options:
    if managed_by and no_mark:
        raise typer.BadParameter("Must not be combined with --no-mark.", param_hint="--managed-by")
    mark = "" if no_mark else managed_by or file
    if len(mark) > MAX_MARK:
        raise typer.BadParameter(
            f"Must have at most {MAX_MARK} characters, got {len(mark)}.", param_hint="--managed-by"
        )
    return Options(mark, bool(managed_by), prune, prune_overrides)


def _text_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_PLAN_BYTES)


def _show_plan(made: FilePlan) -> None:
    base = "unknown" if made.revision is None else made.revision
    show(f"{made.wish.file.title}, base revision {base}")
    _show_steps(made, made.reviews)
    _show_warnings(made.found["warnings"])
    counts = made.found["counts"]
    total = ", ".join(f"{counts[name]} to {action}" for name, action in COUNTS.items())
    show(f"Plan: {total}." if made.steps else "Nothing to change.")


def _show_steps(made: FilePlan, reviews: Mapping[str, Mapping[str, Any]]) -> None:
    for step in made.steps:
        show(f"{SIGNS[step['action']]} {step['kind']} {step['name']}", *(f"    {line}" for line in step["words"]))
        if step["kind"] == "policy" and (review := reviews.get(step["name"])):
            show(f"    {review['headline']}. {review['preview']['summary']}")
    more = made.found["changed"] - len(made.steps)
    show(*([f"and {more:,} more"] if more else []))
    show(*made.found["stays"], error=True)


def _show_warnings(warnings: Iterable[Mapping[str, str]]) -> None:
    show(*(f"Warning: policy {one['policy']}, {one['limit']}: {one['message']}" for one in warnings), error=True)


def _show_outcome(made: FilePlan, outcome: FileOutcome, *, as_json: bool) -> None:
    is_done = not outcome.status
    if as_json:
        steps = {"done": made.steps if is_done else [], "left": [] if is_done else made.steps}
        told = {"revision": outcome.revision, "problem": outcome.problem, "warnings": list(outcome.warnings)}
        show_json({**steps, **told})
    elif is_done:
        published = f" (revision {outcome.revision})" if outcome.revision else ""
        changed = made.found["changed"]
        show(f"Done: {changed:,} change{'' if changed == 1 else 's'}{published}.")
    else:
        show(outcome.problem, error=True)
    if not is_done:
        raise typer.Exit(outcome.status)


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


def _show_undo(tried: dict[str, Any]) -> None:
    for one in tried["objects"]:
        show(f"~ {one['type']} {one['label']}", *(f"    {change_words(line)}" for line in one["changes"]))
    show(*tried["stays"], error=True)


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (validate, schema, export, diff, plan, apply, undo):
        app.command(command.__name__)(command)
