"""
The commands of ``sluicegate`` that call a control plane, as one application of Typer.

``main`` gets the name of the command as its first word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Final, Literal

import typer

from enforcement.cli.commands import COMMANDS, MissingExtra
from enforcement.cli.remote.help import Application
from enforcement.cli.remote.problems import CommandProblem
from enforcement.cli.remote.screen import safe
from enforcement.policy_files.source import InvalidFile, InvalidFiles

FAILED: Final = 2
INTERRUPTED: Final = 130
MODULES: Final = {
    "access_commands": ("login", "logout", "whoami", "tokens"),
    "key_commands": ("keys",),
    "file_commands": ("validate", "export", "diff", "plan", "apply", "undo", "schema"),
    "live_commands": ("usage", "top", "tail", "explain"),
    "simulate_command": ("simulate",),
}
"""The commands of each module. It is imported only for one of them, so that each begins soon."""
_registered: Final[set[str]] = set()
COMPLETE: Final = "_SLUICEGATE_COMPLETE"

app = Application(name="sluicegate", add_completion=True)


@app.callback()
def sluicegate() -> None:
    """Call a control plane. With this, Typer reads the name of a command also if the application has only one."""


def register(command: str) -> None:
    """Add a command to the application, and others of its module."""
    for module, commands in MODULES.items():
        if command in commands and module not in _registered:
            _registered.add(module)
            import_module(f"enforcement.cli.remote.{module}").register(app)


def main(arguments: Sequence[str]) -> int:
    """Run a command, whose name is the first of the arguments, and return the exit status."""
    if arguments[0] == "complete":
        return _completed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the characters of a plot or a name
    streams = sys.stdout, sys.stderr
    try:
        register(arguments[0])
        app(list(arguments), prog_name="sluicegate")
    except SystemExit as exc:
        sys.stdout, sys.stderr = streams
        if isinstance(exc.__context__, BrokenPipeError):  # which Typer turns into status 1, that of an error in a file
            raise BrokenPipeError from exc
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except (CommandProblem, InvalidFile, InvalidFiles) as exc:
        return _failed(arguments, "\n".join(map(safe, str(exc).splitlines())))
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("enforcement"):
            raise  # it is a defect, and no extra would bring it
        raise MissingExtra(arguments[0], "cli") from exc
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
    words = (os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or "").split()
    known = words[1] if len(words) > 1 else ""
    register(known)
    present = {"completion", *(name for names in MODULES.values() if known in names for name in names)}
    for command in COMMANDS:
        # The module of another one is not needed for its name, nor is one with a parser of its own.
        if command.name not in present:
            app.command(command.name, help=command.help)(_elsewhere)
    try:
        app([], prog_name="sluicegate")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    return 0


def _elsewhere() -> None:
    """Do nothing in place of a command that is run elsewhere."""
