"""The options that several commands have, and what they lead to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from enforcement.cli.remote.account import Account, account
from enforcement.cli.remote.rest import ControlPlane, RequestRefused, trace_to
from enforcement.cli.remote.screen import safe, show
from enforcement.policy_files.fields import InvalidField, read_slug

DECLINED: Final = 1

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Trace = Annotated[bool, typer.Option("--trace", help="Print each request on standard error, without secrets.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit.")]


def confirm(question: str, *, yes: bool, quiet: bool = False) -> None:
    """
    Ask a question unless *yes* answers it, and end the command unless the person agrees.

    Args:
        quiet: Whether nobody can be asked, as with ``--json``.
    """
    if yes:
        return
    if quiet or not sys.stdin.isatty():
        raise typer.BadParameter("Must be given where nobody can be asked.", param_hint="--yes")
    # Not the question of Typer, after which Ctrl-C has the exit status of a problem.
    print(f"{safe(question)} [y/N]: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        show("Nothing was changed.", error=True)
        raise typer.Exit(DECLINED)


def checked_slug(project: str, name: str = "PROJECT") -> str:
    """Return the slug of a project, which becomes a part of an address."""
    try:
        return read_slug(project)
    except InvalidField as exc:
        raise typer.BadParameter(str(exc), param_hint=name) from None


@contextmanager
def existing(what: str, name: str) -> Iterator[None]:
    """Refuse the argument of this name with a sentence if the control plane has no such object."""
    try:
        yield
    except RequestRefused as exc:
        if exc.status != 404 or exc.code != "not_found":
            raise
        raise typer.BadParameter(f"There is no {what}.", param_hint=name) from None


@contextmanager
def control_plane(trace: bool = False, of: Account | None = None) -> Iterator[ControlPlane]:
    """
    Yield the control plane to use, and close its connections afterwards.

    Raises:
        NoAccount: None is known.
    """
    server = ControlPlane(of or account(), trace=trace_to(trace))
    try:
        yield server
    finally:
        server.close()
