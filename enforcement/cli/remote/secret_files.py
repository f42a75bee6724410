"""The secret of a new token or key, which is shown once, and goes to a file that only its owner can read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from enforcement.cli.remote import account as accounts
from enforcement.cli.remote.rest import RestReply
from enforcement.cli.remote.screen import show, show_json

REFUSED: Final = 1
PrintSecret = Annotated[bool, typer.Option("--print-secret", help="Print the secret instead of writing a file.")]
SecretFile = Annotated[
    str, typer.Option("--secret-file", help="Where the secret is written. Default: a file in the settings' folder.")
]


def checked_id(given: str, form: re.Pattern[str], rule: str) -> str:
    """Return the id of a token or key, which becomes a part of an address. The error does not show a wrong one."""
    if not form.fullmatch(given):
        # It may be a secret.
        raise typer.BadParameter(rule, param_hint="ID")
    return given


def hand_over(reply: RestReply, *, print_secret: bool, path: str, as_json: bool) -> None:
    """Print what was created, and write its secret to a file unless it is to be printed."""
    made = dict(reply.body)
    secret = made.pop("secret")
    if secret is None:
        # The first response was lost, and a secret is sent once.
        text = f"{made['name']} ({made['id']}) was created, but its secret was lost with the response. Rotate it."
        show(text, error=True)
        raise typer.Exit(REFUSED)
    if print_secret:
        show_json({**made, "secret": secret}) if as_json else print(secret)
        return
    target = Path(path) if path else accounts.folder() / "secrets" / made["id"]
    try:
        accounts.write_private(target, secret + "\n")
    except OSError as exc:
        raise not_written(reply, target, exc) from None
    if as_json:
        show_json({**made, "secret_file": str(target)})
    else:
        show(f"{made['name']} ({made['id']}). Its secret is in {target}.")


def not_written(reply: RestReply, target: Path, why: OSError) -> typer.Exit:
    """Say that the secret of what was created is lost, and return the end of the command."""
    made = reply.body
    text = f"{made['name']} ({made['id']}) was created, but its secret cannot be written. Rotate it. {target}: "
    show(text + str(why.strerror), error=True)
    return typer.Exit(REFUSED)
