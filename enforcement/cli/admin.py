"""
The command ``sluicegate-admin``. It runs the control plane, or says what it needs.

The control plane cannot do that itself, because its package cannot be imported without its extra.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

USAGE_ERROR: Final = 2


def main() -> int:
    """Run a management command of the control plane, and return 2 if its extra or its Python is missing."""
    try:
        command = import_module("controlplane.__main__")
    except ImportError as exc:
        # A missing module of this project is a defect, and no extra would bring it.
        if (exc.name or "").startswith(("controlplane", "enforcement")):
            raise
        print(f"sluicegate-admin: {exc}", file=sys.stderr)
        return USAGE_ERROR
    command.main()
    return 0
