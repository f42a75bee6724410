"""All looks at a store, in the order in which one explains the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from enforcement.doctor import fleet, server, sharing
from enforcement.doctor.endpoint import shown, transport
from enforcement.doctor.findings import Finding, Level, looked, worst
from enforcement.model.keys import Keys
from enforcement.settings import Settings
from enforcement.store.client import connect
from enforcement.store.cluster import ClusterClient

PATIENCE_SECONDS = 5.0


class Unreachable(Exception):
    """The store could not be looked at; ``finding`` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.value)
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Checkup:
    """
    What was found.

    Attributes:
        endpoint: The store's URL without passwords.
        prefix: What all keys begin with.
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
    Look at the store that a limiter with these settings would use.

    Raises:
        ValueError: The URL or the prefix cannot be used.
        Unreachable: It does not answer, or not to this account.
    """
    keys = Keys(settings.prefix)
    with connect(settings.url, timeout=PATIENCE_SECONDS, encoding_errors="replace") as client:
        _reach(client, settings.url)
        return Checkup(shown(settings.url), settings.prefix, tuple(_looks(client, keys, settings)))


def _looks(client: Redis, keys: Keys, settings: Settings) -> Iterator[Finding]:
    yield from transport(settings.url)
    yield from looked("server", lambda: _of_every_server(client))
    yield from looked("functions", lambda: fleet.functions(client))
    yield from looked("shared counter", lambda: sharing.proof(client, keys, settings.url))
    yield from looked("round trip", lambda: sharing.round_trips(client, keys, settings.timeout))
    yield from looked("rights", lambda: fleet.rights(client, keys))
    yield from looked("documents", lambda: fleet.documents(client, keys))
    yield from looked("instances", lambda: fleet.instances(client, keys))


def _of_every_server(client: Redis) -> Iterator[Finding]:
    """Look at the server, or at every primary of a cluster, of which only those are named that are not well."""
    if not isinstance(client, ClusterClient):
        yield from _of_server(client)
        return
    by_name: dict[str, list[tuple[str, Finding]]] = {}
    for place, one in client.primaries():
        for finding in _of_server(one):
            by_name.setdefault(finding.name, []).append((place, finding))
    for rows in by_name.values():
        unwell = [replace(found, value=f"{place}: {found.value}") for place, found in rows if found.level != "ok"]
        yield from unwell or [replace(rows[0][1], value=f"{len(rows)} primaries, one of them: {rows[0][1].value}")]


def _of_server(client: Redis) -> list[Finding]:
    return [
        *looked("server", lambda: server.identity(client)),
        *looked("eviction", lambda: server.memory(client)),
        *looked("persistence", lambda: server.persistence(client)),
        *looked("clock", lambda: server.clock(client)),
    ]


def _reach(client: Redis, url: str) -> None:
    """Ask for a sign of life. Raises Unreachable."""
    try:
        client.ping()
    except AuthenticationError as exc:
        advice = "The user name or the password is wrong, or the server wants one."
        raise Unreachable(Finding("connection", "problem", str(exc), advice)) from exc
    except (RedisError, OSError) as exc:
        advice = f"Does a server listen at {shown(url)}, and can this host reach it?"
        raise Unreachable(Finding("connection", "problem", f"{type(exc).__name__}: {exc}", advice)) from exc
