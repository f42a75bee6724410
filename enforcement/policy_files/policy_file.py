"""
A policy file: the project, policies and overrides that one YAML file describes.

Its canonical form leaves out every default and has one order, so that equal files are equal texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from enforcement.model.checks import shown
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY
from enforcement.model.spelling import closest
from enforcement.policy_files.fields import (
    GLOBAL,
    OVERRIDE,
    POLICY,
    PROJECT,
    REQUIRED,
    TOKEN_OVERRIDE,
    FileField,
    InvalidField,
    override_key,
    read_limit,
    without_defaults,
)
from enforcement.policy_files.source import MAX_BYTES, FileSource, InvalidFile, InvalidFiles, Path

VERSION: Final = "sluicegate/v1"
MAX_POLICIES: Final = 1_000
MAX_OVERRIDES: Final = 200
MAX_TOKEN_OVERRIDES: Final = 5_000
MATCH: Final = ("methods", "path", "attributes")
TOP: Final = ("apiVersion", "project", "shared", "global", "policies", "overrides", "token_overrides")


@dataclass(slots=True)
class PolicyFile:
    """
    What a policy file says, in its canonical form.

    Attributes:
        project: The fields of the project without defaults. None for the policies that all projects share.
        policies: The fields of each policy, by its slug.
        overrides: The overrides that the project itself has, by "policy-slug/limit-name".
        token_overrides: Those of its tokens, by "policy-slug/limit-name of token-id". None if the file leaves them out,
            so that they stay as they are.
        chosen_global: The slug of the policy that applies to every request, in a tuple, which has None for no policy.
            Empty if the file leaves it out, so that it stays as it is.
        source: The values with their lines, for errors that only a control plane finds.
    """

    project: dict[str, Any] | None = None
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    token_overrides: dict[str, dict[str, Any]] | None = None
    chosen_global: tuple[str | None, ...] = ()
    source: FileSource | None = field(default=None, compare=False, repr=False)

    @property
    def all_overrides(self) -> dict[str, dict[str, Any]]:
        """The overrides of the project and those of its tokens."""
        return {**self.overrides, **(self.token_overrides or {})}

    def error(self, path: Path, reason: str) -> InvalidFile:
        """Return an error of the value at a path."""
        return (self.source or FileSource("plan")).error(path, reason)

    @property
    def source_name(self) -> str:
        """The name of the file that it was read from."""
        return self.source.name if self.source else "plan"

    @property
    def title(self) -> str:
        """What the file is about, in words."""
        return f"project {self.project['slug']}" if self.project else "shared policies"

    def as_values(self) -> dict[str, Any]:
        """Return the file as JSON values in the canonical order."""
        values: dict[str, Any] = {"apiVersion": VERSION}
        values |= {"project": self.project} if self.project else {"shared": True}
        policies = [self.policies[slug] for slug in sorted(self.policies)]
        values |= {"global": self.chosen_global[0]} if self.chosen_global else {}
        values["policies"] = policies
        if self.overrides:
            values["overrides"] = [self.overrides[limit] for limit in sorted(self.overrides)]
        if self.token_overrides is not None:
            values["token_overrides"] = [self.token_overrides[key] for key in sorted(self.token_overrides)]
        return values


def has_ended(override: Mapping[str, Any], now: datetime) -> bool:
    """Return whether an override of a file has ended."""
    return "ends_at" in override and datetime.fromisoformat(override["ends_at"]) <= now


def from_source(source: FileSource) -> PolicyFile:
    """Return what a policy file says. Raises InvalidFiles."""
    reader = _Reader(source)
    found = reader.file()
    if reader.errors:
        raise InvalidFiles(reader.errors)
    return found


class FileTooLarge(ValueError):
    """
    A state with more than a policy file may say.

    Attributes:
        field: The field of the file that is too long. Empty for the whole file.
    """

    def __init__(self, rule: str, field: str = "") -> None:
        super().__init__(rule)
        self.field = field


def check_size(file: PolicyFile, text: str) -> None:
    """Raise FileTooLarge unless a file, which has this text, can be read again."""
    for name, found, most in (
        ("policies", file.policies, MAX_POLICIES),
        ("overrides", file.overrides, MAX_OVERRIDES),
        ("token_overrides", file.token_overrides or (), MAX_TOKEN_OVERRIDES),
    ):
        if len(found) > most:
            raise FileTooLarge(
                f"A policy file must have at most {most:,} {name}, and it would have {len(found):,}.", name
            )
    if (size := len(text.encode())) > MAX_BYTES:
        raise FileTooLarge(f"A policy file must have at most {MAX_BYTES:,} bytes, and it would have {size:,}.")


def _size(value: object) -> str:
    return f"got {len(value):,}" if isinstance(value, list) else f"got {shown(value)}"


class _Reader:
    """Reads the values of a file, and collects what is wrong with them."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.errors: list[InvalidFile] = []

    def refuse(self, path: Path, reason: str) -> None:
        self.errors.append(self.source.error(path, reason))

    def file(self) -> PolicyFile:
        found, values = PolicyFile(source=self.source), self.source.values
        if not isinstance(values, Mapping):
            self.refuse((), f"Must be a mapping of {', '.join(TOP)}, got {shown(values)}.")
            return found
        self._unknown(values, TOP, ())
        if values.get("apiVersion") != VERSION:
            got = f", got {shown(values['apiVersion'])}" if "apiVersion" in values else ", and is missing"
            self.refuse(("apiVersion",), f"Must be {VERSION}{got}.")
        if ("project" in values) == ("shared" in values):
            self.refuse((), "Exactly one of project and shared must be given.")
        elif "project" in values:
            found.project = self._fields(values["project"], PROJECT, ("project",))
        elif values["shared"] is not True:
            self.refuse(("shared",), f"Must be true, got {shown(values['shared'])}.")
        self._global(found, values)
        self._policies(found, values)
        found.overrides = self._overrides(values, "overrides", OVERRIDE, MAX_OVERRIDES)
        if "token_overrides" in values:
            found.token_overrides = self._overrides(values, "token_overrides", TOKEN_OVERRIDE, MAX_TOKEN_OVERRIDES)
        self._limits_of_overrides(found, values)
        return found

    def _global(self, found: PolicyFile, values: Mapping[str, object]) -> None:
        if "global" not in values:
            return
        if "project" in values:
            self.refuse(("global",), "Must be left out of the file of a project, as it is for every project.")
        try:
            found.chosen_global = (GLOBAL.read(values["global"]),)
        except InvalidField as exc:
            self.refuse(("global",), str(exc))

    def _policies(self, found: PolicyFile, values: Mapping[str, object]) -> None:
        for index, value in enumerate(self._list(values, "policies", MAX_POLICIES)):
            path: Path = ("policies", index)
            policy = self._fields(value, POLICY, path)
            if policy is None:
                continue
            if policy["slug"] in found.policies:
                self.refuse((*path, "slug"), f"Must be given once, got {policy['slug']} twice.")
            policy["limits"] = self._limits(policy["limits"], (*path, "limits"))
            found.policies[policy["slug"]] = policy

    def _limits(self, values: object, path: Path) -> list[dict[str, object]]:
        if not isinstance(values, list) or len(values) > MAX_LIMITS_PER_POLICY:
            self.refuse(path, f"Must be a list of at most {MAX_LIMITS_PER_POLICY} limits, {_size(values)}.")
            return []
        limits, names = [], set()
        for index, value in enumerate(values):
            limit = self._limit(value, (*path, index))
            if limit is None:
                continue
            if limit["name"] in names:
                self.refuse((*path, index, "name"), f"Must be given once in a policy, got {limit['name']} twice.")
            names.add(limit["name"])
            limits.append(limit)
        return limits

    def _limit(self, value: object, path: Path) -> dict[str, object] | None:
        if isinstance(value, Mapping):
            match = value.get("match")
            known = not self._unknown(value, sorted(Limit.FIELDS), path)
            if (isinstance(match, Mapping) and self._unknown(match, MATCH, (*path, "match"))) or not known:
                return None
        try:
            return read_limit(value)
        except InvalidField as exc:
            self.refuse((*path, *exc.path), str(exc))
        return None

    def _overrides(
        self, values: Mapping[str, object], name: str, fields: Mapping[str, FileField], most: int
    ) -> dict[str, dict[str, object]]:
        if name in values and "project" not in values and "shared" in values:
            self.refuse((name,), "Must be left out of a file of shared policies, as a project has an override.")
        found: dict[str, dict[str, object]] = {}
        for index, value in enumerate(self._list(values, name, most)):
            override = self._fields(value, fields, (name, index))
            if override is None:
                continue
            if override_key(override) in found:
                self.refuse((name, index, "limit"), f"Must be given once, got {override_key(override)} twice.")
            found[override_key(override)] = override
        return found

    def _limits_of_overrides(self, found: PolicyFile, values: Mapping[str, Any]) -> None:
        """Refuse an override of a limit that its policy in the file does not have, if nothing else is wrong."""
        if self.errors:
            return
        names = {slug: {limit["name"] for limit in policy["limits"]} for slug, policy in found.policies.items()}
        for name in ("overrides", "token_overrides"):
            for index, override in enumerate(values.get(name, [])):
                slug, _, limit = override["limit"].partition("/")
                if slug in names and limit not in names[slug]:
                    self.refuse((name, index, "limit"), f"Must be a limit of the policy {slug}, which has no {limit}.")

    def _list(self, values: Mapping[str, object], name: str, most: int) -> list[object]:
        value = values.get(name, [])
        if isinstance(value, list) and len(value) <= most:
            return value
        self.refuse((name,), f"Must be a list of at most {most:,} mappings, {_size(value)}.")
        return []

    def _fields(self, value: Any, fields: Mapping[str, FileField], path: Path) -> dict[str, Any] | None:
        """Return the fields of a mapping without defaults, or None if something is wrong with them."""
        if not isinstance(value, Mapping):
            self.refuse(path, f"Must be a mapping, got {shown(value)}.")
            return None
        before = len(self.errors)
        self._unknown(value, list(fields), path)
        found = {}
        for name, rule in fields.items():
            if name not in value:
                if rule.default is REQUIRED:
                    self.refuse((*path, name), "Is required.")
                continue
            try:
                found[name] = rule.read(value[name])
            except InvalidField as exc:
                self.refuse((*path, name, *exc.path), str(exc))
        return without_defaults(found, fields) if len(self.errors) == before else None

    def _unknown(self, value: Mapping[str, object], known: Iterable[str], path: Path) -> bool:
        """Refuse the names of a mapping that are not known, and return whether there are any."""
        known = list(known)
        unknown = [name for name in value if name not in known]
        for name in unknown:
            close = closest(str(name), known)
            hint = f"Did you mean {close[0]}?" if close else f"Must be one of: {', '.join(known)}."
            self.refuse((*path, name), f"Unknown field. {hint}")
        return bool(unknown)
