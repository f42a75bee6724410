"""The commands about management keys."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

import typer

from enforcement.cli.remote import account as accounts
from enforcement.cli.remote.account import Account
from enforcement.cli.remote.help import Application
from enforcement.cli.remote.options import AsJson, Reason, Trace, Yes, confirm, control_plane, existing
from enforcement.cli.remote.screen import show, show_json, show_table
from enforcement.cli.remote.secret_files import PrintSecret, SecretFile, checked_id, hand_over, not_written

DAY_SECONDS: Final = 86_400
_KEY_ID: Final = re.compile(r"mgk_[0-9a-z]{1,36}", re.ASCII)
_RULE: Final = "Must be the id of a management key, which begins with mgk_."

keys = Application(help="List, create, change, rotate and revoke management keys.")
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of a management key, such as mgk_01j...")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="What it may do. May be repeated.")]
Projects = Annotated[list[str] | None, typer.Option("--project", help="Slug of a project. May be repeated.")]
AllProjects = Annotated[bool, typer.Option("--all-projects", help="It works for every project.")]
Networks = Annotated[
    list[str] | None, typer.Option("--network", help="From where it may be used. Default: everywhere. May be repeated.")
]
ExpiresAt = Annotated[str, typer.Option(help="Its end, such as 2027-12-31T00:00:00Z.")]


@keys.command("list")
def list_keys(
    status: Annotated[
        Literal["active", "revoked", "expired"] | None, typer.Option(help="In which state they are.")
    ] = None,
    name: Annotated[str, typer.Option(help="The whole name.")] = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """List the management keys that the own key may see."""
    with control_plane(trace) as server:
        rows = list(server.rows("management-keys", status=status, name=name or None))
    if as_json:
        show_json({"results": rows})
        return
    head = ("id", "name", "prefix", "status", "projects", "networks", "scopes", "expires_at", "last_used_at")
    show_table(head, ([_cell(row, name) for name in head] for row in rows))


def _cell(row: dict[str, Any], name: str) -> Any:
    if name == "projects" and row["all_projects"]:
        return "all"
    if name == "networks" and row["networks"] is None:
        return "everywhere"
    return ",".join(row[name]) or "none" if isinstance(row[name], list) else row[name]


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    scope: Scopes = None,
    project: Projects = None,
    all_projects: AllProjects = False,
    network: Networks = None,
    expires_at: ExpiresAt = "",
    print_secret: PrintSecret = False,
    secret_file: SecretFile = "",
    reason: Reason = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Create a key, which is never more than the own key. Its secret goes to a file that only you can read."""
    body = {"name": name, **_fields(scope, project, network, expires_at, all_projects=all_projects)}
    with control_plane(trace) as server:
        reply = server.change("POST", "management-keys", body, key=str(uuid4()), reason=reason)
    hand_over(reply, print_secret=print_secret, path=secret_file, as_json=as_json)


@keys.command("change")
def change_key(
    key: KeyId,
    name: Annotated[str, typer.Option(help="Another name.")] = "",
    scope: Scopes = None,
    project: Projects = None,
    all_projects: AllProjects = False,
    network: Networks = None,
    from_everywhere: Annotated[bool, typer.Option("--from-everywhere", help="Use it from every network.")] = False,
    expires_at: ExpiresAt = "",
    reason: Reason = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Change what is given of a key. Scopes, projects and networks replace the present ones."""
    if network and from_everywhere:
        raise typer.BadParameter("Must not be combined with --network.", param_hint="--from-everywhere")
    body = _fields(scope, project, network, expires_at, all_projects=all_projects)
    if project:
        body["all_projects"] = False
    elif all_projects:
        body["projects"] = []
    body |= ({"name": name} if name else {}) | ({"networks": None} if from_everywhere else {})
    if not body:
        raise typer.BadParameter("At least one must be given.", param_hint="OPTIONS")
    path = f"management-keys/{checked_id(key, _KEY_ID, _RULE)}"
    with control_plane(trace) as server, existing(f"management key {key}", "ID"):
        found = server.get(path)
        reply = server.change("PATCH", path, body, key=str(uuid4()), etag=found.etag, reason=reason)
    if as_json:
        show_json(reply.body)
    else:
        show(f"{reply.body['name']} ({key}) is changed.")


def _fields(
    scope: list[str] | None,
    project: list[str] | None,
    network: list[str] | None,
    expires_at: str,
    *,
    all_projects: bool,
) -> dict[str, object]:
    """Return the fields that are given."""
    if project and all_projects:
        raise typer.BadParameter("Must not be combined with --project.", param_hint="--all-projects")
    given = {
        "scopes": scope,
        "projects": project,
        "all_projects": all_projects,
        "networks": network,
        "expires_at": expires_at,
    }
    return {name: value for name, value in given.items() if value}


@keys.command("rotate")
def rotate_key(
    key: KeyId,
    overlap_seconds: Annotated[int, typer.Option(min=0, help="How long the old secret stays valid.")] = DAY_SECONDS,
    log_in: Annotated[bool, typer.Option("--log-in", help="Log in with the new key, in place of a file.")] = False,
    print_secret: PrintSecret = False,
    secret_file: SecretFile = "",
    reason: Reason = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Replace a key by one with the same name, scopes, projects, networks and life span."""
    if log_in and (print_secret or secret_file):
        raise typer.BadParameter("Must not be combined with another place for the secret.", param_hint="--log-in")
    path = f"management-keys/{checked_id(key, _KEY_ID, _RULE)}/rotate"
    with control_plane(trace) as server, existing(f"management key {key}", "ID"):
        reply = server.change("POST", path, {"overlap_seconds": overlap_seconds}, key=str(uuid4()), reason=reason)
        url = server.url
    if not log_in or reply.body["secret"] is None:
        hand_over(reply, print_secret=print_secret, path=secret_file, as_json=as_json)
        return
    try:
        saved = accounts.save(Account(url, reply.body["secret"]))
    except OSError as exc:
        raise not_written(reply, accounts.account_file(), exc) from None
    made = {name: value for name, value in reply.body.items() if name != "secret"}
    if as_json:
        show_json({**made, "secret_file": str(saved)})
    else:
        show(f"Logged in to {url} with {made['name']} ({made['id']}). The key is in {saved}.")


@keys.command("revoke")
def revoke_key(
    key: KeyId, reason: Reason = "", yes: Yes = False, as_json: AsJson = False, trace: Trace = False
) -> None:
    """Revoke a key, so that the control plane refuses it."""
    path = f"management-keys/{checked_id(key, _KEY_ID, _RULE)}/revoke"
    confirm(f"Revoke {key}? This cannot be undone.", yes=yes)
    with control_plane(trace) as server, existing(f"management key {key}", "ID"):
        reply = server.change("POST", path, {}, key=str(uuid4()), reason=reason)
    if as_json:
        show_json(reply.body)
    else:
        show(f"{reply.body['name']} ({key}) is {reply.body['status']}.")


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.add_typer(keys, name="keys")
