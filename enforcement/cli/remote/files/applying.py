"""
Make a plan of what a policy file changes, and carry it out.

Every change is made only if its object is still as the plan has seen it. If one is refused or its outcome is unknown,
nothing more is done, and the report says exactly what was done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from enforcement.cli.remote.account import Account
from enforcement.cli.remote.files.late_checks import LateChecks
from enforcement.cli.remote.files.present import (
    PresentState,
    of_global,
    of_override,
    of_policy,
    of_project,
    one_or_none,
    read_present,
)
from enforcement.cli.remote.files.steps import (
    CHANGE,
    CREATE,
    DELETE,
    PlannedChanges,
    PlanStep,
    Wanted,
    steps_between,
)
from enforcement.cli.remote.problems import CommandProblem
from enforcement.cli.remote.rest import ControlPlane, RequestRefused, RestReply, ServerAway
from enforcement.model.units import AMOUNTS, USUAL, is_little, little, meant, never_charged
from enforcement.policy_files.policy_file import PolicyFile, from_source
from enforcement.policy_files.source import InvalidFiles, Source

FORMAT: Final = "sluicegate-plan/1"
REQUESTS_PER_PAGE: Final = 5
"""For how many single objects a page of a list takes about as long."""
_PATHS: Final = {"project": "projects", "policy": "policies", "override": "overrides"}
_GLOBAL: Final = "global"
_READ: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "project": of_project,
    "policy": of_policy,
    "override": of_override,
    _GLOBAL: of_global,
}
_MAY_BE_DONE: Final = "It may have been made. Make a new plan, which shows whether it was."


class Moved(Exception):
    """Something was changed after the plan was made. Nothing was changed by the step that found it."""


class InvalidPlan(CommandProblem):
    """A plan file that cannot be read."""


@dataclass(slots=True)
class FilePlan:
    """
    What a policy file changes of one state.

    Attributes:
        file: What is wanted.
        wanted: The options that the plan was made with.
        changes: The steps.
        url: The control plane that it was made for.
        revision: The newest revision when it was made. None if the key may not read it.
        digest: Names the state that the plan was made for.
        ident: The beginning of the idempotency keys of its steps. It is not saved, because a plan that is applied again
            after its changes were undone must make them again.
    """

    file: PolicyFile
    wanted: Wanted
    changes: PlannedChanges
    url: str
    revision: int | None
    digest: str
    ident: str = field(default_factory=lambda: str(uuid4()))
    present: PresentState | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, from which :func:`plan_from` reads it."""
        options = {name: getattr(self.wanted, name) for name in Wanted.__dataclass_fields__}
        return {
            "format": FORMAT,
            "url": self.url,
            "base": {"revision": self.revision, "state": self.digest},
            "options": options,
            "steps": [step.to_json() for step in self.changes.steps],
            "stays": self.changes.stays,
            "file": self.file.as_values(),
        }


@dataclass(slots=True)
class ApplyReport:
    """
    What became of a plan.

    Attributes:
        done: The steps that were made, with the response to each.
        stopped_at: The step that was not made, or may have been. None if all were made.
        problem: Why it stopped.
        moved: Whether it stopped because something was changed meanwhile.
        refused: Whether the step that it stopped at was certainly not made.
        interrupted: Whether a person or the system stopped it.
        left: The steps after that, which were not tried.
    """

    done: list[tuple[PlanStep, RestReply]] = field(default_factory=list)
    stopped_at: PlanStep | None = None
    problem: str = ""
    moved: bool = False
    refused: bool = False
    interrupted: bool = False
    left: list[PlanStep] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "done": [
                {**step.to_json(), "revision": reply.revision, **({"warning": reply.warning} if reply.warning else {})}
                for step, reply in self.done
            ],
            "stopped_at": self.stopped_at and self.stopped_at.to_json(),
            "problem": self.problem,
            "left": [step.to_json() for step in self.left],
        }


def make_plan(
    server: ControlPlane, file: PolicyFile, wanted: Wanted, base: Mapping[str, Any] | None = None
) -> FilePlan:
    """
    Return the plan for the present state.

    Args:
        base: The state that it must be made for, as :meth:`FilePlan.to_json` names it.
    Raises:
        Moved: The present state is another one.
        ServerAway, RequestRefused, InvalidPlan, InvalidFiles
    """
    slug = file.project["slug"] if file.project else None
    present = read_present(server, slug, tokens=file.token_overrides is not None)
    if base is not None and present.digest != base["state"]:
        was, now = base.get("revision"), present.revision
        raise Moved(f"{file.title} was changed after the plan was made (revision {was} then, {now} now).")
    changes = steps_between(present, file, wanted)
    _check_names(server, changes)
    _check_global(present, file)
    _check_late(server, file, changes, present)
    return FilePlan(file, wanted, changes, server.url, present.revision, present.digest, present=present)


def _check_names(server: ControlPlane, changes: PlannedChanges) -> None:
    """Raise InvalidPlan if a policy that is to be created has the slug of one that belongs elsewhere."""
    slugs = [step.name for step in changes.steps if step.kind == "policy" and step.action == CREATE]
    for slug, project in _owners(server, slugs):
        owner = f"the project {project}" if project else "all projects"
        raise InvalidPlan(f"policy {slug}: Must be another slug, because this one is of a policy of {owner}.")


def _owners(server: ControlPlane, slugs: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield those slugs that policies have, with their project. None stands for all projects."""
    listed: dict[str, str | None] | None = None
    if len(slugs) > REQUESTS_PER_PAGE:
        listed = _listed(server, len(slugs) // REQUESTS_PER_PAGE)
    for slug in slugs:
        if listed is not None:
            if slug in listed:
                yield slug, listed[slug]
        elif found := one_or_none(server, f"policies/{slug}"):
            yield slug, found.body["project"]


def _listed(server: ControlPlane, pages: int) -> dict[str, str | None] | None:
    """Return the project of every policy by its slug, or None if there are more than so many pages of them."""
    found: dict[str, str | None] = {}
    for number, page in enumerate(server.pages("policies")):
        if number == pages:
            return None
        found |= {row["slug"]: row["project"] for row in page}
    return found


def _check_global(present: PresentState, file: PolicyFile) -> None:
    """Raise InvalidFiles if the global policy would be none of the shared policies."""
    chosen = file.chosen_global[0] if file.chosen_global else None
    if chosen is not None and chosen not in {*file.policies, *present.file.policies}:
        reason = f"Must be a policy that all projects share. There is none with the slug {chosen}."
        raise InvalidFiles([file.error((_GLOBAL,), reason)])


def _check_late(server: ControlPlane, file: PolicyFile, changes: PlannedChanges, present: PresentState) -> None:
    """Raise InvalidFiles, with the lines, for what the control plane would refuse after the first steps."""
    if errors := LateChecks(server, file, present).errors(changes):
        raise InvalidFiles(errors)


def plan_from(text: str) -> dict[str, Any]:
    """Return the values of a plan file. Raises InvalidPlan."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InvalidPlan("Must be a file that `sluicegate plan --out` has written.")
    return values


def confirmed_plan(server: ControlPlane, values: Mapping[str, Any], account: Account) -> FilePlan:
    """
    Return a saved plan, made again for the present state.

    Raises:
        InvalidPlan: It is damaged, or for another control plane.
        Moved: The state is no longer the one that it was made for.
    """
    try:
        file, wanted = from_source(Source("plan", values["file"])), Wanted(**values["options"])
        base, url = values["base"], values["url"]
        base["state"]
    except KeyError as exc:
        raise InvalidPlan(f"Must be a file that `sluicegate plan --out` has written, but has no {exc}.") from None
    except (InvalidFiles, TypeError) as exc:
        raise InvalidPlan(f"Must be a file that `sluicegate plan --out` has written: {exc}") from None
    if url != account.url:
        raise InvalidPlan(f"Must be a plan for {account.url}, got one for {url}.")
    return make_plan(server, file, wanted, base)


def check_base(plan: FilePlan, base: int | None) -> None:
    """Raise Moved unless the newest revision is *base*. None stands for any revision."""
    if base is not None and plan.revision != base:
        now = "unknown, as the key may not read it" if plan.revision is None else plan.revision
        raise Moved(f"The newest revision must be {base}, and is {now}.")


def carry_out(
    server: ControlPlane,
    plan: FilePlan,
    reason: str,
    told: Callable[[PlanStep, RestReply], None] = lambda step, reply: None,
) -> ApplyReport:
    """
    Make the changes of a plan in their order, and return what became of it.

    Args:
        reason: For the audit.
        told: Called after each step with the response to it.
    """
    report, steps = ApplyReport(), plan.changes.steps
    for index, step in enumerate(steps):
        try:
            reply = _make(server, plan, step, f"{plan.ident}-{index}", reason)
            report.done.append((step, reply))
            told(step, reply)
        except (Moved, RequestRefused, ServerAway) as exc:
            report.stopped_at, report.left = step, steps[index + 1 :]
            report.moved = isinstance(exc, Moved)
            report.refused = not (isinstance(exc, ServerAway) and exc.sent)
            report.problem = str(exc) if report.refused else f"{exc} {_MAY_BE_DONE}"
            return report
        except KeyboardInterrupt:
            return _interrupted(report, steps)
    return report


def _interrupted(report: ApplyReport, steps: list[PlanStep]) -> ApplyReport:
    """Return the report of an apply that was stopped. Whether the step that ran then was made is not known."""
    rest = steps[len(report.done) :]
    if rest:
        report.stopped_at, report.left = rest[0], rest[1:]
        report.problem, report.interrupted = f"Interrupted. {_MAY_BE_DONE}", True
    return report


def _make(server: ControlPlane, plan: FilePlan, step: PlanStep, key: str, reason: str) -> RestReply:
    """
    Make one change, and return the response to it.

    Raises:
        Moved: Its object is not as the plan has seen it.
        RequestRefused, ServerAway: It was refused, or its outcome is unknown.
    """
    if step.action == CREATE:
        return _created(server, step, key, reason)
    ident = plan.present.ids[step.name] if step.kind == "override" and plan.present else step.name
    path = _GLOBAL if step.kind == _GLOBAL else f"{_PATHS[step.kind]}/{ident}"
    found = one_or_none(server, path)
    if found is None:
        raise Moved(f"{step.kind} {step.name} was deleted after the plan was made.")
    if _READ[step.kind](found.body) != step.before:
        raise Moved(f"{step.kind} {step.name} was changed after the plan was made.")
    method = "DELETE" if step.action == DELETE else "PUT" if step.kind == _GLOBAL else "PATCH"
    try:
        return server.change(method, path, step.body, key=key, etag=found.etag, reason=reason)
    except RequestRefused as exc:
        if exc.status == 412:
            raise Moved(f"{step.kind} {step.name} was changed at the same moment.") from exc
        raise


def _created(server: ControlPlane, step: PlanStep, key: str, reason: str) -> RestReply:
    """Create an object, and return the response to it. Raises as :func:`_make`."""
    try:
        return server.change("POST", _PATHS[step.kind], step.body, key=key, reason=reason)
    except RequestRefused as exc:
        # Somebody else created it since. An override has no name by which it could be read.
        exists = step.kind != "override" and exc.status in (400, 409)
        if exists and one_or_none(server, f"{_PATHS[step.kind]}/{step.name}"):
            raise Moved(f"{step.kind} {step.name} was created after the plan was made.") from exc
        raise


def reviews(
    server: ControlPlane, plan: FilePlan, seen: Callable[[int, int], None] = lambda done, all_: None
) -> dict[str, dict[str, Any]]:
    """
    Return what the control plane says of each policy that changes, or is new with an unusual limit, by its slug.

    It tries the change and undoes it, so that every rule is checked, and counts whom it would have denied lately. This
    needs the scope to make the change. Without it, nothing is returned.

    Args:
        seen: Called with how many policies are tried, and how many there are.
    Raises:
        RequestRefused: The change breaks a rule.
        ServerAway: It gave no response.
    """
    found = {}
    steps = [step for step in plan.changes.steps if step.kind == "policy" and step.action == CHANGE]
    tried = [step for step in steps if step.body and set(step.body) != {"managed_by"}]
    # Otherwise a new policy has no project yet.
    if plan.file.project is None or (plan.present and plan.present.file.project):
        tried += _odd_ones(plan)
    for index, step in enumerate(tried):
        seen(index, len(tried))
        path, method = ("policies", "POST") if step.action == CREATE else (f"policies/{step.name}", "PATCH")
        try:
            found[step.name] = server.ask(path, step.body, method, dry_run="true")
        except RequestRefused as exc:
            if exc.status != 403:
                raise
            return {}  # a key that may only read plans all the same
    return found


def _odd_ones(plan: FilePlan) -> list[PlanStep]:
    """Return the steps that create a policy with a limit that may be a mistake."""
    return [step for step in plan.changes.steps if step.kind == "policy" and step.action == CREATE and _odd(step)]


def _odd(step: PlanStep) -> list[str]:
    """Return sentences about limits of a new policy in a unit that nothing reports by itself, or of little money."""
    limits = [(it, it.get("unit", USUAL[0])) for it in (step.body or {}).get("limits", ())]
    said = [f"{it['name']}: {never_charged(unit, meant(unit))}" for it, unit in limits if unit not in USUAL]
    amounts = [(it["name"], it.get(name) or 0, unit) for it, unit in limits for name in AMOUNTS]
    return said + [f"{name}: {little(number)}" for name, number, unit in amounts if is_little(number, unit)]


def warnings_of(plan: FilePlan, tried: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """
    Return what may be a mistake in each policy that is created or changed, in sentences by its slug.

    Args:
        tried: What :func:`reviews` returned. A new policy that was not tried is judged by the usual units.
    """
    found = {
        slug: [f"{one['limit']}: {one['message']}" for one in told.get("warnings", ())] for slug, told in tried.items()
    }
    found |= {step.name: _odd(step) for step in _odd_ones(plan) if step.name not in tried}
    return {slug: told for slug, told in found.items() if told}
