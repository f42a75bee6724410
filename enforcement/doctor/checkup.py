"""Run all checks of a store. The order is that of the report: a cause comes before its effects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from enforcement.doctor import fleet, server, sharing, variables
from enforcement.doctor.endpoint import shown, transport
from enforcement.doctor.findings import Finding, Level, checked, worst
from enforcement.doctor.prices import last_week, prices
from enforcement.model.keys import Keys
from enforcement.settings import Settings
from enforcement.store.base_client import StoreClient
from enforcement.store.client import connect

PATIENCE_SECONDS = 5.0


class StoreUnreachable(Exception):
    """The store cannot be reached. ``finding`` holds the reason."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.value)
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Checkup:
    """
    The report on a store.

    Attributes:
        endpoint: The store's URL without passwords.
        prefix: The prefix of all keys.
        findings: In the order of the checks.
    """

    endpoint: str
    prefix: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The level of the worst finding."""
        return worst(self.findings)


def examine(settings: Settings) -> Checkup:
    """
    Examine the store that these settings name, and return a :class:`Checkup` of findings, or raise StoreUnreachable.

    Raises:
        ValueError: The URL or the prefix is not valid.
        StoreUnreachable: The store does not reply, or refuses this account.
    """
    keys = Keys(settings.prefix)
    with connect(settings.url, timeout=PATIENCE_SECONDS, encoding_errors="replace") as client:
        _reach(client, settings.url)
        return Checkup(shown(settings.url), settings.prefix, tuple(_checks(client, keys, settings)))


def _checks(client: StoreClient, keys: Keys, settings: Settings) -> Iterator[Finding]:
    yield from variables.unknown(os.environ)
    yield from transport(settings.url)
    yield from checked("server", lambda: _every_server(client))
    yield from checked("functions", lambda: fleet.functions(client))
    yield from checked("shared counter", lambda: sharing.proof(client, keys, settings.url))
    yield from checked("round trip", lambda: sharing.round_trips(client, keys, settings.timeout))
    yield from checked("rights", lambda: fleet.rights(client, keys))
    yield from checked("documents", lambda: fleet.documents(client, keys))
    yield from checked("shared keys", lambda: fleet.shared_keys(client, keys))
    yield from checked("instances", lambda: fleet.instances(client, keys))
    yield from checked("prices", lambda: prices(client, keys))
    yield from checked("reservations", lambda: fleet.reservations(client, keys))
    yield from checked("last week", lambda: last_week(client, keys))


def _every_server(client: StoreClient) -> Iterator[Finding]:
    """
    Yield the findings on the only server, or on all primaries, where findings that are all ok are joined into one.

    If all primaries of a cluster pass a check, there is one finding for all of them. Otherwise there is one for each
    primary that has a problem.
    """
    primaries = client.primaries()
    if len(primaries) == 1:
        yield from _one_server(primaries[0][1])
        return
    by_name: dict[str, list[tuple[str, Finding]]] = {}
    for address, primary in primaries:
        for finding in _one_server(primary):
            by_name.setdefault(finding.name, []).append((address, finding))
    for rows in by_name.values():
        unwell = [replace(found, value=f"{address}: {found.value}") for address, found in rows if found.level != "ok"]
        yield from unwell or [replace(rows[0][1], value=f"{len(rows)} primaries, one of them: {rows[0][1].value}")]


def _one_server(client: Redis) -> list[Finding]:
    return [
        *checked("server", lambda: server.identity(client)),
        *checked("eviction", lambda: server.memory(client)),
        *checked("persistence", lambda: server.persistence(client)),
        *checked("clock", lambda: server.clock(client)),
    ]


def _reach(client: Redis, url: str) -> None:
    """Send PING to the store, and raise StoreUnreachable if it does not reply or refuses the account."""
    try:
        client.ping()
    except AuthenticationError as exc:
        advice = "The user name or the password is wrong, or the server requires a password."
        raise StoreUnreachable(Finding("connection", "problem", str(exc), advice)) from exc
    except (RedisError, OSError) as exc:
        raise StoreUnreachable(Finding("connection", "problem", f"{type(exc).__name__}: {exc}", _advice(url))) from exc


def _advice(url: str) -> str:
    """Return what to look at if the store cannot be reached. It depends on the kind of store that the URL names."""
    scheme = url.partition("://")[0]
    if scheme.endswith("+cluster"):
        return "Do nodes of a cluster listen there? The address of a single server begins with redis://."
    if scheme.endswith("+sentinel"):
        return "Do sentinels listen there, and do they know this service? A server's address begins with redis://."
    if scheme in ("rediss", "valkeys"):
        return (
            f"Does a server listen at {shown(url)}, and does it use TLS? Without TLS its address begins with redis://."
        )
    return f"Does a server listen at {shown(url)}, and can this host reach it?"
