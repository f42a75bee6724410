"""
Where the control plane is, and the key for it.

``sluicegate login`` saves both in a file that only its owner can read. SLUICEGATE_URL and SLUICEGATE_KEY replace them.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from enforcement.cli.remote.problems import CommandProblem

URL_VARIABLE: Final = "SLUICEGATE_URL"
KEY_VARIABLE: Final = "SLUICEGATE_KEY"
MAX_FILE_BYTES: Final = 16_384
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class NoAccount(CommandProblem):
    """The address of the control plane or the key is missing or wrong. The text says how to give it."""


@dataclass(frozen=True, slots=True)
class Account:
    """
    A control plane and the key for it.

    Attributes:
        url: Its address, such as https://limits.example.
        key: The secret of a management key. It is not part of the ``repr()``.
        source: Where the key is from.
    """

    url: str
    key: str = field(repr=False)
    source: str = ""


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for the settings of a user, which need not exist."""
    home = environment.get("XDG_CONFIG_HOME", "")
    if home and os.path.isabs(home):
        return Path(home) / "sluicegate"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "sluicegate"
    return Path.home() / ".config" / "sluicegate"


def account_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the file that ``login`` writes."""
    return folder(environment) / "login.json"


def is_logged_in(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a control plane is known, by a variable or by ``login``."""
    return bool(environment.get(URL_VARIABLE)) or account_file(environment).exists()


def known_address(environment: Mapping[str, str] = os.environ) -> str:
    """Return the address of the control plane that is known, or "" if there is none or it cannot be read."""
    try:
        return check_url(environment.get(URL_VARIABLE) or _saved(account_file(environment)).get("url", ""))
    except NoAccount:
        return ""


def check_url(url: str, name: str = "URL") -> str:
    """
    Return the address of a control plane without a path.

    Raises:
        NoAccount: It is no address of a web server, or has a password in it.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as exc:
        raise NoAccount(f"{name}: Must be an address such as https://limits.example ({exc}).") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoAccount(f"{name}: Must begin with https:// or http:// and name a host.")
    if parts.username is not None or parts.password is not None:
        raise NoAccount(f"{name}: Must have no user and no password. The key is not part of the address.")
    if parts.query or parts.fragment or parts.path.rstrip("/") not in ("", "/api/v1"):
        raise NoAccount(f"{name}: Must be the address of the server alone, such as https://limits.example.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def is_clear(url: str) -> bool:
    """Return whether a key that is sent to this address can be read on the way."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOCAL


def account(environment: Mapping[str, str] = os.environ) -> Account:
    """
    Return the control plane to use, and the key.

    Raises:
        NoAccount: One of them is missing or wrong, or others may read the file.
    """
    saved = {} if environment.get(URL_VARIABLE) and environment.get(KEY_VARIABLE) else _saved(account_file(environment))
    url = environment.get(URL_VARIABLE) or saved.get("url", "")
    if not url:
        raise NoAccount(f"No control plane is known. Run `sluicegate login URL`, or set {URL_VARIABLE}.")
    url = check_url(url, URL_VARIABLE if environment.get(URL_VARIABLE) else "url")
    if key := environment.get(KEY_VARIABLE):
        return Account(url, _checked_key(key, KEY_VARIABLE), KEY_VARIABLE)
    if not saved.get("key") or check_url(saved.get("url", ""), "url") != url:
        # A key is sent only to the server for which it was saved.
        raise NoAccount(f"No key for {url} is known. Run `sluicegate login {url}`, or set {KEY_VARIABLE}.")
    return Account(url, _checked_key(saved["key"], "key"), str(account_file(environment)))


def _checked_key(key: str, name: str) -> str:
    """Return a key without spaces around it. The error never shows it."""
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise NoAccount(f"{name}: Must be the secret of a management key, of printable ASCII without spaces.")
    return key


def _saved(path: Path) -> dict[str, str]:
    """Return what ``login`` has saved. Empty if there is no file."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise NoAccount(f"{path}: {exc.strerror}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise NoAccount(f"{path}: Must be readable by its owner alone, because it has a key. Run `chmod 600 {path}`.")
    try:
        result = json.loads(raw)
    except ValueError:
        result = None
    if not isinstance(result, dict) or any(not isinstance(value, str) for value in result.values()):
        raise NoAccount(f"{path}: Must be what `sluicegate login` writes. Run it again.")
    return result


def save(account: Account, environment: Mapping[str, str] = os.environ) -> Path:
    """Save a control plane and its key for later commands, and return the path of the file."""
    path = account_file(environment)
    write_private(path, json.dumps({"url": account.url, "key": account.key}) + "\n")
    return path


def forget(environment: Mapping[str, str] = os.environ) -> bool:
    """Delete what ``login`` has saved, and return whether there was anything."""
    try:
        account_file(environment).unlink()
    except FileNotFoundError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read. A file of this name is replaced at once, and never half."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes the file with mode 0600, so that nobody can open it before its mode is set.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
