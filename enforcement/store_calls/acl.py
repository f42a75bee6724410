"""
Build the rules of each account of the store, for ``ACL SETUSER`` or a file of accounts. No I/O.

Valkey grants ``FCALL`` for all functions or for none, and checks each command of a function as if its caller had sent
it. Every account may therefore call every function, but has commands only for some keys, and a function fails with
other keys. An account that may count may also write counters without a function. An enforcer is trusted with counters,
but not with documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from enforcement.model.keys import GLOBAL_TAG, Keys, rest_prefix

BLANK: Final = ("clearselectors", "resetkeys", "resetchannels", "-@all")
"""Removes all earlier rights of an account. Each list of rules begins with it."""

# Clients send these when they connect. Without CLIENT SETINFO and SETNAME, each connection would add to ACL LOG.
_CONNECT: Final = "ping select client|setinfo client|setname"
# An enforcer reads there whether the server evicts keys.
_STATISTICS: Final = "info"
# These find the node of a key, follow redirections and check a node. A single server refuses them.
_CLUSTER: Final = "asking cluster|info cluster|slots"
_READ_COUNTERS: Final = "time get mget sismember zcard zcount zrange zrangebyscore zrevrange zrevrangebyscore zscore"
_WRITE_COUNTERS: Final = "set setrange pexpire pfadd sadd unlink zadd zrem zremrangebyscore"
# Not of both keys: with SET on the set of instances, one command would end all heartbeats.
_HEARTBEAT: Final = "set unlink"
_INSTANCES: Final = "zadd zcount zrem zremrangebyscore"
_PUBLISH: Final = "fcall del get hdel hget hgetall hlen hmget hset set type unlink xadd"
# The functions that settle a reservation send these besides those that read.
_SETTLE: Final = "pexpire set setrange zadd zrem zremrangebyscore"
_REPAIR: Final = "del eval type xinfo|stream xlen"
_CHECKPOINT: Final = "fcall get sadd scard set setrange srem sscan"
_OWN_FLEET: Final = "hget hgetall hmget xadd xread"
_LOCK: Final = "del eval get incr set"
_CACHE: Final = "del exists expire get mget persist pexpire pttl set ttl unlink"
# Celery's transport for Redis sends these. All but the channels are restricted to the keys of the broker.
_BROKER: Final = (
    "brpop del evalsha exists expire get hdel hget hlen hset llen lpush pexpire publish rpop rpush sadd set smembers "
    "srem watch zadd zrange zrangebyscore zrem"
)

Rules = list[str]


def enforcer(keys: Keys, projects: Sequence[str] = (), *, with_global: bool = True) -> Rules:
    """
    Return the ACL rules of a proxy, which reads documents and writes counters, its heartbeat and usage.

    Args:
        keys: The keys of the fleet.
        projects: Ids of the projects whose counters it may use, for a proxy that is not trusted with others. It then
            cannot use limits in code, and writes usage to the intakes of these projects only. Empty: all counters, also
            those of limits in code, and the streams of usage that all projects share.
        with_global: Whether it may use the counters of the global policy, which it could then spoil for all projects.
            Without that, its enforcers refuse each request under a global limit.
    """
    # An account of some projects may harm what all share: one XADD to a stream can end it, or drop what waits there.
    intakes = [f"%W~{_literal(keys.intake(project))}" for project in projects]
    shared = f"%W~{_literal(keys.usage)}", f"%W~{_literal(keys.denials)}", f"%W~{_shards(keys)}"
    # The store checks rights outside of selectors first, so those of a decision are not in a selector.
    return [
        *BLANK,
        *_may(f"{_CONNECT} {_CLUSTER} {_STATISTICS} fcall {_READ_COUNTERS} {_WRITE_COUNTERS}"),
        *_counters(keys, projects, with_global=with_global),
        _selector("hget hgetall hmget", f"%R~{_literal(keys.documents)}"),
        _selector("xread", f"%R~{_literal(keys.log)}"),
        # No right here lists keys, so a token can only be read by someone who knows it.
        _selector(
            "get mget",
            f"%R~{_literal(keys.token(''))}*",
            f"%R~{_literal(keys.decision_key)}",
            f"%R~{_literal(keys.prices)}",
        ),
        _selector("fcall", f"~{_literal(keys.instance(''))}*", f"~{_literal(keys.instances)}"),
        _selector(_HEARTBEAT, f"~{_literal(keys.instance(''))}*"),
        _selector(_INSTANCES, f"~{_literal(keys.instances)}"),
        _selector("xadd", *(intakes or shared)),
        *([] if projects else [_selector("get", f"%R~{_literal(keys.usage_shards)}")]),
    ]


def publisher(keys: Keys) -> Rules:
    """
    Return the ACL rules of the control plane's web processes, which publish, read counters, reset them, and settle
    reservations.

    They may load functions, which run with the rights of their callers. They may SCAN the names of all keys, to find
    tokens that SQL does not know.
    """
    return [
        *BLANK,
        *_may(f"{_CONNECT} {_CLUSTER} discard exec function|list function|load info multi scan"),
        _selector(_PUBLISH, *_below(keys, "doc")),
        _selector(_LOCK, *_below(keys, "lock")),
        # SADD and SREM record that a new project lacks no counters.
        _selector(f"fcall {_READ_COUNTERS} pfcount sadd srem unlink", *_counters(keys)),
        # An operator who settles a reservation corrects counters. This account may reset counters and publish other
        # limits, so it could admit or deny anything before. Limits in code are not settled here.
        _selector(_SETTLE, *_below(keys, "proj_*"), *_below(keys, "global")),
        _selector("mget zrevrange", f"%R~{_literal(keys.instance(''))}*", f"%R~{_literal(keys.instances)}"),
        # The metrics say how much usage waits.
        _selector("xlen xrange", f"%R~{_literal(keys.usage)}", f"%R~{_shards(keys)}", f"%R~{_intakes(keys)}"),
        _selector(_CACHE, f"~{_literal(keys.prefix)}cache:*"),
        # The limits of REST itself. Its processes are a fleet of their own, with keys that no enforcer has.
        _selector(f"fcall {_READ_COUNTERS} {_WRITE_COUNTERS} {_OWN_FLEET}", f"~{_literal(rest_prefix(keys.prefix))}*"),
    ]


def worker(keys: Keys) -> Rules:
    """
    Return the ACL rules of Celery's worker and beat.

    They publish, drain usage, checkpoint and restore durable counters, and have their queue in the store. Celery
    listens with PSUBSCRIBE, which needs a right for each pattern as it is sent. Celery sends many patterns, so this
    account may listen to every channel. Sluicegate itself does not use channels.
    """
    usage, intakes = _literal(keys.usage), _intakes(keys)
    return [
        *publisher(keys),
        *_may("psubscribe punsubscribe subscribe unsubscribe script|exists script|load unwatch"),
        "allchannels",
        _selector(_CHECKPOINT, *_counters(keys)),
        _selector("xdel xrange", f"~{usage}", f"~{_literal(keys.denials)}", f"~{_shards(keys)}", f"~{intakes}"),
        # Several drains share a stream by a consumer group.
        _selector("xack xautoclaim xgroup|create xreadgroup", f"~{usage}", f"~{_shards(keys)}", f"~{intakes}"),
        _selector("set", f"~{_literal(keys.usage_shards)}"),
        _selector("xadd", f"~{usage}:rejected", f"~{intakes}"),
        _selector("zremrangebyscore", f"~{_literal(keys.instances)}"),
        # The worker deletes keys that an account has spoilt for others.
        _selector(_REPAIR, *_below(keys, "usage"), *_below(keys, "fleet"), f"~{_literal(keys.log)}", f"~{intakes}"),
        _selector(_BROKER, f"~{_literal(keys.prefix)}celery:*", "allchannels"),
    ]


ACCOUNTS: Final[dict[str, Callable[[Keys], Rules]]] = {
    "publisher": publisher,
    "enforcer": enforcer,
    "worker": worker,
}


def password_rules(password: str) -> Rules:
    """Return the ACL rules that set the only password of an account. They contain its hash."""
    return ["resetpass", f"#{hashlib.sha256(password.encode()).hexdigest()}"]


def acl_line(name: str, rules: Sequence[str], password: str) -> str:
    """Return the line for an account in an ACL file."""
    return " ".join(("user", name, "on", *password_rules(password), *rules))


def _counters(keys: Keys, projects: Sequence[str] = (), *, with_global: bool = True) -> Rules:
    if projects:
        own = [pattern for ident in projects for pattern in _below(keys, _literal(ident))]
        # The counter of a probe, by which each enforcer sees whether the store decides, says nothing about anybody.
        return [*(_below(keys, GLOBAL_TAG) if with_global else [f"~{_literal(keys.probe)}"]), *own]
    # Limits in code have tags of 22 characters, as they had in 0.2 (tag_of_key() in model/keys.py). The pattern has no
    # braces. Otherwise it would also match other keys, whose own tag would be the beginning of a longer one.
    in_code = "[^}]" * 22
    return [*_below(keys, "proj_*"), *_below(keys, "global"), *_below(keys, in_code)]


def _below(keys: Keys, tag: str) -> Rules:
    """Return the ACL pattern of all keys with a hash tag, in a list. *tag* is a pattern, too."""
    return [f"~{_literal(keys.prefix)}{{{tag}}}:*"]


def _may(commands: str) -> Rules:
    return [f"+{command}" for command in commands.split()]


def _selector(commands: str, *patterns: str) -> str:
    """Return the ACL selector that permits these commands for these keys, and for no others."""
    return f"({' '.join([*_may(commands), *patterns])})"


def _shards(keys: Keys) -> str:
    """Return the pattern of the streams of the shards of usage."""
    return f"{_literal(keys.usage_shard(0)).removesuffix('0')}*"


def _intakes(keys: Keys) -> str:
    """Return the pattern of the intakes of all projects."""
    return f"{_literal(keys.intake('')).removesuffix('}')}*"


def _literal(text: str) -> str:
    """Return a pattern that matches only *text*."""
    return "".join(f"\\{char}" if char in "\\*?[" else char for char in text)
