"""The commands that log in, and those about tokens."""

from __future__ import annotations

import getpass
import re
import sys
from typing import Annotated, Final, Literal
from uuid import uuid4

import typer

from enforcement.cli.remote import account as accounts
from enforcement.cli.remote.account import Account
from enforcement.cli.remote.help import Application
from enforcement.cli.remote.options import AsJson, Reason, Trace, Yes, checked_slug, confirm, control_plane, existing
from enforcement.cli.remote.rest import ControlPlane, RequestRefused
from enforcement.cli.remote.screen import show, show_json, show_table
from enforcement.cli.remote.secret_files import REFUSED, PrintSecret, SecretFile, checked_id, hand_over

_TOKEN_ID: Final = re.compile(r"tok_[0-9a-z]{1,36}", re.ASCII)
RULE: Final = "Must be the id of a token, which begins with tok_."

tokens = Application(help="List, create, rotate and revoke tokens.")
TokenId = Annotated[str, typer.Argument(metavar="ID", help="Id of a token, such as tok_01j...")]


def login(
    url: Annotated[str, typer.Argument(help="Address of the control plane, such as https://limits.example.")],
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="Read the key from standard input.")] = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Save the address of a control plane and a management key, which is asked for."""
    address = accounts.check_url(url)
    if accounts.is_clear(address):
        show(f"Warning: {address} is not encrypted, so that the key can be read on the way.", error=True)
    if not key_stdin and not sys.stdin.isatty():
        raise typer.BadParameter("Must be given where nobody can be asked.", param_hint="--key-stdin")
    # Not an option, because other users of a machine see the arguments of each process.
    key = (sys.stdin.readline() if key_stdin else getpass.getpass("Management key: ")).strip()
    if not key:
        raise typer.BadParameter("Must not be empty.", param_hint="the key")
    checked = accounts.account({accounts.URL_VARIABLE: address, accounts.KEY_VARIABLE: key})
    with control_plane(trace, checked) as server:
        if refused := _why_refused(server):
            show(f"{address} does not accept this key. Nothing was saved. {refused}", error=True)
            raise typer.Exit(REFUSED)
    saved = str(accounts.save(checked))
    if as_json:
        show_json({"url": address, "saved_in": saved})
    else:
        show(f"Logged in to {address}. The key is in {saved}.")


def _why_refused(server: ControlPlane) -> str:
    """Return why the control plane does not accept the key, or "" if it does. The key may still lack scopes."""
    try:
        server.page("projects", page_size=1)
    except RequestRefused as exc:
        if exc.status == 401 or exc.code == "network_not_allowed":
            return str(exc)
        if exc.status != 403:
            raise
    return ""


def logout(as_json: AsJson = False) -> None:
    """Delete what `login` has saved. The key itself stays valid."""
    forgotten = accounts.forget()
    if as_json:
        show_json({"logged_out": forgotten})
    else:
        show("Logged out." if forgotten else "Nobody was logged in.")


def whoami(as_json: AsJson = False, trace: Trace = False) -> None:
    """Show which control plane is used, where the key is from, and whether it is accepted."""
    known: Account = accounts.account()
    with control_plane(trace, known) as server:
        refused = _why_refused(server)
    if as_json:
        show_json({"url": known.url, "key_from": known.source, "accepted": not refused})
    else:
        show(f"{known.url}, with the key from {known.source}, which is {'not ' if refused else ''}accepted.")
        show(*filter(None, [refused]), error=True)
    raise typer.Exit(REFUSED if refused else 0)


@tokens.command("list")
def list_tokens(
    project: Annotated[str, typer.Option(help="Slug of a project.")] = "",
    status: Annotated[
        Literal["active", "suspended", "revoked", "expired"] | None, typer.Option(help="In which state they are.")
    ] = None,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """List tokens."""
    with control_plane(trace) as server:
        rows = list(server.rows("tokens", project=project or None, status=status))
    if as_json:
        show_json({"results": rows})
        return
    head = ("id", "project", "name", "prefix", "policy", "status", "expires_at", "last_used_at")
    show_table(head, ([row[name] for name in head] for row in rows))


@tokens.command("create")
def create_token(
    project: Annotated[str, typer.Argument(help="Slug of the project.")],
    name: Annotated[str, typer.Argument(help="Name of the token.")],
    policy: Annotated[str, typer.Option(help="Slug of its policy. Default: that of new tokens of the project.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A label such as team=red. May be repeated.")] = None,
    expires_at: Annotated[str, typer.Option(help="Its end, such as 2027-12-31T00:00:00Z. Default: none.")] = "",
    print_secret: PrintSecret = False,
    secret_file: SecretFile = "",
    reason: Reason = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Create a token. Its secret goes to a file that only you can read."""
    body: dict[str, object] = {"name": name, "labels": _labels(label or [])}
    body |= {"policy": policy} if policy else {}
    body |= {"expires_at": expires_at} if expires_at else {}
    path = f"projects/{checked_slug(project)}/tokens"
    with control_plane(trace) as server, existing(f"project {project}", "PROJECT"):
        reply = server.change("POST", path, body, key=str(uuid4()), reason=reason)
    hand_over(reply, print_secret=print_secret, path=secret_file, as_json=as_json)


@tokens.command("rotate")
def rotate_token(
    token: TokenId,
    overlap_seconds: Annotated[int, typer.Option(min=0, help="How long the old secret stays valid.")] = 86_400,
    print_secret: PrintSecret = False,
    secret_file: SecretFile = "",
    reason: Reason = "",
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Replace a token by one with the same name, policy, labels and overrides."""
    body = {"overlap_seconds": overlap_seconds}
    with control_plane(trace) as server, existing(f"token {token}", "ID"):
        path = f"tokens/{checked_id(token, _TOKEN_ID, RULE)}/rotate"
        reply = server.change("POST", path, body, key=str(uuid4()), reason=reason)
    hand_over(reply, print_secret=print_secret, path=secret_file, as_json=as_json)


@tokens.command("revoke")
def revoke_token(
    token: TokenId, reason: Reason = "", yes: Yes = False, as_json: AsJson = False, trace: Trace = False
) -> None:
    """Revoke a token, so that every proxy refuses it."""
    path = f"tokens/{checked_id(token, _TOKEN_ID, RULE)}/revoke"
    confirm(f"Revoke {token}? This cannot be undone.", yes=yes)
    with control_plane(trace) as server, existing(f"token {token}", "ID"):
        reply = server.change("POST", path, {}, key=str(uuid4()), reason=reason)
    if as_json:
        show_json(reply.body)
    else:
        show(f"{reply.body['name']} ({token}) is {reply.body['status']}.")


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name in labels:
            raise typer.BadParameter(
                f"Must be a name and a value such as team=red, each once, got {one!r}.", param_hint="--label"
            )
        labels[name] = value
    return labels


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (login, logout, whoami):
        app.command(command.__name__)(command)
    app.add_typer(tokens, name="tokens")
