"""What a framework's settings say about its door: a mapping, read strictly. Pure, and without the framework."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from enforcement.doors._http import TrustedProxies, check_preset
from enforcement.limiter import Limiter
from enforcement.settings import Settings

_TEXTS: Final = {"REDIS_URL": "url", "PREFIX": "prefix", "INSTANCE": "instance", "STATE_DIR": "state_dir"}
_CALLABLES: Final = ("TOKEN", "COSTS", "ATTRIBUTES")
NAMES: Final = (*_TEXTS, "TIMEOUT_MS", "HEADERS", "TRUSTED_PROXIES", "EXEMPT", *_CALLABLES)


@dataclass(frozen=True, slots=True)
class Options:
    """
    A door's options; see :func:`read_options`.

    Attributes:
        store: Where the store is and how it is reached; what the mapping leaves out stands in the environment.
        headers: Preset of the header fields.
        proxies: Whose forwarding headers are believed.
        exempt: Paths that are never limited.
        token, costs, attributes: Functions of a request, or None.
    """

    store: Settings
    headers: str
    proxies: TrustedProxies
    exempt: frozenset[str]
    token: Callable[[Any], str | None] | None
    costs: Callable[[Any], Any] | None
    attributes: Callable[[Any], Mapping[str, str]] | None

    def limiter(self) -> Limiter:
        """Return a limiter on the store. Raises ValueError: the URL or the prefix cannot be used."""
        store = self.store
        return Limiter(
            store.url,
            prefix=store.prefix,
            instance=store.instance,
            state_dir=store.state_dir,
            timeout=store.timeout,
        )


def read_options(data: object, name: str, environ: Mapping[str, str] = os.environ) -> Options:
    """
    Read a door's options.

    Args:
        data: A mapping of :data:`NAMES`; what it leaves out stands in the environment, or has its default.
        name: What the mapping is called, for errors.
    Raises:
        ValueError: An unknown name or a value that cannot be used; the text names both.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}: must be a dictionary.")
    unknown = sorted(str(key) for key in set(data) - set(NAMES))
    if unknown:
        raise ValueError(f"{name}[{unknown[0]!r}]: is no option; there are {', '.join(NAMES)}.")
    read = _Reader(data, name)
    options = Options(
        store=read.store(Settings.from_env(environ)),
        headers=read.checked("HEADERS", "ietf", lambda value: check_preset(_text(value))),
        proxies=read.checked("TRUSTED_PROXIES", (), lambda value: TrustedProxies(_texts(value))),
        exempt=read.checked("EXEMPT", ("/healthz",), lambda value: frozenset(_texts(value))),
        token=read.function("TOKEN"),
        costs=read.function("COSTS"),
        attributes=read.function("ATTRIBUTES"),
    )
    try:
        options.limiter()  # does no I/O
    except ValueError as exc:
        raise ValueError(f"{name}: the store cannot be used: {exc}") from exc
    return options


class _Reader:
    """One mapping; each method reads an option of it and names it where it cannot be used."""

    def __init__(self, data: Mapping[str, Any], name: str) -> None:
        self._data = data
        self._name = name

    def checked(self, option: str, default: Any, check: Callable[[Any], Any]) -> Any:
        """Return what *check* makes of an option."""
        try:
            return check(self._data.get(option, default))
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{self._name}[{option!r}]: {exc}") from exc

    def function(self, option: str) -> Any:
        """Return a function, given itself or by its dotted path; None if there is none."""
        return self.checked(option, None, _function)

    def store(self, settings: Settings) -> Settings:
        """Return the settings of the environment with those that the mapping gives in their place."""
        changes: dict[str, Any] = {}
        for option, field in _TEXTS.items():
            if option in self._data:
                changes[field] = self.checked(option, None, _path if option == "STATE_DIR" else _text)
        if "TIMEOUT_MS" in self._data:
            changes["timeout"] = self.checked("TIMEOUT_MS", None, _milliseconds) / 1_000
        return replace(settings, **changes)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a text, not {value!r}.")
    return value


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


def _texts(value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError(f"must be a list of texts, not {value!r}.")
    return [_text(item) for item in value]


def _milliseconds(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 10_000:
        raise ValueError(f"must be a whole number from 1 to 10000, not {value!r}.")
    return value


def _function(value: object) -> Callable[..., Any] | None:
    if isinstance(value, str):
        try:
            value = resolve_name(value)
        except (ImportError, AttributeError) as exc:
            raise ValueError(f"cannot be imported: {exc}") from exc
    if value is not None and not callable(value):
        raise ValueError(f"must be a function or the dotted path of one, not {value!r}.")
    return value
