"""The command ``sluicegate-admin``, which does what manage.py does. It also runs as ``python -m controlplane``."""

import argparse
import os
import sys
import textwrap
from typing import Any, Final

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import ManagementUtility, get_commands, load_command_class
from django.core.management.base import BaseCommand, DjangoHelpFormatter

from enforcement.cli.options import as_part, documentation

OF_DJANGO: Final = frozenset(DjangoHelpFormatter.show_last)
"""Options of every management command. They are no part of what one of ours is for."""


def main() -> None:
    """Run a management command with the settings of the control plane."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    try:
        if sys.argv[1:] in ([], ["help"], ["-h"], ["--help"]):
            print(_help(), end="")
        else:
            _Utility(sys.argv).execute()
    except ImproperlyConfigured as exc:  # a person reads it, and needs no traceback
        sys.exit(str(exc))


class _Utility(ManagementUtility):
    """Runs management commands. Ours have the same help as the commands of ``sluicegate``."""

    def fetch_command(self, subcommand: str) -> BaseCommand:
        command = super().fetch_command(subcommand)
        if type(command).__module__.startswith("controlplane."):
            make = command.create_parser
            command.create_parser = lambda *names, **more: _as_ours(make(*names, **more))  # type: ignore[method-assign]
        return command


def _as_ours(parser: Any) -> Any:
    """Return a parser after giving it the form of help that the commands of ``sluicegate`` have."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 118)
    parser.epilog = documentation()
    for action in parser._actions:
        if OF_DJANGO.intersection(action.option_strings):
            action.help = argparse.SUPPRESS
        else:
            action.help = as_part(action.help or "")
    return parser


def _help() -> str:
    """Return the help in the form of that of ``sluicegate``: our own commands with what they do, then all others."""
    if not apps.ready:
        django.setup()
    found = {name: app for name, app in sorted(get_commands().items()) if isinstance(app, str)}
    own = [name for name, app in found.items() if app.startswith("controlplane.")]
    width = max(map(len, own))
    rows = [f"  {name:<{width}}  {_summary(found[name], name)}" for name in own]
    others = [name for name, app in found.items() if app == "django.core" or app.endswith(".auth")]
    return argparse.ArgumentParser(
        prog="sluicegate-admin",
        usage="%(prog)s [-h] COMMAND ...",
        description="Run the control plane, and look after it.\n\ncommands:\n" + "\n".join(rows),
        epilog=f"commands of Django:\n  {', '.join(others)}\n\n"
        "`sluicegate-admin COMMAND --help` lists the options of a command.\n"
        "documentation: /docs/ of the control plane",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).format_help()


def _summary(app: str, name: str) -> str:
    """Return the first sentence about a command, as the help of ``sluicegate`` has it."""
    text = load_command_class(app, name).help.split(". ")[0].removesuffix(".")
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    main()
