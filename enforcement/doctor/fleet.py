"""What is published, who obeys it, and what the account that looks could change."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from enforcement.doctor.findings import Finding, pairs
from enforcement.engine.agent import HEARTBEAT_LIFETIME_MS
from enforcement.lua import LIBRARY_NAME, library_source
from enforcement.model.documents import InvalidDocument, loads
from enforcement.model.keys import Keys
from enforcement.store.client import load_library

MOST_SHOWN: Final = 20
_READ_AT_ONCE: Final = 1_000


def functions(client: Redis) -> Iterator[Finding]:
    """Say which versions of the function library the server has, and whether this one is as it was shipped."""
    found = {}
    for reply in client.function_list(library="sluicegate_*", withcode=True):
        library = pairs(reply)
        found[library["library_name"]] = library["library_code"]
    if LIBRARY_NAME not in found:
        load_library(client)  # as the first limiter would have done
        yield Finding("functions", "ok", f"{LIBRARY_NAME} was not there, and is loaded now")
        return
    beside = ", ".join(sorted(found.keys() - {LIBRARY_NAME}))
    value = f"{LIBRARY_NAME}{f', beside {beside}' if beside else ''}"
    if found[LIBRARY_NAME] == library_source():
        yield Finding("functions", "ok", value)
    else:
        advice = "Install one release everywhere, then load its functions with 'manage.py publish --all'."
        yield Finding("functions", "warning", f"{value}; its text is not this release's", advice)


def documents(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Say which state of the policies the store holds."""
    names = ["revision", "store_id", "published_at_us"]
    revision, store_id, at = cast("list[str | None]", client.hmget(keys.documents, names))
    if revision is None:
        advice = "Limits in code work; for tokens and policies run 'manage.py publish --all', with this prefix."
        yield Finding("documents", "warning", f"none below the prefix {keys.prefix!r}", advice)
        return
    yield Finding("documents", "ok", f"revision {revision} of store {store_id}, published {_instant(at or '')}")


def instances(client: Redis, keys: Keys) -> Iterator[Finding]:
    """Say who lives and which revision each runs; an account that may not list them can still count them."""
    try:
        ids = cast("list[str]", client.zrevrange(keys.instances, 0, _READ_AT_ONCE - 1))
        texts = client.mget(map(keys.instance, ids)) if ids else []
    except NoPermissionError:
        since_us = client.time()[0] * 1_000_000 - HEARTBEAT_LIFETIME_MS * 1_000
        alive = client.zcount(keys.instances, since_us, "+inf")
        yield Finding("instances", "ok", f"{alive} alive; this account may count them and not look at them")
        return
    live = sorted(_heartbeats(texts), key=lambda row: str(row.get("id")))
    present = cast("str | None", client.hget(keys.documents, "revision")) or "0"
    behind = [row for row in live if str(row.get("revision")) != present]
    degraded = [row for row in live if row.get("state") == "degraded"]
    shown = [f"{row.get('id')} at {row.get('revision')} ({row.get('state')})" for row in live[:MOST_SHOWN]]
    more = [f"and {len(live) - MOST_SHOWN} more"] if len(live) > MOST_SHOWN else []
    value = f"{len(live)} alive{': ' if live else ''}{', '.join(shown + more)}"
    if behind:
        advice = f"{len(behind)} not at revision {present}: look again in a second, then into their logs."
        yield Finding("instances", "warning", value, advice)
    elif degraded:
        yield Finding("instances", "warning", value, "Degraded ones decide without the store: can they reach it?")
    else:
        yield Finding("instances", "ok", value)


def _instant(text: str) -> str:
    """Spell microseconds since the epoch; what is none is shown as it is."""
    if not text.isdecimal() or len(text) > 16:
        return repr(text)
    return f"{datetime.fromtimestamp(int(text) / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _heartbeats(texts: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for text in texts:
        if text:  # else it expired: the set remembers ids for longer
            with suppress(InvalidDocument):  # not one of ours
                yield loads(text)


def rights(client: Redis, keys: Keys) -> Iterator[Finding]:
    """
    Say whether this account could change documents.

    It tries: commands that change nothing, on what is not there. What is refused leaves an entry in ``ACL LOG``.
    """
    nothing, absent = f"doctor-{secrets.token_hex(8)}", keys.token(secrets.token_hex(32))
    attempts = (
        ("HDEL", keys.documents, nothing),
        ("SET", absent, nothing, "XX"),
        ("UNLINK", absent),
        ("XDEL", keys.log, "0-1"),
    )
    could = [attempt[0] for attempt in attempts if _may(client, attempt)]
    if could:
        advice = "Fine for the control plane. Give proxies the account 'enforcer': see 'manage.py store_acl'."
        yield Finding("rights", "warning", f"may change policies and tokens ({', '.join(could)})", advice)
    else:
        yield Finding("rights", "ok", "may not change policies or tokens")


def _may(client: Redis, command: tuple[str, ...]) -> bool:
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except NoPermissionError:
        return False
    except ResponseError:
        return True  # it was let through, and failed for another cause
    return True
