"""The command ``sluicegate-admin``, which does what manage.py does. It also runs as ``python -m controlplane``."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    """Run a management command with the settings of the control plane."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as exc:  # a person reads it, and needs no traceback
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
