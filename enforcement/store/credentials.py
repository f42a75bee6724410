"""Take the address and the credentials of a store from a redis-py client, or from a function that returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ssl import CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED
from typing import Any, Final
from urllib.parse import quote, urlencode

from redis.credentials import CredentialProvider

Credentials = Callable[[], tuple[str, str]]
"""Returns user and password for a new connection. It must return at once, so keep a token in memory and renew it."""

_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_TLS_DEFAULTS: Final = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
_VERIFICATION: Final = {None: "none", CERT_NONE: "none", CERT_OPTIONAL: "optional", CERT_REQUIRED: "required"}
"""The names that URLs have for the ways to verify a certificate, by the values of redis-py."""


class Provider(CredentialProvider):
    """Gives the credentials of a function to redis-py."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def get_credentials(self) -> tuple[str, str]:
        """Return user and password, asked for anew."""
        return self._credentials()


def from_client(client: object) -> tuple[str, Credentials | None]:
    """
    Return the URL of a redis-py client or pool, and a function that asks its provider for credentials, or None without
    one.

    Only the address is taken. The limiter makes connections of its own, with its own time limits.

    Raises:
        ValueError: It is no client or pool of a single server, or a TLS option cannot be kept.
    """
    pool = getattr(client, "connection_pool", client)
    given = getattr(pool, "connection_kwargs", None)
    if not isinstance(given, dict) or "connection_pool" in given:
        raise ValueError(
            "url: must begin with redis://, or be a redis-py client or pool of one server, got "
            f"{type(client).__name__}. Name sentinels or a cluster in a URL."
        )
    kinds = getattr(pool, "connection_class", object).__mro__
    if any(kind.__module__.partition(".")[0] == "fakeredis" for kind in kinds):
        # Its address would be that of a real server.
        raise ValueError("url: must not be of fakeredis, which cannot run the functions. Use enforcement.embedded.")
    provider = given.get("credential_provider")
    user, password = ("", "") if provider else (given.get("username") or "", given.get("password") or "")
    account = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    database = int(given.get("db") or 0)
    credentials = _asking(provider) if provider else None
    if "path" in given:
        return f"unix://{account}{quote(given['path'])}?db={database}", credentials
    host = given.get("host", "localhost")
    place = f"{account}{f'[{host}]' if ':' in host else host}:{given.get('port', 6379)}/{database}"
    tls = any("SSL" in kind.__name__ for kind in kinds)
    return (f"rediss://{place}{_tls_query(given)}" if tls else f"redis://{place}"), credentials


def _tls_query(given: Mapping[str, Any]) -> str:
    """Return the TLS options of a client as the query of a URL with its "?", or "" if there are none."""
    options = {name: value for name, value in given.items() if name.startswith("ssl_") and value not in (None, False)}
    if given.get("ssl_check_hostname") is False:
        options["ssl_check_hostname"] = False
    if "ssl_cert_reqs" in given:
        options["ssl_cert_reqs"] = _VERIFICATION.get(given["ssl_cert_reqs"], given["ssl_cert_reqs"])
    unknown = sorted(set(options) - {*_TLS})
    if unknown:
        raise ValueError(f"url: the client's {unknown[0]} cannot be kept. Give a URL, with {', '.join(_TLS)}.")
    kept = {name: value for name, value in options.items() if value != _TLS_DEFAULTS.get(name)}
    return f"?{urlencode(kept)}" if kept else ""


def _asking(provider: Any) -> Credentials:
    def credentials() -> tuple[str, str]:
        found = provider.get_credentials()
        return ("", found[0]) if len(found) == 1 else (found[0] or "", found[1])

    return credentials
