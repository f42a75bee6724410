"""Where the code, the templates and the data of this installation are. The settings import this."""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (BASE_DIR / "manage.py").is_file()
# A wheel has the templates inside the package, because a folder "templates" in site-packages could be anybody's.
TEMPLATES_DIR = BASE_DIR / ("templates" if IN_CHECKOUT else "controlplane/templates")
# An installed package may not write beside itself, so its data is in the current directory. The name is not "var",
# because in the directory / that is the system's.
_USUAL = BASE_DIR / "var" if IN_CHECKOUT else Path("sluicegate-var")
VAR_DIR = Path(os.environ.get("SLUICEGATE_VAR") or _USUAL).absolute()


def make_var_dir() -> None:
    """Create VAR_DIR for this user only, like all that `up` writes, or raise ImproperlyConfigured."""
    try:
        VAR_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        reason = f"must name a folder that this user may write, got {VAR_DIR} ({exc.strerror})"
        raise ImproperlyConfigured(f"SLUICEGATE_VAR: {reason}.") from exc


def kept(name: str) -> str:
    """
    Return a value that `manage.py up` has saved in VAR_DIR, or an empty string if there is none.

    So other commands reach the same stack.

    Raises:
        ImproperlyConfigured: The value belongs to another user.
    """
    path = VAR_DIR / name
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError as exc:
        rule = "Run this command as the user who runs `up`, or set SLUICEGATE_VAR to a folder of your own"
        raise ImproperlyConfigured(f"{path} belongs to another user. {rule}.") from exc
