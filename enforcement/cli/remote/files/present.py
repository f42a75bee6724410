"""What a control plane has of that which a policy file describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from enforcement.cli.remote.rest import ControlPlane, RequestRefused
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
from enforcement.policy_files.policy_file import PolicyFile, has_ended

Row = Mapping[str, Any]


def read_present(
    server: ControlPlane, slug: str | None, *, tokens: bool = True, now: datetime | None = None
) -> PolicyFile | None:
    """
    Return the present state of a project, or for None of the shared policies. None if there is no such project.

    Args:
        tokens: Whether the overrides of tokens are read, of which a project may have very many.
        now: What has ended by then is left out.
    Raises:
        ServerAway, RequestRefused: It cannot be read.
    """
    found = PolicyFile(policies={row["slug"]: _policy(row) for row in server.rows("policies", project=slug or "")})
    if slug is None:
        found.chosen_global = (server.get("global").body["policy"],)
        return found
    project = _one_or_none(server, f"projects/{slug}")
    if project is None:
        return None
    found.project = without_defaults({name: project[name] for name in PROJECT}, PROJECT)
    now = now or datetime.now(UTC)
    found.overrides = _overrides(server.rows("overrides", project=slug), now)
    if tokens:
        found.token_overrides = _overrides(server.rows("overrides", token_project=slug), now)
    return found


def _policy(row: Row) -> dict[str, object]:
    """Return a policy as a policy file has it."""
    values = {name: row[name] for name in POLICY}
    values["metering"] = read_metering(row["metering"])
    values["limits"] = [read_limit(limit, published=True) for limit in row["limits"]]
    return without_defaults(values, POLICY)


def _overrides(rows: Iterable[Row], now: datetime) -> dict[str, dict[str, object]]:
    """Return overrides of a project or of tokens as a policy file has them, by what names them."""
    found = {}
    for row in rows:
        fields = TOKEN_OVERRIDE if row["token"] else OVERRIDE
        # A control plane of an earlier version knows no partition.
        values = {name: row.get(name, field.default) for name, field in fields.items()}
        if values["ends_at"] is not None:
            values["ends_at"] = OVERRIDE["ends_at"].read(values["ends_at"])
        override = without_defaults(values, fields)
        if not has_ended(override, now):  # else it counts no longer, and the next one may begin
            found[override_key(row)] = override
    return found


def newest_revision(server: ControlPlane) -> int | None:
    """Return the number of the newest revision, 0 if there is none, or None if the key may not read it."""
    try:
        found = server.page("revisions", page_size=1)["results"]
    except RequestRefused as exc:
        if exc.status == 403:
            return None
        raise
    return int(found[0]["revision"]) if found else 0


def _one_or_none(server: ControlPlane, path: str) -> Row | None:
    """Return one object, or None if there is no such object."""
    try:
        found: Row = server.get(path).body
    except RequestRefused as exc:
        if exc.status == 404:
            return None
        raise
    return found
