"""The command ``sluicegate-admin``, which does what manage.py does. It also runs as ``python -m controlplane``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run a management command with the settings of the control plane."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    if sys.version_info < (3, 12):
        sys.exit(f"The control plane needs Python 3.12 or newer; this is {sys.version.split()[0]}.")
    try:
        import environ  # noqa: F401  (the first import of the settings that the extra installs)
        from django.core.management import execute_from_command_line
    except ModuleNotFoundError as exc:
        sys.exit(f"The control plane needs {exc.name}: pip install 'sluicegate[controlplane]'")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
