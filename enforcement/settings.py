"""Read the settings of an enforcer from code or from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from enforcement.model.checks import check_secret, shown
from enforcement.model.keys import DEFAULT_PREFIX
from enforcement.model.sizes import MAX_INSTANCE_LENGTH

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
DEFAULT_TIMEOUT: Final = 0.025
LEAST_TIMEOUT: Final = 0.001
MOST_TIMEOUT: Final = 10.0

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
        clock: Returns microseconds since the epoch, for tests. None: the store's clock.
        credentials: Returns user and password for a new connection. None: those of the URL.
        decision_key: The secret of decision ids. None: the one that the control plane keeps in the store.
    Raises:
        ValueError: The instance, timeout, clock, credentials or decision key breaks a rule.
    """

    url: str = DEFAULT_URL
    prefix: str = DEFAULT_PREFIX
    instance: str | None = None
    state_dir: Path | None = None
    timeout: float = DEFAULT_TIMEOUT
    clock: Callable[[], int] | None = None
    credentials: Callable[[], tuple[str, str]] | None = None
    decision_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.instance is not None and not (isinstance(self.instance, str) and _NAME.fullmatch(self.instance)):
            raise ValueError(
                f"instance: must be 1 to {MAX_INSTANCE_LENGTH} printable ASCII characters without blanks, "
                f"got {shown(self.instance)}."
            )
        span = self.timeout if type(self.timeout) in (int, float) else 0
        if not LEAST_TIMEOUT <= span <= MOST_TIMEOUT:
            raise ValueError(
                f"timeout: must be seconds from {LEAST_TIMEOUT} to {MOST_TIMEOUT:g}, got {shown(self.timeout)}."
            )
        if self.clock is not None and not (callable(self.clock) and type(self.clock()) is int):
            raise ValueError("clock: must be a function that returns microseconds since the epoch as an integer.")
        if self.credentials is not None and not callable(self.credentials):
            raise ValueError("credentials: must be a function that returns user and password.")
        if self.decision_key is not None:
            check_secret("decision_key", self.decision_key)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """
        Return new settings from environment variables, or raise ValueError.

        The page "Settings" of the documentation (``templates/docs/settings.md``) lists them.

        Raises:
            ValueError: A variable breaks a rule. The message names it.
        """
        timeout = environ.get("SLUICEGATE_TIMEOUT_MS") or "25"
        if not timeout.isascii() or not timeout.isdigit() or not 1 <= int(timeout) <= 10_000:
            raise ValueError(f"SLUICEGATE_TIMEOUT_MS: must be an integer from 1 to 10000, got {shown(timeout)}.")
        state_dir = environ.get("SLUICEGATE_STATE_DIR")
        return cls(
            url=environ.get("SLUICEGATE_REDIS_URL") or environ.get("REDIS_URL") or DEFAULT_URL,
            prefix=environ.get("SLUICEGATE_PREFIX") or DEFAULT_PREFIX,
            instance=environ.get("SLUICEGATE_INSTANCE") or None,
            state_dir=Path(state_dir) if state_dir else None,
            timeout=int(timeout) / 1_000,
            decision_key=environ.get("SLUICEGATE_DECISION_KEY") or None,
        )


def library_version() -> str:
    """Return the version of the installed package, or "0" if it is not installed."""
    try:
        return version("sluicegate")
    except PackageNotFoundError:
        return "0"


__all__ = ["DEFAULT_TIMEOUT", "DEFAULT_URL", "Settings", "library_version"]
