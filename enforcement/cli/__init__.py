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
from enforcement.settings import VERSION

USAGE_ERROR: Final = 2
CUT_OFF: Final = 141
"""Exit status if the reader of the output is gone, as in ``sluicegate doctor | head``. Shells use 128 + SIGPIPE."""

COMPLETE: Final = "_SLUICEGATE_COMPLETE"
"""Set by a shell that completes a command line. See ``sluicegate completion``."""

_EXIT_STATUS: Final = """\
exit status:
  0  done
  1  a problem was found
  2  the command line or a variable is wrong, an extra is missing, or the store or control plane cannot be read

`sluicegate COMMAND --help` lists the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    completes = COMPLETE in os.environ
    if not words and not completes:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    try:
        status = commands.complete() if completes else parser.parse_args(words[:1]).command.run(words[1:])
        sys.stdout.flush()
    except commands.MissingExtra as exc:
        print(exc, file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # Python flushes standard output again when it ends, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    return status


def _parser() -> argparse.ArgumentParser:
    """Return an argument parser that reads only the name of a command, as each command parses the rest itself."""
    width = max(len(command.name) for command in commands.COMMANDS)
    rows = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in commands.COMMANDS)
    parser = argparse.ArgumentParser(
        prog="sluicegate",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="Inspect a store, prove what Sluicegate enforces, and change what a control plane has.\n\n"
        f"commands:\n{rows}",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sluicegate {VERSION}")
    parser.add_argument("command", metavar="COMMAND", type=_command, help=argparse.SUPPRESS)
    return parser


def _command(name: str) -> commands.Command:
    command = commands.find(name)
    if command is None:
        names = ", ".join(command.name for command in commands.COMMANDS)
        raise argparse.ArgumentTypeError(f"must be one of {names}, got {name!r}")
    return command


__all__ = ["CUT_OFF", "USAGE_ERROR", "main"]
