"""Read the settings of the decision service from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from enforcement.http.addresses import TrustedProxies
from enforcement.http.asgi import PRIVATE_NETWORKS
from enforcement.http.messages import check_anonymous, check_preset
from enforcement.model.checks import check_secret, shown
from enforcement.model.tokens import Anonymous
from enforcement.service.rls_mapping import RlsMapping
from enforcement.settings import LEAST_TIMEOUT, Settings, read_switch, read_variable

LOCAL: Final = "127.0.0.0/8, ::1, unix"
"""The networks of a proxy on this host."""

MOST_DEADLINE_MS: Final = 20_000

DRAINING_FILE: Final = "SLUICEGATE_DRAINING_FILE"
"""The variable that names the file of :attr:`ServiceSettings.draining_file`."""

_FIELD_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """
    The settings of the decision service, beside those of its limiter.

    Attributes:
        headers: Preset of the rate limit fields in responses.
        trusted: The proxies that may say which request they ask for.
        callers: The peers that may ask. None: every peer may.
        secret: What a caller must send as ``Sluicegate-Secret``. Empty: nothing.
        metrics: The networks that may read ``/metrics``.
        anonymous: Stands for requests without a token. None: they are refused.
        costs_field: Lower-case name of the header field from which costs are read. Empty: every request costs 1.
        attributes_field: Lower-case name of the header field from which further attributes are read. Empty: none are.
        rls: What the entries of rate limit descriptors stand for.
        usage_endpoint: Whether each token can see its own limits.
        draining_file: While this file exists, the service says that it is not ready. Empty: there is none.
    """

    headers: str = "ietf"
    trusted: TrustedProxies = field(default_factory=lambda: TrustedProxies(LOCAL.split(",")))
    callers: TrustedProxies | None = None
    secret: bytes = field(default=b"", repr=False)
    metrics: TrustedProxies = field(default_factory=lambda: TrustedProxies(PRIVATE_NETWORKS.split(",")))
    anonymous: Anonymous | None = None
    costs_field: bytes = b""
    attributes_field: bytes = b""
    rls: RlsMapping = field(default_factory=RlsMapping)
    usage_endpoint: bool = True
    draining_file: str = ""

    @property
    def restricted(self) -> bool:
        """Whether only callers may ask that are named or show the secret."""
        return self.callers is not None or bool(self.secret)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ServiceSettings:
        """
        Return new settings from environment variables, or raise ValueError.

        The page "Decision service" of the documentation (``templates/docs/service.md``) lists them.

        Raises:
            ValueError: A variable breaks a rule. The message names it.
        """

        for name in ("SLUICEGATE_SERVICE_CALLERS", "SLUICEGATE_SERVICE_SECRET"):
            # Elsewhere an empty variable counts as not set. Here everybody might ask, because a secret was not found.
            if environ.get(name, "-").strip(", ") == "":
                raise ValueError(f"{name}: must not be empty. Remove the variable if everybody may ask.")
        return cls(
            headers=read_variable(environ, "SLUICEGATE_HEADERS", "ietf", check_preset),
            trusted=read_variable(environ, "SLUICEGATE_TRUSTED_PROXIES", LOCAL, _networks),
            callers=read_variable(
                environ, "SLUICEGATE_SERVICE_CALLERS", "", lambda text: _networks(text) if text else None
            ),
            secret=read_variable(environ, "SLUICEGATE_SERVICE_SECRET", "", _secret),
            metrics=read_variable(environ, "SLUICEGATE_METRICS_NETWORKS", PRIVATE_NETWORKS, _networks),
            anonymous=read_variable(
                environ, "SLUICEGATE_ANONYMOUS_PROJECT", "", lambda text: check_anonymous(text or None)
            ),
            costs_field=read_variable(environ, "SLUICEGATE_COSTS_HEADER", "", _field_name),
            attributes_field=read_variable(environ, "SLUICEGATE_ATTRIBUTES_HEADER", "", _field_name),
            rls=read_variable(
                environ, "SLUICEGATE_RLS_MAPPING", "", lambda path: RlsMapping.read(path) if path else RlsMapping()
            ),
            usage_endpoint=read_switch(environ, "SLUICEGATE_USAGE_ENDPOINT", default=True),
            draining_file=environ.get(DRAINING_FILE, ""),
        )


def limiter_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """
    Return the settings of the limiter from environment variables, or raise ValueError.

    ``SLUICEGATE_DEADLINE_MS`` is the milliseconds that a caller waits for the whole answer. If it is not set, a look-up
    and a decision have the time that ``SLUICEGATE_LOOKUP_MS`` and ``SLUICEGATE_TIMEOUT_MS`` give them.
    """
    settings, text = Settings.from_env(environ), environ.get("SLUICEGATE_DEADLINE_MS") or ""
    if not text:
        return settings
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MOST_DEADLINE_MS):
        raise ValueError(f"SLUICEGATE_DEADLINE_MS: must be an integer from 1 to {MOST_DEADLINE_MS}, got {shown(text)}.")
    try:
        return within(settings, int(text) / 1_000)
    except ValueError as exc:
        raise ValueError(f"SLUICEGATE_DEADLINE_MS: {str(exc).removeprefix('deadline: ')}") from exc


def within(settings: Settings, deadline: float) -> Settings:
    """
    Return a copy of the settings of a limiter, with which a look-up and the decision after it end before a deadline.

    The look-up of a token that was not met before gets what the decision leaves.

    Args:
        deadline: Seconds that a caller waits for the whole answer.
    Raises:
        ValueError: A decision alone may take as long.
    """
    rest = deadline - settings.timeout
    if rest < max(LEAST_TIMEOUT, settings.timeout):
        least = 2_000 * settings.timeout
        raise ValueError(
            f"deadline: must be at least {least:g} ms, which is twice SLUICEGATE_TIMEOUT_MS, got {1_000 * deadline:g}."
        )
    return replace(settings, lookup=min(settings.lookup, rest))


def _networks(text: str) -> TrustedProxies:
    return TrustedProxies(text.split(","))


def _secret(text: str) -> bytes:
    if text:
        check_secret("secret", text)
        if not (text.isascii() and text.isprintable()) or text != text.strip():
            # Such as the line break at the end of a file. No caller could ever show it.
            raise ValueError("must be printable ASCII without blanks at its ends, as it is sent in a header field.")
    return text.encode()


def _field_name(text: str) -> bytes:
    name = text.lower()
    if name and not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"must be the name of a header field, got {shown(text)}.")
    return name.encode()
