"""What a control plane has of that which a policy file describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from enforcement.cli.remote.rest import ControlPlane, RequestRefused, RestReply
from enforcement.policy_files.fields import (
    OVERRIDE,
    POLICY,
    PROJECT,
    TOKEN_OVERRIDE,
    override_key,
    read_limit,
    read_metering,
    without_defaults,
)
from enforcement.policy_files.policy_file import PolicyFile

Row = Mapping[str, Any]


@dataclass(slots=True)
class PresentState:
    """
    The present state of a project, or of the shared policies.

    Attributes:
        file: It in the form of a policy file. Without its project if that does not exist.
        revision: The newest revision. None if the key may not read it.
        marks: Where the file is, for the project (by ""), each policy (by its slug) and each override (by its key).
            Empty for what is not managed from files.
        ids: The id of each override.
        versions: The version of the project and of each policy, by the names of *marks*.
    """

    file: PolicyFile
    revision: int | None = None
    marks: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return a digest of everything that a plan depends on."""
        parts = [self.file.as_values(), sorted(self.marks.items()), sorted(self.versions.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def of_project(row: Row) -> dict[str, Any]:
    """Return a project as a policy file has it."""
    return without_defaults({name: row[name] for name in PROJECT}, PROJECT)


def of_policy(row: Row) -> dict[str, Any]:
    """Return a policy as a policy file has it."""
    values = {name: row[name] for name in POLICY}
    values["metering"] = read_metering(row["metering"])
    values["limits"] = [read_limit(limit, published=True) for limit in row["limits"]]
    return without_defaults(values, POLICY)


def of_override(row: Row) -> dict[str, Any]:
    """Return an override of a project or token as a policy file has it."""
    fields = TOKEN_OVERRIDE if row["token"] else OVERRIDE
    # A control plane of an earlier version knows no partition.
    values = {name: row.get(name, field.default) for name, field in fields.items()}
    if values["ends_at"] is not None:
        values["ends_at"] = OVERRIDE["ends_at"].read(values["ends_at"])
    return without_defaults(values, fields)


def of_global(row: Row) -> dict[str, Any]:
    """Return the choice of the global policy."""
    return {"policy": row["policy"]}


def read_present(
    server: ControlPlane, slug: str | None, *, tokens: bool = True, now: datetime | None = None
) -> PresentState:
    """
    Return the present state of a project, or for None of the shared policies.

    Args:
        tokens: Whether the overrides of tokens are read, of which a project may have very many.
        now: What has ended by then is left out.
    Raises:
        ServerAway, RequestRefused: It cannot be read.
    """
    found = PresentState(PolicyFile(), newest_revision(server))
    if slug is not None:
        project = one_or_none(server, f"projects/{slug}")
        if project is None:
            return found
        found.file.project = of_project(project.body)
        found.marks[""], found.versions[""] = project.body["managed_by"], project.body["version"]
    for row in server.rows("policies", project=slug or ""):
        found.file.policies[row["slug"]] = of_policy(row)
        found.marks[row["slug"]], found.versions[row["slug"]] = row["managed_by"], row["version"]
    if slug is None:
        found.file.chosen_global = (server.get("global").body["policy"],)
        return found
    now = now or datetime.now(UTC)
    found.file.overrides = _overrides(found, server.rows("overrides", project=slug), now)
    if tokens:
        found.file.token_overrides = _overrides(found, server.rows("overrides", token_project=slug), now)
    return found


def _overrides(found: PresentState, rows: Iterable[Row], now: datetime) -> dict[str, dict[str, Any]]:
    """Return overrides by what names them, and note their ids and marks."""
    overrides = {}
    for row in rows:
        if row["ends_at"] is not None and datetime.fromisoformat(row["ends_at"]) <= now:
            continue  # it counts no longer, and the next one may begin
        key = override_key(row)
        overrides[key], found.ids[key], found.marks[key] = of_override(row), row["id"], row["managed_by"]
    return overrides


def newest_revision(server: ControlPlane) -> int | None:
    """Return the number of the newest revision, 0 if there is none, or None if the key may not read it."""
    try:
        found = server.page("revisions", page_size=1)["results"]
    except RequestRefused as exc:
        if exc.status == 403:
            return None
        raise
    return int(found[0]["revision"]) if found else 0


def one_or_none(server: ControlPlane, path: str) -> RestReply | None:
    """Return one object, or None if there is no such object."""
    try:
        return server.get(path)
    except RequestRefused as exc:
        if exc.status == 404:
            return None
        raise
