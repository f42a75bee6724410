"""Show the address of a store without its passwords, and check whether the connection is encrypted."""

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
    """Return the URL of a store with its passwords replaced by ``***``."""

    def hide(found: re.Match[str]) -> str:
        account = found[1]
        return "://" if account is None else f"://{account.partition(':')[0]}:***@"

    return _SECRET.sub(r"\1***", _ACCOUNT.sub(hide, url, count=1))


def hosts(url: str) -> list[str]:
    """Return the hosts in a URL without their ports, or an empty list for a Unix socket."""
    if url.startswith("unix://"):
        return []
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    return [unquote(_PORT.sub("", part).strip("[]")) or "localhost" for part in authority.split(",")]


def transport(url: str) -> Iterator[Finding]:
    """Yield one finding, which is a warning if the URL leads to another machine without verified TLS."""
    if url.startswith("unix://"):
        yield Finding("transport", "ok", "a socket of this machine")
    elif url.startswith(("rediss", "valkeys")):
        if "ssl_cert_reqs=none" in url:
            advice = (
                "Set ssl_ca_certs in place of ssl_cert_reqs=none. Otherwise a machine in between can read everything."
            )
            yield Finding("transport", "warning", "TLS, but the certificate is not verified", advice)
        else:
            yield Finding("transport", "ok", "TLS")
    elif all(map(_is_loopback, hosts(url))):
        yield Finding("transport", "ok", "not encrypted, on this machine")
    else:
        yield Finding(
            "transport",
            "warning",
            "not encrypted, to another machine",
            "Use rediss://. Otherwise a machine in between can read and change passwords and counters.",
        )


def _is_loopback(host: str) -> bool:
    try:
        found = {row[4][0] for row in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)
