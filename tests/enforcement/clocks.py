"""A wall clock that a test may set: of a store, or of a process that enforces."""

import shutil
import subprocess
from pathlib import Path

from tests.requires import require

SOURCE = Path(__file__).with_name("clock_shift.c")


class WallClock:
    """
    The wall clock of the processes that are started with ``environment``.

    Args:
        folder: Where the preloaded library is built, and the shift is kept.
    """

    def __init__(self, folder: Path) -> None:
        compiler = require(
            shutil.which("gcc") or shutil.which("cc"), "A C compiler is missing: install it with 'apt-get install gcc'."
        )
        library, self._shift = folder / "clock_shift.so", folder / "clock_shift"
        if not library.exists():
            command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._shift)}
        self.set(0)

    def set(self, seconds: int) -> None:
        """Let it be so many seconds ahead of the truth; below 0: behind it."""
        # A new file in one step: a reader never sees half a number.
        new = self._shift.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._shift)
