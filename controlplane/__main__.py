"""The command ``sluicegate-admin``, which does what manage.py does. It also runs as ``python -m controlplane``."""

import argparse
import os
import sys

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line, get_commands, load_command_class


def main() -> None:
    """Run a management command with the settings of the control plane."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    try:
        if sys.argv[1:] in ([], ["help"], ["-h"], ["--help"]):
            print(_help(), end="")
        else:
            execute_from_command_line(sys.argv)
    except ImproperlyConfigured as exc:  # a person reads it, and needs no traceback
        sys.exit(str(exc))


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
