"""The command ``sluicegate-admin``, which does what manage.py does. It also runs as ``python -m controlplane``."""

import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    """Run a management command with the settings of the control plane."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
