"""The rules of a policy file that depend on what a control plane has, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from enforcement.cli.remote.files.present import PresentState, one_or_none
from enforcement.cli.remote.files.steps import CREATE, DELETE, REFERENCES, PlannedChanges
from enforcement.cli.remote.rest import ControlPlane, RequestRefused
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.policy_files.fields import PROJECT, with_defaults
from enforcement.policy_files.policy_file import PolicyFile
from enforcement.policy_files.source import InvalidFile

Row = Mapping[str, Any]
Error = tuple[str, str]


class LateChecks:
    """
    The rules of the policies that a project names, and of the overrides that a plan creates or changes.

    An override is judged by the state after all other steps.

    Args:
        file: Of a project.
        present: The state before.
    """

    def __init__(self, server: ControlPlane, file: PolicyFile, present: PresentState) -> None:
        self._server, self._file, self._present = server, file, present
        self._project = with_defaults(file.project, PROJECT) if file.project else dict.fromkeys(PROJECT)
        self._known: dict[str, Row | None] = {}
        self._used: dict[str, bool] = {}

    def errors(self, changes: PlannedChanges) -> list[InvalidFile]:
        """
        Return an error, with its line, of each policy and override that the control plane would refuse.

        Raises:
            ServerAway, RequestRefused: It cannot be read. A key that may not read tokens is not told what they decide.
        """
        steps = {step.name: step for step in changes.steps if step.kind == "override" and step.action != DELETE}
        found = [self._file.error(("project", field), reason) for field, reason in self._of_project()]
        if found:
            return found  # which overrides apply depends on these
        for name, overrides in (
            ("overrides", self._file.overrides),
            ("token_overrides", self._file.token_overrides or {}),
        ):
            for index, (key, override) in enumerate(overrides.items()):
                if key in steps:
                    errors = self._of(override, is_new=steps[key].action == CREATE)
                    found += [self._file.error((name, index, field), reason) for field, reason in errors]
        return found

    def _of_project(self) -> Iterator[Error]:
        for field in REFERENCES:
            if (slug := self._project[field]) is None:
                continue
            policy = self._policy(slug)
            if policy is None:
                yield field, f"There is no policy {slug}."
            elif policy["project"] not in (None, self._project["slug"]):
                yield field, f"Must not be a policy of another project. {slug} is one of {policy['project']}."

    def _of(self, override: Row, *, is_new: bool) -> Iterator[Error]:
        token = override.get("token")
        if token and is_new and not self._is_of_project(token):
            yield "token", f"There is no token {token} in the project."
            return
        slug, _, name = override["limit"].partition("/")
        policy = self._policy(slug)
        if policy is None:
            yield "limit", f"Must be a limit of a policy. There is no policy {slug}."
        elif policy["project"] not in (None, self._project["slug"]):
            yield "limit", f"Must not be a limit of another project's policy. {slug} is one of {policy['project']}."
        elif (limit := next((one for one in policy["limits"] if one["name"] == name), None)) is None:
            yield "limit", f"Must be a limit of the policy {slug}, which has no {name}."
        else:
            if odd := sorted(override.get("partition", {}).keys() - set(limit.get("partition_by", ()))):
                yield "partition", f"Must name what {override['limit']} is partitioned by, got {odd[0]}."
            yield from _of_values(limit, override)
            if not policy["is_global"] and not self._applies(slug, token):
                yield "limit", self._unused(slug, token)

    def _is_of_project(self, token: str) -> bool:
        found = self._token(token)
        return found is not None and found["project"] == self._project["slug"]

    def _policy(self, slug: str) -> Row | None:
        """Return a policy as it will be, or None if there will be none."""
        if slug in self._file.policies:
            own = self._file.policies[slug]
            return {"project": self._project["slug"], "limits": own["limits"], "is_global": False}
        return self._one(f"policies/{slug}")

    def _token(self, ident: str) -> Row | None:
        return self._one(f"tokens/{ident}")

    def _applies(self, slug: str, token: str | None) -> bool:
        """Return whether a policy that is not the global one applies to a token, or to requests of the project."""
        if slug == self._project["policy"]:
            return True
        try:
            if token:
                found = self._token(token)
                return found is None or found["policy"] == slug
            return slug == self._project["anonymous_policy"] or self._has_tokens_with(slug)
        except RequestRefused as exc:
            if exc.status != 403:
                raise
            return True  # this key may not read tokens, so that only the change itself can say

    def _has_tokens_with(self, slug: str) -> bool:
        """Return whether a token of the project has the policy. There are none if one of both is to be created."""
        if self._present.file.project is None or self._one(f"policies/{slug}") is None:
            return False
        if slug not in self._used:
            page = self._server.page("tokens", project=self._project["slug"], policy=slug, page_size=1)
            self._used[slug] = bool(page["results"])
        return self._used[slug]

    def _unused(self, slug: str, token: str | None) -> str:
        policies = "the policy of its project" if token else "a policy of its tokens"
        holder = f"the token {token}" if token else f"the project {self._project['slug']}"
        return f"Must apply to {holder}. Neither its policy nor {policies} nor the global policy is {slug}."

    def _one(self, path: str) -> Row | None:
        """Return an object as it is, read once, or None if there is none."""
        if path not in self._known:
            found = one_or_none(self._server, path)
            self._known[path] = found.body if found else None
        return self._known[path]


def _of_values(limit: Row, override: Row) -> Iterator[Error]:
    """Yield the errors of the values that an override gives a limit."""
    values = {name: override[name] for name in ("quota", "burst") if override.get(name) is not None}
    given = {name: one for name, one in limit.items() if one is not None}
    try:
        Limit.from_json({"algorithm": "fixed_window", **given, **values}, published=True)
    except InvalidLimit as exc:
        yield exc.field if exc.field in values else "limit", exc.reason
