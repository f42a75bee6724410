"""The table of commands. A command's module is imported when the command is run, not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

DETAILED: Final = "--detailed-exitcode"
CHANGES: Final = 5
"""
The exit status of ``plan`` with DETAILED if something would change. ``main`` returns it as 2, and a usage error as 1.
"""


class MissingExtra(Exception):
    """A command needs a package that is not installed."""

    def __init__(self, name: str, extra: str) -> None:
        super().__init__(f"sluicegate {name} needs the extra '{extra}': pip install 'sluicegate[{extra}]'")


@dataclass(frozen=True, slots=True)
class Subcommand:
    """
    One command of ``sluicegate``.

    Attributes:
        name: The word after ``sluicegate``.
        help: One line for ``sluicegate --help``.
        module: Has a function ``main(arguments)`` that returns the exit status.
        extra: The extra of the package whose libraries the module imports; None if it needs none.
        aliases: Former names. They work, and the help does not list them.
        named: Whether ``main`` gets the name of the command before its arguments, for a module of several.
    """

    name: str
    help: str
    module: str
    extra: str | None = None
    aliases: tuple[str, ...] = ()
    named: bool = False

    @property
    def summary(self) -> str:
        """The line of this command in the help, with the extra if the command needs one."""
        return self.help if self.extra is None else f"{self.help} (extra '{self.extra}')"

    def run(self, arguments: Sequence[str]) -> int:
        """
        Import the command's module, run it, and return its exit status, or raise MissingExtra.

        Raises:
            MissingExtra: The module imports a library that is not installed.
        """
        try:
            module = import_module(self.module)
        except ModuleNotFoundError as exc:
            # A missing module of this package is a defect, and no extra would bring it.
            if self.extra is None or (exc.name or "").startswith("enforcement"):
                raise
            raise MissingExtra(self.name, self.extra) from exc
        return int(module.main([self.name, *arguments] if self.named else arguments))


def _remote(name: str, summary: str) -> Subcommand:
    """Return a command that calls a control plane."""
    return Subcommand(name, summary, "enforcement.cli.remote.app", extra="cli", named=True)


REMOTE: Final = (
    _remote("login", "save the address of a control plane and a key"),
    _remote("logout", "delete what login has saved"),
    _remote("whoami", "show which control plane and key are used"),
    _remote("validate", "check policy files"),
    _remote("export", "write a project as a policy file"),
    _remote("diff", "compare a policy file with the control plane"),
    _remote("plan", "show what applying a policy file would do"),
    _remote("apply", "change the control plane to what a policy file says"),
    _remote("undo", "change back what a revision changed"),
    _remote("schema", "print the JSON Schema of policy files"),
    _remote("tokens", "list, create, rotate and revoke tokens"),
    _remote("keys", "list, create, change, rotate and revoke management keys"),
    _remote("usage", "show decisions and permits over time"),
    _remote("top", "show the busiest tokens"),
    _remote("tail", "show a sample of denials as they come"),
    _remote("simulate", "show whom a policy file would have limited"),
    _remote("completion", "print what makes a shell complete commands"),
)
"""The commands that need a control plane, or files for it. ``explain`` can ask one too."""

COMMANDS: Final = (
    Subcommand("doctor", "examine a store, and prove that two processes share a counter", "enforcement.cli.doctor"),
    Subcommand("explain", "show which limits apply to a token, and what is left of them", "enforcement.cli.explain"),
    Subcommand("proxy", "run the reverse proxy", "enforcement.cli.proxy", extra="proxy"),
    Subcommand("serve", "answer proxies that are not written in Python", "enforcement.cli.serve"),
    Subcommand("convert", "translate the rules of another rate limit service", "enforcement.cli.convert", extra="cli"),
    Subcommand("proof", "prove a limit by counting", "enforcement.proof.command", aliases=("ledger",)),
    *REMOTE,
)
"""In the order of the help."""


def find(name: str) -> Subcommand | None:
    """Return the command of this name or alias, or None if there is no such command."""
    return next((command for command in COMMANDS if name in (command.name, *command.aliases)), None)


def explain_remotely(arguments: Sequence[str]) -> int:
    """Ask the control plane for an explanation, and return the exit status. Raises MissingExtra."""
    return _remote("explain", "").run(arguments)


def complete() -> int:
    """Answer a shell that completes a command line, and return the exit status. Raises MissingExtra."""
    return _remote("complete", "").run(())
