"""
The command ``sluicegate``: for those who run a store and want to know whether it does what they think.

A subcommand is a module with ``add_command(commands)``, which adds a parser whose default ``run`` takes the parsed
options and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from enforcement.settings import library_version

MODULES: Final = ("enforcement.cli.doctor", "enforcement.cli.explain", "enforcement.proof.__main__")
"""Where the subcommands are, in the order in which they are shown."""

CUT_OFF: Final = 141
"""The exit status where nobody reads the output to its end: what shells say of a program that a closed pipe ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; a command line that is wrong ends in 2, as argparse has it."""
    parser = argparse.ArgumentParser(prog="sluicegate", description="Look at, and prove, what Sluicegate enforces.")
    parser.add_argument("--version", action="version", version=f"sluicegate {library_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in MODULES:
        import_module(name).add_command(commands)
    options = parser.parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:  # "| head" has seen enough; what is left must not be written when Python ends, either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    return status
