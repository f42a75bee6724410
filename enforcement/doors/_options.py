"""The options of an integration, read from a mapping in the settings of a framework. Nothing here imports one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final, TypeVar

from enforcement.http.addresses import USUAL_BITS, Bits, TrustedProxies
from enforcement.http.messages import check_preset
from enforcement.limiter import Limiter
from enforcement.model.tokens import Anonymous
from enforcement.settings import Settings

_STRINGS: Final = {
    "REDIS_URL": "url",
    "PREFIX": "prefix",
    "INSTANCE": "instance",
    "STATE_DIR": "state_dir",
    "DECISION_KEY": "decision_key",
}
_SPANS: Final = {"TIMEOUT_MS": "timeout", "LOOKUP_MS": "lookup"}
_CALLABLES: Final = ("TOKEN", "COSTS", "ATTRIBUTES")
_ADDRESSES: Final = ("TRUSTED_PROXIES", "ADDRESS_FIELD", "IPV4_BITS", "IPV6_BITS")
NAMES: Final = (*_STRINGS, *_SPANS, "HEADERS", *_ADDRESSES, "EXEMPT", "ANONYMOUS", "USAGE_ENDPOINT", *_CALLABLES)
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
CheckedT = TypeVar("CheckedT")


@dataclass(frozen=True, slots=True)
class Options:
    """
    The options of an integration. See :func:`read_options`.

    Attributes:
        store: Where the store is and how it is reached.
        headers: Preset of the header fields.
        proxies: The proxies whose forwarding headers are trusted.
        address_field: Name of the header field in which a trusted proxy gives the address of its client. Empty:
            ``X-Forwarded-For`` is read.
        bits: How many bits of an IPv4 and of an IPv6 address limits in code count by.
        exempt: Paths that are never limited.
        anonymous: Stands for requests without a token. None: they are refused.
        usage_endpoint: Whether the middleware shows each token its own limits.
        token, costs, attributes: Functions of a request, or None.
    """

    store: Settings
    headers: str
    proxies: TrustedProxies
    address_field: str
    bits: Bits
    exempt: frozenset[str]
    anonymous: Anonymous | None
    usage_endpoint: bool
    token: Callable[[Any], str | None] | None
    costs: Callable[[Any], Any] | None
    attributes: Callable[[Any], Mapping[str, str]] | None

    def address(self, peer: str | None, values: Callable[[str], Sequence[str]]) -> str | None:
        """
        Return the address of a client, or None if it is unknown.

        Args:
            peer: Address of the peer. None over a Unix socket.
            values: Returns the values of a header field.
        """
        if self.address_field:
            return self.proxies.named(peer, values(self.address_field))
        return self.proxies.client(peer, values("X-Forwarded-For"))

    def limiter(self) -> Limiter:
        """
        Return a new limiter with the store of these options. Raises ValueError if the URL or the prefix is not valid.
        """
        store = self.store
        return Limiter(
            store.url,
            prefix=store.prefix,
            instance=store.instance,
            state_dir=store.state_dir,
            timeout=store.timeout,
            lookup=store.lookup,
            fleet_size=store.fleet_size,
            decision_key=store.decision_key,
        )


def read_options(
    data: object, name: str, environ: Mapping[str, str] = os.environ, *, names: Sequence[str] = NAMES
) -> Options:
    """
    Return the options of an integration, read from a mapping and from environment variables.

    Args:
        data: A mapping. What it leaves out is read from the environment, or has its default.
        name: Name of the mapping, for error messages.
        names: The options that the integration has.
    Raises:
        ValueError: A name is unknown or a value is not valid. The message names the option.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}: must be a dictionary, got {type(data).__name__}.")
    unknown = sorted(str(key) for key in set(data) - set(names))
    if unknown:
        raise ValueError(f"{name}[{unknown[0]!r}]: unknown option, must be one of {', '.join(names)}.")
    read = _OptionReader(data, name)
    options = Options(
        store=read.store(Settings.from_env(environ)),
        headers=read.checked("HEADERS", "ietf", lambda value: check_preset(_string(value))),
        proxies=read.checked("TRUSTED_PROXIES", (), lambda value: TrustedProxies(_strings(value))),
        address_field=read.checked("ADDRESS_FIELD", "", _field_name),
        bits=(
            read.checked("IPV4_BITS", USUAL_BITS[0], lambda value: _bits(value, 8, 32)),
            read.checked("IPV6_BITS", USUAL_BITS[1], lambda value: _bits(value, 16, 128)),
        ),
        exempt=read.checked("EXEMPT", ("/healthz",), lambda value: frozenset(_strings(value))),
        anonymous=read.checked("ANONYMOUS", None, _anonymous),
        usage_endpoint=read.checked("USAGE_ENDPOINT", True, _switch),
        token=read.function("TOKEN"),
        costs=read.function("COSTS"),
        attributes=read.function("ATTRIBUTES"),
    )
    if options.address_field and not data.get("TRUSTED_PROXIES"):
        raise ValueError(f"{name}['ADDRESS_FIELD']: needs TRUSTED_PROXIES, or each client could name any address.")
    try:
        options.limiter()  # does no I/O
    except ValueError as exc:
        raise ValueError(f"{name}: the store settings are not valid: {exc}") from exc
    return options


class _OptionReader:
    """Read the options of one mapping. Errors name the option."""

    def __init__(self, data: Mapping[str, object], name: str) -> None:
        self._data = data
        self._name = name

    def checked(self, option: str, default: object, check: Callable[[object], CheckedT]) -> CheckedT:
        """Return the value of an option as *check* converts it, or raise ValueError with the name of the option."""
        try:
            return check(self._data.get(option, default))
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{self._name}[{option!r}]: {exc}") from exc

    def function(self, option: str) -> Callable[..., Any] | None:
        """Return the function that an option holds or names by its dotted path, or None if the option is not set."""
        return self.checked(option, None, _function)

    def store(self, settings: Settings) -> Settings:
        """Return a copy of *settings* in which the store options of the mapping replace their values."""
        changes: dict[str, Any] = {}
        for option, field in _STRINGS.items():
            if option in self._data:
                changes[field] = self.checked(option, None, _path if option == "STATE_DIR" else _string)
        for option, field in _SPANS.items():
            if option in self._data:
                changes[field] = self.checked(option, None, _milliseconds) / 1_000
        return replace(settings, **changes)


def _string(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a string that is not empty, got {value!r}.")
    return value


def _field_name(value: object) -> str:
    if not isinstance(value, str) or (value and not _FIELD_NAME.fullmatch(value)):
        raise ValueError(f"must be the name of a header field, such as X-Real-IP, got {value!r}.")
    return value


def _bits(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"must be an integer from {least} to {most}, got {value!r}.")
    return value


def _anonymous(value: object) -> Anonymous | None:
    return None if value is None else Anonymous(_string(value))


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, got {value!r}.")
    return value


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_string(value))


def _strings(value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError(f"must be a list of strings, got {value!r}.")
    return [_string(item) for item in value]


def _milliseconds(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 10_000:
        raise ValueError(f"must be an integer from 1 to 10000, got {value!r}.")
    return value


def _function(value: object) -> Callable[..., Any] | None:
    if isinstance(value, str):
        try:
            value = resolve_name(value)
        except (ImportError, AttributeError) as exc:
            raise ValueError(f"cannot be imported: {exc}") from exc
    if value is not None and not callable(value):
        raise ValueError(f"must be a function or the dotted path of one, got {value!r}.")
    return value
