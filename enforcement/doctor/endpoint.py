"""Where the store is, told without its password, and whether others can listen."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from enforcement.doctor.findings import Finding

_ACCOUNT: Final = re.compile(r"://(?:([^/?#]*)@)?", re.DOTALL)
_SECRET: Final = re.compile(r"(?i)((?:^|[?&])[^=&]*password=)[^&#]*")
_PORT: Final = re.compile(r":\d*$")


def shown(url: str) -> str:
    """Return a store's URL as it may be shown: account names stay, passwords do not."""

    def hide(found: re.Match[str]) -> str:
        account = found[1]
        return "://" if account is None else f"://{account.partition(':')[0]}:***@"

    return _SECRET.sub(r"\1***", _ACCOUNT.sub(hide, url, count=1))


def hosts(url: str) -> list[str]:
    """Return the hosts that a URL names; none for a socket of this machine."""
    if url.startswith("unix://"):
        return []
    place = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    return [unquote(_PORT.sub("", part).strip("[]")) or "localhost" for part in place.split(",")]


def transport(url: str) -> Iterator[Finding]:
    """Say whether what is sent can be read on its way."""
    if url.startswith("unix://"):
        yield Finding("transport", "ok", "a socket of this machine")
    elif url.startswith("rediss"):
        if "ssl_cert_reqs=none" in url:
            advice = "Give ssl_ca_certs in place of ssl_cert_reqs=none: whoever is between can read all."
            yield Finding("transport", "warning", "TLS, but the certificate is not verified", advice)
        else:
            yield Finding("transport", "ok", "TLS")
    elif all(map(_is_here, hosts(url))):
        yield Finding("transport", "ok", "not encrypted, on this machine")
    else:
        yield Finding(
            "transport",
            "warning",
            "not encrypted, to another machine",
            "Use rediss://: passwords and counters can be read, and changed, on the way.",
        )


def _is_here(host: str) -> bool:
    try:
        found = {row[4][0] for row in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)
