"""
Ask the control plane what a policy file changes, and have it make that.

The control plane compares, checks and words. It makes all that a file says by one change, or nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final
from urllib.parse import unquote
from uuid import uuid4

from enforcement.cli.remote.files.present import newest_revision
from enforcement.cli.remote.problems import CommandProblem
from enforcement.cli.remote.rest import ControlPlane, RequestRefused, RestReply, ServerAway, errors_in
from enforcement.cli.remote.screen import change_words
from enforcement.policy_files.policy_file import PolicyFile, from_source
from enforcement.policy_files.source import FileSource, InvalidFile, InvalidFiles

FORMAT: Final = "sluicegate-plan/2"
FORMER: Final = "sluicegate-plan/1"
SIGNS: Final = {"create": "+", "change": "~", "delete": "-"}
# A file with as many overrides as it may have is written within a minute on a busy database.
SECONDS: Final = 300.0
# Between two looks at a job that makes a change.
JOB_PAUSE: Final = 2.0
_ACTIONS: Final = {"create": "create", "update": "change", "delete": "delete"}
_IN_THE_FILE: Final = re.compile("#/files/0((?:/.*)?)")


class Moved(Exception):
    """Something was changed after the plan was made. Nothing was changed by it."""


class JobUnread(CommandProblem):
    """A job makes the change, and nobody can see whether it did."""


class InvalidPlan(CommandProblem):
    """A plan file that cannot be read."""


@dataclass(frozen=True, slots=True)
class Options:
    """
    What a person wants beside the file.

    Attributes:
        managed_by: Where the file is, which marks the project, its policies and overrides. Empty: nothing is marked.
        renames_mark: Whether an object gets the mark that has another one.
        prune: Whether policies are deleted that are managed from files and not in the file any more.
        prune_overrides: Whether overrides of the project, and of its tokens if the file has such, are deleted that are
            not in the file.
    """

    managed_by: str = ""
    renames_mark: bool = False
    prune: bool = False
    prune_overrides: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """
    What to make true.

    Attributes:
        file: What is wanted.
        options: What a person wants beside it.
        state: The state that it is for, as the control plane named it. Empty: the present one.
        base: The newest revision that it is for. None: any.
    """

    file: PolicyFile
    options: Options
    state: str = ""
    base: int | None = None

    def body(self) -> dict[str, Any]:
        """Return what ``POST /apply`` takes."""
        values = self.file.source.values if self.file.source else self.file.as_values()
        only = {name: value for name, value in (("state", self.state), ("base", self.base)) if value not in ("", None)}
        return {"files": [values], "options": asdict(self.options), **only}


@dataclass(frozen=True, slots=True)
class FilePlan:
    """
    What a policy file changes of one state.

    Attributes:
        wish: What it was asked for, with the state that the control plane named.
        url: The control plane that it was made for.
        revision: The newest revision when it was made. None if the key may not read it.
        found: What the control plane said: ``changed``, ``counts``, ``objects``, ``stays`` and ``warnings``.
    """

    wish: Wish
    url: str
    revision: int | None
    found: Mapping[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The objects that change: what is done, their kind and name, and what changes in words."""
        return [
            {
                "action": _ACTIONS[one["action"]],
                "kind": one["type"],
                "name": one["label"],
                "words": [change_words(line) for line in one["changes"]],
            }
            for one in self.found["objects"]
        ]

    @property
    def reviews(self) -> dict[str, dict[str, object]]:
        """What the control plane says of policies that change, by their slugs."""
        return {one["label"]: one["review"] for one in self.found["objects"] if one["review"]}

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON values, from which :func:`saved_wish` reads what it was made for."""
        body = self.wish.body()
        return {
            "format": FORMAT,
            "url": self.url,
            "base": {"revision": self.revision, "state": self.wish.state},
            "options": body["options"],
            "steps": self.steps,
            "stays": self.found["stays"],
            "file": body["files"][0],
        }


def make_plan(server: ControlPlane, wish: Wish) -> FilePlan:
    """
    Return what the control plane would change. It tries it, and undoes it, so that every rule is checked.

    Raises:
        Moved: The present state is not that of the wish.
        InvalidFiles: The file breaks a rule that depends on what the control plane has.
        RequestRefused, ServerAway
    """
    revision = newest_revision(server)
    with _Problems(wish.file):
        found = server.ask("apply", wish.body(), timeout=SECONDS, dry_run="true")["result"]
    return FilePlan(Wish(wish.file, wish.options, found["state"], wish.base), server.url, revision, found)


def carry_out(server: ControlPlane, plan: FilePlan, reason: str) -> RestReply:
    """
    Make exactly what a plan says, and return the response, or what it would have been if a job makes it.

    Args:
        reason: For the audit.
    Raises:
        Moved, InvalidFiles, RequestRefused: Nothing was changed.
        ServerAway: If it was sent, the change may have been made.
        JobUnread
    """
    with _Problems(plan.wish.file):
        reply = server.change("POST", "apply", plan.wish.body(), key=str(uuid4()), reason=reason, timeout=SECONDS)
        return replace(reply, body=_result(server, reply.body)) if reply.body.get("kind") == "apply" else reply


def _result(server: ControlPlane, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the result of a job as soon as it has ended, or raise JobUnread, or RequestRefused with its problem."""
    while job["state"] in ("waiting", "running"):
        server.sleep(JOB_PAUSE)
        try:
            job = server.get(f"jobs/{job['id']}").body
        except (RequestRefused, ServerAway) as exc:
            raise JobUnread(f"The job {job['id']} makes it, and cannot be read: {exc}") from None
    if job["state"] != "done":
        detail = f"The job {job['id']} has ended as {job['state']}. Nothing was changed. {job['error']}".rstrip()
        raise RequestRefused(409, job["result"].get("code", "job_ended"), detail, "", errors=errors_in(job["result"]))
    result: Mapping[str, object] = job["result"]
    return result


class _Problems:
    """A block in which the problems of ``POST /apply`` are raised as those of the file."""

    def __init__(self, file: PolicyFile) -> None:
        self._file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if not isinstance(problem, RequestRefused):
            return
        if problem.code == "plan_changed":
            raise Moved(problem.detail) from None
        if problem.status == 404:
            reason = "This control plane cannot apply policy files. Upgrade it, or use an earlier command line."
            raise RequestRefused(404, problem.code, reason, problem.request_id) from None
        errors = [self._error(pointer, reason) for pointer, reason in problem.errors]
        if errors and None not in errors:
            raise InvalidFiles(error for error in errors if error) from None

    def _error(self, pointer: str, reason: str) -> InvalidFile | None:
        """Return the error of a place in the file, or None if it is of something else in the request."""
        within = _IN_THE_FILE.fullmatch(pointer)
        if within is None:
            return None
        steps = (unquote(step).replace("~1", "/").replace("~0", "~") for step in within[1].split("/")[1:])
        return self._file.error(tuple(int(step) if step.isdecimal() else step for step in steps), reason)


def saved_wish(text: str, url: str) -> Wish:
    """
    Return what a saved plan was made for.

    Args:
        text: What ``plan --out`` has written.
        url: The control plane that it must be for.
    Raises:
        InvalidPlan: It is damaged, or for another control plane.
        Moved: An earlier command line has made it, which named states in another way.
    """
    expected = "Must be a file that `sluicegate plan --out` has written"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and values.get("format") == FORMER:
        raise Moved("The plan is of an earlier command line. Nothing was changed. Make a new plan.")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InvalidPlan(f"{expected}.")
    try:
        file, options = from_source(FileSource("plan", values["file"])), Options(**values["options"])
        state, made_for = values["base"]["state"], values["url"]
    except KeyError as exc:
        raise InvalidPlan(f"{expected}, but has no {exc}.") from None
    except (InvalidFiles, TypeError) as exc:
        raise InvalidPlan(f"{expected}: {exc}") from None
    if not isinstance(state, str) or not state:
        raise InvalidPlan(f"{expected}, but its state is no text.")
    if made_for != url:
        raise InvalidPlan(f"Must be a plan for {url}, got one for {made_for}.")
    return Wish(file, options, state)
