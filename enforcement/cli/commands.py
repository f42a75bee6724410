"""The table of commands. A command's module is imported when the command is run, not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final


class MissingExtra(Exception):
    """A command needs a package that is not installed."""

    def __init__(self, name: str, extra: str) -> None:
        super().__init__(f"sluicegate {name} needs the extra '{extra}': pip install 'sluicegate[{extra}]'")


@dataclass(frozen=True, slots=True)
class Command:
    """
    One command of ``sluicegate``.

    Attributes:
        name: The word after ``sluicegate``.
        help: One line for ``sluicegate --help``.
        module: Has a function ``main(arguments)`` that returns the exit status.
        extra: The extra of the package whose libraries the module imports; None if it needs none.
        aliases: Former names. They work, and the help does not list them.
    """

    name: str
    help: str
    module: str
    extra: str | None = None
    aliases: tuple[str, ...] = ()

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
        return int(module.main(arguments))


COMMANDS: Final = (
    Command("doctor", "examine a store, and prove that two processes share a counter", "enforcement.cli.doctor"),
    Command("explain", "show which limits apply to a token, and what is left of them", "enforcement.cli.explain"),
    Command("proxy", "run the reverse proxy", "enforcement.cli.proxy", extra="proxy"),
    Command("serve", "answer proxies that are not written in Python", "enforcement.cli.serve"),
    Command("convert", "translate the rules of another rate limit service", "enforcement.cli.convert", extra="cli"),
    Command("proof", "prove a limit by counting", "enforcement.proof.command", aliases=("ledger",)),
)
"""In the order of the help."""


def find(name: str) -> Command | None:
    """Return the command of this name or alias, or None if there is no such command."""
    return next((command for command in COMMANDS if name in (command.name, *command.aliases)), None)


__all__ = ["COMMANDS", "Command", "MissingExtra", "find"]
