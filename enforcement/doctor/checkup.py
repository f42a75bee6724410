"""All looks at a store, in the order in which one explains the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from enforcement.doctor import fleet, server, sharing
from enforcement.doctor.endpoint import shown, transport
from enforcement.doctor.findings import Finding, Level, looked, worst
from enforcement.engine import Settings
from enforcement.keys import Keys
from enforcement.store import connect

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
    yield from looked("server", lambda: server.identity(client))
    yield from looked("eviction", lambda: server.memory(client))
    yield from looked("persistence", lambda: server.persistence(client))
    yield from looked("clock", lambda: server.clock(client))
    yield from looked("functions", lambda: fleet.functions(client))
    yield from looked("shared counter", lambda: sharing.proof(client, keys, settings.url))
    yield from looked("round trip", lambda: sharing.round_trips(client, keys, settings.timeout))
    yield from looked("rights", lambda: fleet.rights(client, keys))
    yield from looked("documents", lambda: fleet.documents(client, keys))
    yield from looked("instances", lambda: fleet.instances(client, keys))


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
