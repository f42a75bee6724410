"""Read the settings of the proxy from the environment."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from enforcement.doors.proxy.credentials import Credentials, from_settings
from enforcement.doors.proxy.fields import has_dot_segments
from enforcement.doors.proxy.places import MOST_PLACES, USUAL_PLACES, Places
from enforcement.http.addresses import TrustedProxies
from enforcement.http.asgi import PRIVATE_NETWORKS
from enforcement.http.messages import check_anonymous, check_preset
from enforcement.metering.bound import ReadOptions, field_rates
from enforcement.settings import read_seconds, read_switch, read_variable

MOST_FILE_BYTES: Final = 1_000_000

CAP_FIELDS: Final = ("max_completion_tokens", "max_tokens")
"""Fields of chat completions for a cap. Many servers know the second one only."""

_HOST: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?|[0-9a-f:.]+(?:%[a-z0-9._-]+)?")

_KEYS: Final = {
    "credential": "value",
    "credential_file": "file",
    "credential_folder": "folder",
    "credential_field": "field",
}
"""Names of settings, and the names that :func:`from_settings` has for them."""
_ALLOWED: Final = "allowed_fields"
_ASKING: Final = ("include_usage", "cap_field")


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """
    Where the requests below one path go.

    Attributes:
        prefix: The path, without a slash at its end. Empty: all requests that no other prefix fits.
        tls: Whether the upstream speaks TLS.
        host: Its name or address.
        port: Its port.
        base: The path that replaces the prefix, without a slash at its end.
        credentials: What it gets in place of the token.
        allowed_fields: The fields of requests that a bound admits beside those that it knows.
        asking: How its requests are written otherwise than usual: ``include_usage`` and ``cap_field`` of
            :func:`~enforcement.metering.request.read_request`, as far as they are set.
    """

    prefix: str
    tls: bool
    host: str
    port: int
    base: str
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    allowed_fields: Mapping[str, int] = field(default_factory=dict, hash=False)
    asking: ReadOptions = field(default_factory=ReadOptions)

    @property
    def authority(self) -> bytes:
        """The value of ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}").encode("ascii")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """
    The settings of the proxy, beside those of its limiter.

    Attributes:
        upstreams: Where requests go, the longest prefix first.
        silence: Seconds that an upstream may be silent.
        headers: Preset of the rate limit fields.
        trusted: Networks whose forwarding fields are trusted.
        anonymous: Slug of the project of requests without a token. None: they are refused.
        meters: Whether requests to providers of models are metered, if a limit of their token needs it.
        metrics: The networks that may read ``/metrics``.
        usage_endpoint: Whether each token can see its own limits.
        places: How many requests may be under way to each upstream, and how they are shared.
        json_rpc: Paths of MCP servers, whose denials are errors of JSON-RPC.
    """

    upstreams: tuple[UpstreamSettings, ...]
    silence: float
    headers: str
    trusted: tuple[str, ...]
    anonymous: str | None
    metrics: TrustedProxies
    usage_endpoint: bool = True
    meters: bool = True
    places: Places = USUAL_PLACES
    json_rpc: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ProxySettings:
        """
        Return new settings from environment variables.

        Raises:
            ValueError: A variable is missing or breaks a rule. The message names it.
        """

        trusted = tuple(name for name in environ.get("SLUICEGATE_TRUSTED_PROXIES", "").split(",") if name.strip())
        read_variable(environ, "SLUICEGATE_TRUSTED_PROXIES", "", lambda text: TrustedProxies(text.split(",")))
        return cls(
            upstreams=_upstreams(environ),
            silence=read_seconds(environ, "SLUICEGATE_UPSTREAM_TIMEOUT", "60"),
            places=_places(environ),
            json_rpc=read_variable(environ, "SLUICEGATE_MCP_PATHS", "", _paths),
            headers=read_variable(environ, "SLUICEGATE_HEADERS", "ietf", check_preset),
            trusted=trusted,
            anonymous=read_variable(environ, "SLUICEGATE_ANONYMOUS_PROJECT", "", _anonymous),
            meters=read_variable(environ, "SLUICEGATE_METER", "auto", _meters),
            metrics=read_variable(
                environ, "SLUICEGATE_METRICS_NETWORKS", PRIVATE_NETWORKS, lambda text: TrustedProxies(text.split(","))
            ),
            usage_endpoint=read_switch(environ, "SLUICEGATE_USAGE_ENDPOINT", default=True),
        )


def _places(environ: Mapping[str, str]) -> Places:
    def read(name: str, default: int, most: int) -> int:
        def convert(text: str) -> int:
            if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
                raise ValueError(f"must be an integer from 1 to {most}, got {text!r}.")
            return int(text)

        return read_variable(environ, name, str(default), convert)

    return Places(
        read("SLUICEGATE_UPSTREAM_PLACES", USUAL_PLACES.number, MOST_PLACES),
        read("SLUICEGATE_TOKEN_SHARE", USUAL_PLACES.token_share, 100),
        read("SLUICEGATE_PROJECT_SHARE", USUAL_PLACES.project_share, 100),
    )


def _upstreams(environ: Mapping[str, str]) -> tuple[UpstreamSettings, ...]:
    names = ("url", *_KEYS, _ALLOWED, *_ASKING)
    single = {key: environ.get(f"SLUICEGATE_UPSTREAM_{key.upper()}", "") for key in names}
    file = environ.get("SLUICEGATE_UPSTREAMS_FILE", "")
    if not file:
        try:
            return (_upstream("", single, _pairs(single[_ALLOWED])),)
        except ValueError as exc:
            name, _, rule = str(exc).partition(": ")
            raise ValueError(f"SLUICEGATE_UPSTREAM_{name.upper()}: {rule}") from exc
    used = next((key for key, value in single.items() if value), None)
    if used is not None:
        raise ValueError(f"SLUICEGATE_UPSTREAM_{used.upper()}: must not be set beside SLUICEGATE_UPSTREAMS_FILE.")
    try:
        return _from_file(Path(file), environ)
    except ValueError as exc:
        raise ValueError(f"SLUICEGATE_UPSTREAMS_FILE: {file}: {exc}") from exc


def _from_file(path: Path, environ: Mapping[str, str]) -> tuple[UpstreamSettings, ...]:
    try:
        content = path.read_bytes()[: MOST_FILE_BYTES + 1]
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror}.") from exc
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"must have at most {MOST_FILE_BYTES} bytes.")
    tables = tomllib.loads(content.decode())
    if not tables:
        raise ValueError("must have a table for each path, such as ['/'].")
    found = [_from_table(prefix, table, environ) for prefix, table in tables.items()]
    if len({upstream.prefix for upstream in found}) < len(found):
        raise ValueError("must not have two tables for one path.")
    return tuple(sorted(found, key=lambda upstream: -len(upstream.prefix)))


def _from_table(prefix: str, table: object, environ: Mapping[str, str]) -> UpstreamSettings:
    try:
        if not (prefix.startswith("/") and prefix.isascii() and prefix.isprintable()) or "%" in prefix or "?" in prefix:
            raise ValueError("prefix: must be a path of printable ASCII characters, such as '/v1'.")
        if has_dot_segments(prefix) or " " in prefix:
            raise ValueError("prefix: must not have a space or a segment '.' or '..'.")
        known = {"url", "credential_variable", *_KEYS, _ALLOWED, *_ASKING}
        allowed: object = {}
        if isinstance(table, dict):
            table = dict(table)
            allowed = table.pop(_ALLOWED, {})
            if type(table.get("include_usage")) is bool:
                table["include_usage"] = str(table["include_usage"]).lower()
        if not isinstance(allowed, dict):
            raise ValueError(f"{_ALLOWED}: must be a table of fields, such as {{ turbo = 'none' }}.")
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise ValueError(f"prefix: must be a table of strings, with {', '.join(sorted(known))}.")
        if "credential" in table:
            raise ValueError("credential: must not stand in this file. Name a file or a variable that holds it.")
        if unknown := sorted(table.keys() - known):
            raise ValueError(f"{unknown[0]}: must be one of {', '.join(sorted(known - {'credential'}))}.")
        settings = dict(table)
        if variable := settings.pop("credential_variable", ""):
            if not environ.get(variable):
                raise ValueError(f"credential_variable: must name a variable that is set, got {variable!r}.")
            settings["credential"] = environ[variable]
        return _upstream(prefix.rstrip("/"), settings, allowed)
    except ValueError as exc:
        raise ValueError(f"[{prefix!r}] {exc}") from exc


def _pairs(text: str) -> dict[str, str]:
    """Return the fields and their rates of a text such as ``turbo=none,service_tier=scale=1.5``."""
    pairs = [pair.strip().rpartition("=") for pair in text.split(",") if pair.strip()]
    return {way: value for way, _, value in pairs}


def _upstream(prefix: str, settings: Mapping[str, str], allowed: Mapping[str, object]) -> UpstreamSettings:
    text = settings.get("url", "")
    rule = f"url: must be an http or https URL without a query, a fragment or a user, got {text!r}."
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise ValueError(rule) from exc
    host, base = url.hostname or "", url.path.rstrip("/")
    odd = url.query or url.fragment or "?" in text or "@" in url.netloc or not text.isascii() or not text.isprintable()
    if (
        url.scheme not in ("http", "https")
        or not _HOST.fullmatch(host)
        or odd
        or " " in text
        or has_dot_segments(base)
        or port == 0
    ):
        raise ValueError(rule)
    tls = url.scheme == "https"
    try:
        credentials = from_settings({name: settings.get(key, "") for key, name in _KEYS.items()})
    except ValueError as exc:
        name, _, reason = str(exc).partition(": ")
        key = next(key for key, value in _KEYS.items() if value == name)
        raise ValueError(f"{key}: {reason}") from exc
    try:
        fields = field_rates(allowed)
    except ValueError as exc:
        raise ValueError(f"{_ALLOWED}: {exc}") from exc
    address = (prefix, tls, host, port or (443 if tls else 80), base)
    return UpstreamSettings(*address, credentials, fields, _asking(settings))


def _asking(settings: Mapping[str, str]) -> ReadOptions:
    """Return the options that are set, or raise ValueError."""
    result: ReadOptions = {}
    if text := settings.get("include_usage", ""):
        if text not in ("true", "false"):
            raise ValueError(f"include_usage: must be true or false, got {text!r}.")
        if text == "false":
            result["include_usage"] = False
    if text := settings.get("cap_field", ""):
        if text not in CAP_FIELDS:
            raise ValueError(f"cap_field: must be one of {', '.join(CAP_FIELDS)}, got {text!r}.")
        result["cap_field"] = text
    return result


def _meters(text: str) -> bool:
    if text not in ("auto", "off"):
        raise ValueError(f"must be auto or off, got {text!r}.")
    return text == "auto"


def _paths(text: str) -> tuple[str, ...]:
    result = tuple(path.strip() for path in text.split(",") if path.strip())
    if not all(path.startswith("/") for path in result):
        raise ValueError(f"must be paths that begin with /, separated by commas, got {text!r}.")
    return result


def _anonymous(text: str) -> str | None:
    check_anonymous(text or None)
    return text or None
