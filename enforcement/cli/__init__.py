"""
The command ``sluicegate``.

``main`` reads the name of a command, imports the module of that command alone and runs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from enforcement.cli import commands
from enforcement.cli.options import new_parser
from enforcement.settings import VERSION

USAGE_ERROR: Final = 2
CUT_OFF: Final = 141
"""Exit status if the reader of the output is gone, as in ``sluicegate doctor | head``. Shells use 128 + SIGPIPE."""

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C. Shells use 128 + SIGINT."""

COMPLETE: Final = "_SLUICEGATE_COMPLETE"
"""Set by a shell that completes a command line. See ``sluicegate completion``."""

_EXIT_STATUS: Final = """\
exit status:
  0  done
  1  a problem was found
  2  the command line or a variable is wrong, an extra is missing, or the store or control plane cannot be read
  130  interrupted by Ctrl-C
  141  nobody reads the output any more

`sluicegate COMMAND --help` lists the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    if not words and COMPLETE not in os.environ:
        _parser().print_help(sys.stderr)
        return USAGE_ERROR
    try:
        return _detailed(words, _run(words))
    except commands.MissingExtra as exc:
        print(exc, file=sys.stderr)
        return _detailed(words, USAGE_ERROR)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return CUT_OFF


def _run(words: Sequence[str]) -> int:
    """Run a command and return the exit status. Raises MissingExtra, KeyboardInterrupt and BrokenPipeError."""
    if COMPLETE in os.environ:
        return _flushed(commands.complete())
    # The parser itself would say nothing if its text cannot be written.
    if words[0] in ("-h", "--help"):
        raise SystemExit(_flushed(0, _parser().format_help()))
    if words[0] == "--version":
        raise SystemExit(_flushed(0, f"sluicegate {VERSION}\n"))
    return _flushed(_parser().parse_args(words[:1]).command.run(words[1:]))


def _detailed(words: Sequence[str], status: int) -> int:
    """Return the exit status as `terraform plan -detailed-exitcode` has it, if a plan is asked for in this way."""
    if words[:1] != ["plan"] or commands.DETAILED not in words:
        return status
    return {commands.CHANGES: 2, USAGE_ERROR: 1}.get(status, status)


def _open_closed_streams() -> None:
    """Give a program that was started without standard output or error, as by ``>&-``, one that discards."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # it is open to the end


def _flushed(status: int, text: str = "") -> int:
    """
    Write a text and what a command has printed, and return the exit status, another one if it cannot be written.

    Raises:
        BrokenPipeError: Nobody reads it.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        if not status:  # else the command has said what is wrong
            print(f"sluicegate: standard output: {exc.strerror}", file=sys.stderr)
        _discard_output()
        return status or USAGE_ERROR
    return status


def _discard_output() -> None:
    """Discard what is left. Python flushes standard output again when it ends, which must not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    """Return an argument parser that reads only the name of a command, as each command parses the rest itself."""
    width = max(len(command.name) for command in commands.COMMANDS)
    rows = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in commands.COMMANDS)
    does = "Inspect a store, prove what Sluicegate enforces, and change what a control plane has."
    usage = "%(prog)s [-h] [--version] COMMAND ..."
    parser = new_parser("sluicegate", f"{does}\n\ncommands:\n{rows}", _EXIT_STATUS, usage)
    parser.add_argument("--version", action="version", version=f"sluicegate {VERSION}")
    parser.add_argument("command", metavar="COMMAND", type=_command, help=argparse.SUPPRESS)
    return parser


def _command(name: str) -> commands.Subcommand:
    command = commands.find(name)
    if command is None:
        from enforcement.model.spelling import closest  # only after a mistake

        names = ", ".join(command.name for command in commands.COMMANDS)
        close = closest(name, [command.name for command in commands.COMMANDS])
        hint = f". Did you mean {close[0]}?" if close else ""
        raise argparse.ArgumentTypeError(f"must be one of {names}, got {name!r}{hint}")
    return command


__all__ = ["CUT_OFF", "USAGE_ERROR", "main"]
