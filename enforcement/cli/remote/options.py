"""The options that several commands have, and what they lead to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from enforcement.cli.remote.account import Account, account
from enforcement.cli.remote.rest import ControlPlane, trace_to

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Trace = Annotated[bool, typer.Option("--trace", help="Print each request on standard error, without secrets.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit.")]


def confirm(question: str, *, yes: bool) -> None:
    """Ask a question unless *yes* answers it, and end the command unless the person agrees."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("Must be given where nobody can be asked.", param_hint="--yes")
    typer.confirm(question, abort=True, err=True)


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


__all__ = ["AsJson", "Reason", "Trace", "Yes", "confirm", "control_plane"]
