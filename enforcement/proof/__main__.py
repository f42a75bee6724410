"""``python -m enforcement.proof`` is the command ``sluicegate proof``."""

import sys

from enforcement.proof.command import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m enforcement.proof"))
