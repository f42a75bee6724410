"""Where the code, the templates and the data of this installation are. The settings import this."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (BASE_DIR / "manage.py").is_file()
# A wheel has the templates inside the package, because a folder "templates" in site-packages could be anybody's.
TEMPLATES_DIR = BASE_DIR / ("templates" if IN_CHECKOUT else "controlplane/templates")
# An installed package may not write beside itself, so its data is in the current directory. The name is not "var",
# because in the directory / that is the system's.
_USUAL = BASE_DIR / "var" if IN_CHECKOUT else Path("sluicegate-var")
VAR_DIR = Path(os.environ.get("SLUICEGATE_VAR") or _USUAL).absolute()


def kept(name: str) -> str:
    """
    Return a value that `manage.py up` has saved in VAR_DIR, or an empty string if there is none.

    So other commands reach the same stack.
    """
    path = VAR_DIR / name
    return path.read_text().strip() if path.is_file() else ""
