"""``python -m enforcement`` is the command ``sluicegate``."""

import sys

from enforcement.cli import main

if __name__ == "__main__":
    sys.exit(main())
