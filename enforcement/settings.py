"""Read the settings of an enforcer from code or from the environment."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from enforcement.model.checks import check_secret, is_integer, shown
from enforcement.model.keys import DEFAULT_PREFIX
from enforcement.model.sizes import MAX_FLEET_SIZE, MAX_INSTANCE_LENGTH, USUAL_RESERVATION_SHARE

T = TypeVar("T")

# The build reads the version from this line. A container that has the code without its installation knows it too.
VERSION: Final = "0.2.0"
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
DEFAULT_TIMEOUT: Final = 0.025
DEFAULT_LOOKUP: Final = 0.25
LEAST_TIMEOUT: Final = 0.001
MOST_TIMEOUT: Final = 10.0

ENFORCE, SHADOW, OFF = IN_CODE = ("enforce", "shadow", "off")
"""The modes of limits in code: they hold, they count and deny nothing, or they do not even count."""

_VARIABLES: Final = {
    "url": "SLUICEGATE_REDIS_URL",
    "prefix": "SLUICEGATE_PREFIX",
    "instance": "SLUICEGATE_INSTANCE",
    "decision_key": "SLUICEGATE_DECISION_KEY",
}
_NAME: Final = re.compile(rf"[!-~]{{1,{MAX_INSTANCE_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """
    The settings of an enforcer.

    Args:
        url: URL of the store: ``redis://``, ``rediss://`` or ``unix://``, or one that names several hosts
            (:mod:`enforcement.store.topology`).
        prefix: Prefix of all keys.
        instance: Its name in the fleet. None: made of the host's name, the process id and random characters.
        state_dir: Folder for the last good documents. None: they are not kept.
        timeout: Seconds that a decision may take, connecting included.
        lookup: Seconds for reading the document of a token that this process has not met yet. A look-up has at least
            the time of a decision.
        clock: Returns microseconds since the epoch, for tests. None: the store's clock.
        credentials: Returns user and password for a new connection. None: those of the URL.
        fleet_size: How many instances share the quotas at least while the store is unavailable.
        decision_key: The secret of decision ids. None: the one that the control plane keeps in the store.
        in_code: What happens to limits in code, one of :data:`IN_CODE`. None: what ``SLUICEGATE_IN_CODE`` says, which
            an operator may set for any limiter of a process.
        reservation_share: The part of a project's open reservations that one token may have, in percent. None: what
            ``SLUICEGATE_RESERVATION_SHARE`` says.
    Raises:
        ValueError: The instance, timeout, lookup, clock, credentials, fleet size, decision key, what happens to limits
            in code or the share of reservations break a rule.
    """

    url: str = DEFAULT_URL
    prefix: str = DEFAULT_PREFIX
    instance: str | None = None
    state_dir: Path | None = None
    timeout: float = DEFAULT_TIMEOUT
    lookup: float = DEFAULT_LOOKUP
    clock: Callable[[], int] | None = None
    credentials: Callable[[], tuple[str, str]] | None = None
    fleet_size: int = 1
    decision_key: str | None = field(default=None, repr=False)
    in_code: str | None = None
    reservation_share: int | None = None

    def __post_init__(self) -> None:
        if self.instance is not None and not (isinstance(self.instance, str) and _NAME.fullmatch(self.instance)):
            raise ValueError(
                f"instance: must be 1 to {MAX_INSTANCE_LENGTH} printable ASCII characters without blanks, "
                f"got {shown(self.instance)}."
            )
        for name in ("timeout", "lookup"):
            given = getattr(self, name)
            span = given if type(given) in (int, float) else 0
            if not LEAST_TIMEOUT <= span <= MOST_TIMEOUT:
                raise ValueError(
                    f"{name}: must be seconds from {LEAST_TIMEOUT} to {MOST_TIMEOUT:g}, got {shown(given)}."
                )
        if not is_integer(self.fleet_size, 1, MAX_FLEET_SIZE):
            raise ValueError(
                f"fleet_size: must be an integer from 1 to {MAX_FLEET_SIZE}, got {shown(self.fleet_size)}."
            )
        if self.clock is not None and not (callable(self.clock) and type(self.clock()) is int):
            raise ValueError("clock: must be a function that returns microseconds since the epoch as an integer.")
        if self.credentials is not None and not callable(self.credentials):
            raise ValueError("credentials: must be a function that returns user and password.")
        if self.decision_key is not None:
            check_secret("decision_key", self.decision_key)
        if self.in_code is None:
            object.__setattr__(self, "in_code", os.environ.get("SLUICEGATE_IN_CODE") or ENFORCE)
        if self.in_code not in IN_CODE:
            raise ValueError(f"SLUICEGATE_IN_CODE: must be one of {', '.join(IN_CODE)}, got {shown(self.in_code)}.")

        if self.reservation_share is None:
            object.__setattr__(self, "reservation_share", _percent(os.environ, "SLUICEGATE_RESERVATION_SHARE"))
        elif not is_integer(self.reservation_share, 1, 100):
            raise ValueError(_NO_PERCENT.format("reservation_share", shown(self.reservation_share)))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """
        Return new settings from environment variables, or raise ValueError.

        The page "Settings" of the documentation (``templates/docs/settings.md``) lists them.

        Raises:
            ValueError: A variable breaks a rule. The message names it.
        """
        fleet_size = environ.get("SLUICEGATE_FLEET_SIZE") or "1"
        if not fleet_size.isascii() or not fleet_size.isdigit() or not 1 <= int(fleet_size[:9]) <= MAX_FLEET_SIZE:
            raise ValueError(
                f"SLUICEGATE_FLEET_SIZE: must be an integer from 1 to {MAX_FLEET_SIZE}, got {shown(fleet_size)}."
            )
        state_dir = environ.get("SLUICEGATE_STATE_DIR")
        with named_as(variables(environ)):
            return cls(
                url=environ.get(url_variable(environ)) or DEFAULT_URL,
                prefix=environ.get("SLUICEGATE_PREFIX") or DEFAULT_PREFIX,
                instance=environ.get("SLUICEGATE_INSTANCE") or None,
                state_dir=Path(state_dir) if state_dir else None,
                timeout=_seconds(environ, "SLUICEGATE_TIMEOUT_MS", DEFAULT_TIMEOUT),
                lookup=_seconds(environ, "SLUICEGATE_LOOKUP_MS", DEFAULT_LOOKUP),
                fleet_size=int(fleet_size),
                decision_key=environ.get("SLUICEGATE_DECISION_KEY") or None,
                in_code=environ.get("SLUICEGATE_IN_CODE") or ENFORCE,
                reservation_share=_percent(environ, "SLUICEGATE_RESERVATION_SHARE"),
            )

    @property
    def lookup_seconds(self) -> float:
        """Seconds that a look-up may take. They are never fewer than those of a decision."""
        return max(self.lookup, self.timeout)


def folder_of(state_dir: object) -> Path:
    """Return the state directory, or raise ValueError if it is not a path. An empty one would be the current folder."""
    if not isinstance(state_dir, (str, os.PathLike)) or not str(state_dir) or "\0" in str(state_dir):
        raise ValueError(f"state_dir: must be the path of a folder, got {shown(state_dir)}.")
    return Path(state_dir)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    """Return a span in seconds from a variable in milliseconds, or the default if it is unset or empty."""
    text = environ.get(name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 10_000:
        raise ValueError(f"{name}: must be an integer from 1 to 10000, got {shown(text)}.")
    return int(text) / 1_000


_NO_PERCENT: Final = "{}: must be an integer from 1 to 100, got {}."


def _percent(environ: Mapping[str, str], name: str) -> int:
    """Return a share in percent from a variable, or the usual one if it is unset or empty."""
    text = environ.get(name) or str(USUAL_RESERVATION_SHARE)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100:
        raise ValueError(_NO_PERCENT.format(name, shown(text)))
    return int(text)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable from which each setting comes, for :func:`named_as`."""
    return {**_VARIABLES, "url": url_variable(environ)}


def url_variable(environ: Mapping[str, str]) -> str:
    """Return the name of the variable that has the URL of the store, or of the one that could have it."""
    if environ.get("REDIS_URL") and not environ.get("SLUICEGATE_REDIS_URL"):
        return "REDIS_URL"
    return "SLUICEGATE_REDIS_URL"


@contextlib.contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """
    Give each setting in an error message the name by which a person knows it.

    Args:
        names: The name that a person has written, by the name of the setting.
    Raises:
        ValueError: The block raised it.
    """
    try:
        yield
    except ValueError as exc:
        name = names.get(str(exc).partition(": ")[0])
        if name is None:
            raise
        raise ValueError(renamed(exc, name)) from exc


def read_variable(environ: Mapping[str, str], name: str, default: str, convert: Callable[[str], T]) -> T:
    """
    Return what *convert* makes of a variable, or of its default if it is unset or empty.

    Raises:
        ValueError: *convert* raised it. The message names the variable in place of the setting.
    """
    try:
        return convert(environ.get(name) or default)
    except ValueError as exc:
        setting = str(exc).partition(": ")[0]
        raise ValueError(renamed(exc, name) if setting.isidentifier() else f"{name}: {exc}") from exc


def read_seconds(environ: Mapping[str, str], name: str, default: str) -> float:
    """
    Return a variable that has a span in seconds, or its default if it is unset or empty.

    Raises:
        ValueError: It is not more than 0 and less than a day. The message names the variable.
    """

    def convert(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 86_400:
            raise ValueError(f"must be seconds, more than 0 and less than 86400, got {text!r}.")
        return seconds

    return read_variable(environ, name, default, convert)


def read_switch(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """
    Return whether a variable is ``true``, or the default if it is not set.

    Raises:
        ValueError: It is neither ``true`` nor ``false``. An empty one is refused as well, because nobody can tell which
            of the two it should be.
    """
    text = environ.get(name)
    if text is None:
        return default
    if text not in ("true", "false"):
        raise ValueError(f"{name}: must be true or false, got {shown(text)}.")
    return text == "true"


def renamed(error: ValueError, name: str) -> str:
    """Return the message of an error, in which *name* replaces the name of the setting."""
    return f"{name}: {str(error).partition(': ')[2]}"
