"""
The commands of ``sluicegate`` that call a control plane, as one application of Typer.

``main`` gets the name of the command as its first word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Final, Literal

import typer

from enforcement.cli.commands import COMMANDS
from enforcement.cli.remote import access_commands, file_commands, key_commands, live_commands, simulate_command
from enforcement.cli.remote.account import NoAccount
from enforcement.cli.remote.files.applying import InvalidPlan
from enforcement.cli.remote.files.policy_file import InvalidFiles
from enforcement.cli.remote.files.yaml_source import InvalidFile
from enforcement.cli.remote.rest import RequestRefused, ServerAway
from enforcement.cli.remote.screen import safe
from enforcement.cli.remote.simulation import TooManyCounters
from enforcement.cli.remote.traffic import InvalidTraffic

FAILED: Final = 2
INTERRUPTED: Final = 130
PROBLEMS: Final = (
    *(NoAccount, ServerAway, RequestRefused),
    *(InvalidFile, InvalidFiles, InvalidPlan, InvalidTraffic, TooManyCounters),
)
"""Errors whose text says everything that a person has to know."""
COMPLETE: Final = "_SLUICEGATE_COMPLETE"

# Its pretty tracebacks would show local variables, such as the key.
app = typer.Typer(
    name="sluicegate",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in (access_commands, key_commands, file_commands, live_commands, simulate_command):
    _commands.register(app)


def main(arguments: Sequence[str]) -> int:
    """Run a command, whose name is the first of the arguments, and return the exit status."""
    if arguments[0] == "complete":
        return _completed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the characters of a plot or a name
    try:
        app(list(arguments), prog_name="sluicegate")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except PROBLEMS as exc:
        return _failed(arguments, "\n".join(map(safe, str(exc).splitlines())))
    except UnicodeError:
        return _failed(arguments, "Arguments and variables must be UTF-8.")
    except BrokenPipeError:
        raise  # the program that runs the commands ends quietly
    except OSError as exc:
        return _failed(arguments, safe(f"{exc.filename or ''}: {exc.strerror or exc}".lstrip(": ")))
    return 0


def _failed(arguments: Sequence[str], text: str) -> int:
    print(f"sluicegate {arguments[0]}: {text}", file=sys.stderr)
    return FAILED


@app.command()
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")]) -> None:
    """Print the script that makes a shell complete the commands and options of sluicegate."""
    os.environ[COMPLETE] = f"source_{shell}"
    app([], prog_name="sluicegate")


def _completed() -> int:
    """Answer a shell that completes a command line, and return the exit status."""
    for command in COMMANDS:
        if not command.named:  # it has a parser of its own, of which only the name is known here
            app.command(command.name, help=command.help)(_elsewhere)
    try:
        app([], prog_name="sluicegate")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    return 0


def _elsewhere() -> None:
    """Do nothing in place of a command that is run elsewhere."""


__all__ = ["app", "main"]
