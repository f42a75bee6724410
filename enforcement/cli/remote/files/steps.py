"""What has to be done so that a control plane has what a policy file says, step by step and in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from enforcement.cli.remote.files.present import PresentState
from enforcement.model import limit_fields
from enforcement.model.money import figure
from enforcement.policy_files.fields import OVERRIDE, POLICY, PROJECT, TOKEN_OVERRIDE, FileField, with_defaults
from enforcement.policy_files.policy_file import PolicyFile

CREATE, CHANGE, DELETE = "create", "change", "delete"
SIGNS: Final = {CREATE: "+", CHANGE: "~", DELETE: "-"}
# A project refers to policies, which may be its own, so it gets them after they were created.
REFERENCES: Final = ("policy", "anonymous_policy", "token_policy")
NOTHING: Final = "none"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """
    One change of one object.

    Attributes:
        action: ``create``, ``change`` or ``delete``.
        kind: ``project``, ``policy``, ``override``, or ``global`` for the choice of the global policy.
        name: The slug, the key of an override, or ``policy`` after ``global``.
        words: What changes, a line each.
        before: The object before, in the form of a policy file. None if it does not exist.
        body: What REST takes. None for a deletion.
        deletes_limits: The names of limits that the policy has no longer.
    """

    action: str
    kind: str
    name: str
    words: tuple[str, ...] = ()
    before: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None
    deletes_limits: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is done, in words."""
        return f"{self.action} {self.kind} {self.name}"

    def to_json(self) -> dict[str, Any]:
        return {"action": self.action, "kind": self.kind, "name": self.name, "words": list(self.words)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    What a person wants beside the file.

    Attributes:
        mark: Where the file is, which marks the project, its policies and overrides. Empty: nothing is marked.
        renames_mark: Whether an object gets the mark that has another one.
        prune: Whether policies are deleted that are managed from files and not in the file any more.
        prune_overrides: Whether overrides of the project, and of its tokens if the file has such, are deleted that are
            not in the file.
    """

    mark: str = ""
    renames_mark: bool = False
    prune: bool = False
    prune_overrides: bool = False


@dataclass(slots=True)
class PlannedChanges:
    """
    The steps in their order, and what stays although it is not in the file, in sentences.
    """

    steps: list[PlanStep] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def steps_between(
    present: PresentState, file: PolicyFile, wanted: Wanted, now: datetime | None = None
) -> PlannedChanges:
    """
    Return what has to be done so that *file* is true.

    Args:
        now: An override that has ended by then is no longer wanted.
    """
    found, now = PlannedChanges(), now or datetime.now(UTC)
    creation, attachment = _project_steps(present, file, wanted)
    found.steps += creation
    for slug in sorted(file.policies):
        found.steps += _policy_step(present, slug, file, wanted)
    found.steps += attachment
    found.steps += _global_step(present, file)
    for key, override in sorted(file.all_overrides.items()):
        if has_ended(override, now):
            found.stays.append(f"The override of {key} has ended at {override['ends_at']}. Remove it.")
            continue
        found.steps += _override_step(present, key, file, wanted)
    _prune(found, present, file, wanted)
    if wanted.mark and not wanted.renames_mark and present.marks.get("") not in (None, "", wanted.mark):
        found.stays.append(f"The project is managed from {present.marks['']}. --managed-by names another file.")
    return found


def has_ended(override: Mapping[str, Any], now: datetime) -> bool:
    """Return whether an override of a file has ended."""
    return "ends_at" in override and datetime.fromisoformat(override["ends_at"]) <= now


def _mark(present: PresentState, name: str, wanted: Wanted) -> dict[str, str]:
    """Return the mark that an object gets, or nothing if it keeps its own."""
    now = present.marks.get(name, "")
    needed = wanted.mark and (not now or (wanted.renames_mark and now != wanted.mark))
    return {"managed_by": wanted.mark} if needed else {}


def _project_steps(present: PresentState, file: PolicyFile, wanted: Wanted) -> tuple[list[PlanStep], list[PlanStep]]:
    """Return the steps for the project before its policies exist, and afterwards."""
    project, before = file.project, present.file.project
    if project is None:
        return [], []
    slug, mark, body = project["slug"], _mark(present, "", wanted), with_defaults(project, PROJECT)
    if before is None:
        later = {name: body.pop(name) for name in REFERENCES}
        first = PlanStep(CREATE, "project", slug, tuple(_said(project, PROJECT, REFERENCES)), None, {**body, **mark})
        chosen = {name: value for name, value in later.items() if value is not None}
        if not chosen:
            return [first], []
        said = tuple(f"{_worded(name)}: {value}" for name, value in chosen.items())
        bare = {name: value for name, value in project.items() if name not in REFERENCES}
        return [first], [PlanStep(CHANGE, "project", slug, said, bare, chosen)]
    words = [*_differences(before, project, PROJECT), *_marked(present, "", mark)]
    changed = {name: value for name, value in body.items() if value != with_defaults(before, PROJECT)[name]}
    return [], [PlanStep(CHANGE, "project", slug, tuple(words), before, {**changed, **mark})] if words else []


def _policy_step(present: PresentState, slug: str, file: PolicyFile, wanted: Wanted) -> list[PlanStep]:
    policy, before = file.policies[slug], present.file.policies.get(slug)
    mark, body = _mark(present, slug, wanted), with_defaults(policy, POLICY)
    body["project"] = file.project["slug"] if file.project else None
    if before is None:
        words = [*_said(policy, POLICY, ("limits",)), *(f"+ {limit_words(limit)}" for limit in policy["limits"])]
        return [PlanStep(CREATE, "policy", slug, tuple(words), None, {**body, **mark})]
    words = [*_differences(before, policy, POLICY, ("limits",)), *_limit_differences(before, policy)]
    words += _marked(present, slug, mark)
    if not words:
        return []
    former = {**with_defaults(before, POLICY), "project": body["project"]}
    changed = {name: value for name, value in body.items() if value != former[name]}
    names = {limit["name"] for limit in policy["limits"]}
    gone = tuple(limit["name"] for limit in before["limits"] if limit["name"] not in names)
    return [PlanStep(CHANGE, "policy", slug, tuple(words), before, {**changed, **mark}, gone)]


def _global_step(present: PresentState, file: PolicyFile) -> list[PlanStep]:
    if not file.chosen_global or file.chosen_global == present.file.chosen_global:
        return []
    (chosen,), former = file.chosen_global, present.file.chosen_global[0] if present.file.chosen_global else None
    words = f"policy of every request: {_value(former)} -> {_value(chosen)}"
    return [PlanStep(CHANGE, "global", "policy", (words,), {"policy": former}, {"policy": chosen})]


def _override_step(present: PresentState, key: str, file: PolicyFile, wanted: Wanted) -> list[PlanStep]:
    assert file.project is not None
    override, before = file.all_overrides[key], present.file.all_overrides.get(key)
    fields, mark = TOKEN_OVERRIDE if "token" in override else OVERRIDE, _mark(present, key, wanted)
    body = with_defaults(override, fields)
    if not body["partition"]:
        del body["partition"]
    if before is None:
        words = tuple(_said(override, fields, ("token",)))
        holder = {} if "token" in override else {"project": file.project["slug"]}
        return [PlanStep(CREATE, "override", key, words, None, {**body, **holder, **mark})]
    words = (*_differences(before, override, fields), *_marked(present, key, mark))
    changed = {name: value for name, value in body.items() if value != with_defaults(before, fields)[name]}
    return [PlanStep(CHANGE, "override", key, words, before, {**changed, **mark})] if words else []


def _prune(found: PlannedChanges, present: PresentState, file: PolicyFile, wanted: Wanted) -> None:
    """Add the deletion of what is not in the file, or a sentence that says that it stays."""
    if present.file.chosen_global != (None,) and present.file.chosen_global and not file.chosen_global:
        found.stays.append(f"The global policy is {present.file.chosen_global[0]}, of which the file says nothing.")
    there = present.file.overrides if file.token_overrides is None else present.file.all_overrides
    for key in sorted(there.keys() - file.all_overrides.keys()):
        slug, _, name = there[key]["limit"].partition("/")
        policy = file.policies.get(slug)
        if policy is not None and all(one["name"] != name for one in policy["limits"]):
            continue  # it is deleted with its limit, which the step of the policy says
        if wanted.prune_overrides:
            found.steps.append(PlanStep(DELETE, "override", key, (), there[key]))
        else:
            found.stays.append(f"The override of {key} is not in the file, and stays without --prune-overrides.")
    for slug in sorted(present.file.policies.keys() - file.policies.keys()):
        if wanted.prune and present.marks[slug]:
            found.steps.append(PlanStep(DELETE, "policy", slug, (), present.file.policies[slug]))
        elif wanted.prune:
            found.stays.append(f"Policy {slug} is not in the file, and stays, because no file has managed it.")
        else:
            found.stays.append(f"Policy {slug} is not in the file, and stays without --prune.")


def _said(values: Mapping[str, Any], fields: Mapping[str, FileField], left: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each field of a new object."""
    for name in fields:
        if name in values and name not in ("slug", "limit", *left):
            yield f"{_worded(name)}: {_value(values[name])}"


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], fields: Mapping[str, FileField], left: Sequence[str] = ()
) -> Iterator[str]:
    """Yield a line for each field that changes."""
    old, new = with_defaults(before, fields), with_defaults(after, fields)
    for name in fields:
        if name not in left and old[name] != new[name]:
            yield f"{_worded(name)}: {_value(old[name])} -> {_value(new[name])}"


def _marked(present: PresentState, name: str, mark: Mapping[str, str]) -> Iterator[str]:
    if mark:
        now = present.marks.get(name, "")
        yield f"managed by: {now or NOTHING} -> {mark['managed_by']}"


def _limit_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old = {limit["name"]: limit for limit in before["limits"]}
    new = {limit["name"]: limit for limit in after["limits"]}
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            yield f"- limit {name}, with its overrides"
        elif name not in old:
            yield f"+ {limit_words(new[name])}"
        else:
            for label, *values in limit_fields.changes_in_words(old[name], new[name], _money):
                yield f"limit {name}: {f'{label}: ' if label else ''}{' -> '.join(values)}"
    kept = [name for name in old if name in new]
    if kept != [name for name in new if name in old]:
        yield f"order of limits: {', '.join(old)} -> {', '.join(new)}"


def limit_words(limit: Mapping[str, Any]) -> str:
    """Return a limit in a line."""
    shown = ("name", "algorithm", *limit_fields.IN_THE_AMOUNT)
    counted = limit_fields.words_of(("algorithm",), limit["algorithm"], limit, _money)
    more = [
        f"{limit_fields.label_of(path, limit)}: {limit_fields.words_of(path, value, limit, _money)}"
        for path, value in limit_fields.flat(limit, defaults=False).items()
        if path[0] not in shown
    ]
    return ", ".join([f"limit {limit['name']}: {limit_fields.amount(limit, _money)} ({counted})", *more])


def _money(micros: int) -> str:
    """Return an amount as the file counts it, with units of the currency, whose name only the control plane knows."""
    return f"{micros:,} micros ({figure(micros)})"


def _worded(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
