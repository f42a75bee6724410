"""Read environment variables strictly. An empty variable counts as unset, as it does for the library."""

import os
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from enforcement.metering.price_documents import HOST, MAX_HOSTS
from enforcement.model.checks import shown
from enforcement.model.limits import Limit

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# Other databases are not tested, and decide some races in another way.
_DATABASES = ("postgres", "postgresql", "sqlite")
MAIL_PORTS = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465}


def string(name: str, default: str = "") -> str:
    """Return the value of a variable, or the default."""
    return os.environ.get(name) or default


def flag(name: str) -> bool:
    """Return whether a variable says true, or raise ImproperlyConfigured if it says neither true nor false."""
    given = string(name, "false")
    if given.strip().lower() not in _FLAGS:
        # A misspelt "true" must not switch a protection off.
        raise ImproperlyConfigured(f"{name}: must be true or false, got {shown(given)}.")
    return _FLAGS[given.strip().lower()]


def integer(name: str, default: int, most: int) -> int:
    """Return an integer from 1 to *most*, or raise ImproperlyConfigured for anything else."""
    given = string(name, str(default))
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given[:10]) <= most:
        raise ImproperlyConfigured(f"{name}: must be an integer from 1 to {most}, got {shown(given)}.")
    return int(given)


def items(name: str, default: Sequence[str] = ()) -> list[str]:
    """Return the values in a variable, which are separated by commas, or the default."""
    given = [item for item in map(str.strip, string(name).split(",")) if item]
    return given or list(default)


def networks(name: str) -> list[str]:
    """Return the networks in a variable, or raise ImproperlyConfigured if one of them is none, such as 10.0.0.1/8."""
    given = items(name)
    for one in given:
        try:
            ip_network(one)
        except ValueError:
            rule = "must be networks such as 10.0.0.0/8 or fd00::/8, separated by commas"
            raise ImproperlyConfigured(f"{name}: {rule}, got {shown(one)}.") from None
    return given


def http_url(name: str) -> str:
    """Return the address in a variable, or an empty string. Raises ImproperlyConfigured unless it is http or https."""
    given = string(name)
    if given and not (given.startswith(("http://", "https://")) and urlsplit(given).hostname and given.isprintable()):
        raise ImproperlyConfigured(f"{name}: must begin with http:// or https:// and name a host, got {shown(given)}.")
    return given


def mail(name: str) -> dict[str, Any]:
    """
    Return the mail server that a variable names, by the names of Django's settings. The host is empty without one.

    Raises:
        ImproperlyConfigured: The address cannot be used. The message does not show it, because it may have a password.
    """
    given = string(name).strip()
    parts, scheme = urlsplit(given), given.partition("://")[0]
    rule = f"{name}: must have the form smtp+tls://USER:PASSWORD@HOST:587, smtp+ssl://... or smtp://..."
    try:
        port = parts.port
    except ValueError:
        raise ImproperlyConfigured(f"{rule}; write @ / ? # in a password as %40 and so on.") from None
    if given and not (scheme in MAIL_PORTS and parts.hostname and parts.path in ("", "/")):
        raise ImproperlyConfigured(f"{rule}; write @ / ? # in a password as %40 and so on.")
    return {
        "EMAIL_HOST": parts.hostname or "",
        "EMAIL_PORT": port or MAIL_PORTS.get(scheme, 25),
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_TLS": scheme == "smtp+tls",
        "EMAIL_USE_SSL": scheme == "smtp+ssl",
    }


def currency(name: str, default: str) -> str:
    """Return the currency in a variable, or the default. Raises ImproperlyConfigured unless it is three capitals."""
    given = string(name, default)
    if not (len(given) == 3 and given.isascii() and given.isalpha() and given.isupper()):
        raise ImproperlyConfigured(f"{name}: must be three capital letters such as USD, got {shown(given)}.")
    return given


def hosts(name: str) -> list[str]:
    """Return the hosts in a variable, separated by commas. Raises ImproperlyConfigured for what is none."""
    given = [item.lower() for item in items(name)]
    for item in given:
        if not HOST.fullmatch(item):
            raise ImproperlyConfigured(f"{name}: must be hosts such as openrouter.ai, got {shown(item)}.")
    if len(given) > MAX_HOSTS:
        raise ImproperlyConfigured(f"{name}: must be at most {MAX_HOSTS} hosts, got {len(given)}.")
    return given


def rate(name: str, default: str) -> str:
    """Return the rate in a variable, or "" for "off". Raises ImproperlyConfigured for what is no rate."""
    given = string(name, default)
    if given == "off":
        return ""
    try:
        Limit.parse(given)
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name}: must be a rate such as {default}, or off, got {shown(given)}.") from exc
    return given


def database(name: str) -> dict[str, Any] | None:
    """
    Return the database that a variable names, in the form of Django's settings, or None if the variable is not set.

    Raises:
        ImproperlyConfigured: The address cannot be used. The message does not show it, because it has a password.
    """
    given = string(name).strip()
    if not given:
        return None
    if given.partition("://")[0] not in _DATABASES:
        raise ImproperlyConfigured(f"{name}: must begin with postgres:// or sqlite:///.")
    try:
        result: dict[str, Any] = environ.Env.db_url_config(given)
    except ValueError:
        rule = "must have the form postgres://USER:PASSWORD@HOST:5432/NAME"
        raise ImproperlyConfigured(f"{name}: {rule}; write @ / ? # in a password as %40 and so on.") from None
    if not result["NAME"]:
        raise ImproperlyConfigured(f"{name}: the name of the database must follow the host.")
    return result
