"""
What each account of the store may do, as rules for ``ACL SETUSER`` or a file of accounts. No I/O.

Valkey grants ``FCALL`` for all functions or none, and checks what a function does as if its caller did it. So no
account is kept from a function; each has its commands for certain keys only, and a function that is given other keys
fails like a direct command. Whoever may count may therefore also write counters without a function: counters are what
an enforcer is trusted with, documents are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from enforcement.model.keys import Keys

BLANK: Final = ("clearselectors", "resetkeys", "resetchannels", "-@all")
"""Takes away what an account had; each list of rules begins with it, so that it holds whatever there was before."""

# What clients send when they connect. Without the two of CLIENT each connection would leave an entry in ACL LOG.
_CONNECT: Final = "ping select client|setinfo client|setname"
# To find the node of a key, to be sent to another, and to see whether a node is well. A single server refuses them.
_CLUSTER: Final = "asking cluster|info cluster|slots"
_READ_COUNTERS: Final = "time get mget sismember zcard zcount zrange zrangebyscore zrevrange zrevrangebyscore zscore"
_WRITE_COUNTERS: Final = "set setrange pexpire pfadd sadd unlink zadd zrem zremrangebyscore"
_HEARTBEAT: Final = "fcall set unlink zadd zcount zrem zremrangebyscore"
_PUBLISH: Final = "fcall del get hdel hget hgetall hlen hmget hset set type unlink xadd"
_CHECKPOINT: Final = "fcall get sadd scard set setrange srem sscan"
_LOCK: Final = "del eval get incr set"
_CACHE: Final = "del exists expire get mget persist pexpire pttl set ttl unlink"
# What Celery's transport for Redis calls; all of it but the channels is bound to the broker's own keys.
_BROKER: Final = (
    "brpop del evalsha exists expire get hdel hget hlen hset llen lpush pexpire publish rpop rpush sadd set smembers "
    "srem watch zadd zrange zrangebyscore zrem"
)

Rules = list[str]


def enforcer(keys: Keys, projects: Sequence[str] = ()) -> Rules:
    """
    Return the rules of a proxy: it reads documents, writes counters, its heartbeat and usage, and nothing else.

    Args:
        keys: Those of the fleet.
        projects: Ids of the only projects whose counters it reaches, for a proxy that is not trusted with the others';
            limits in code are then out of its reach too. None given: all counters.
    """
    # The rights of a decision stand outside of selectors, where they are found first.
    return [
        *BLANK,
        *_may(f"{_CONNECT} {_CLUSTER} fcall {_READ_COUNTERS} {_WRITE_COUNTERS}"),
        *_counters(keys, projects),
        _selector("hget hgetall hmget", f"%R~{_literal(keys.documents)}"),
        _selector("xread", f"%R~{_literal(keys.log)}"),
        # One that shows a token must know it: nothing here lists keys.
        _selector("get mget", f"%R~{_literal(keys.token(''))}*"),
        _selector(_HEARTBEAT, f"~{_literal(keys.instance(''))}*", f"~{_literal(keys.instances)}"),
        _selector("xadd", f"%W~{_literal(keys.usage)}"),
    ]


def publisher(keys: Keys) -> Rules:
    """
    Return the rules of the control plane's web processes: they publish, look at counters and reset them.

    It may load functions, which then run with the rights of whoever calls them; and SCAN, which shows the names of all
    keys, to find tokens that SQL does not know.
    """
    return [
        *BLANK,
        *_may(f"{_CONNECT} {_CLUSTER} discard exec function|list function|load info multi scan"),
        _selector(_PUBLISH, *_below(keys, "doc")),
        _selector(_LOCK, *_below(keys, "lock")),
        # With SADD and SREM it says of a new project that no counters are missing; to write a counter it has no right.
        _selector(f"fcall {_READ_COUNTERS} pfcount sadd srem unlink", *_counters(keys)),
        _selector("mget zrevrange", f"%R~{_literal(keys.instance(''))}*", f"%R~{_literal(keys.instances)}"),
        _selector(_CACHE, f"~{_literal(keys.prefix)}cache:*"),
    ]


def worker(keys: Keys) -> Rules:
    """
    Return the rules of Celery's worker and beat: they go on publishing, drain usage, keep durable
    counters and give them back, and have their queue in the store.

    Celery listens with PSUBSCRIBE, for which a channel's name must be granted as it is sent, and it sends many; so this
    account may listen to every channel. Sluicegate itself says nothing over channels.
    """
    usage = _literal(keys.usage)
    return [
        *publisher(keys),
        *_may("psubscribe punsubscribe subscribe unsubscribe script|exists script|load unwatch"),
        "allchannels",
        _selector(_CHECKPOINT, *_counters(keys)),
        _selector("xdel xrange", f"~{usage}"),
        _selector("xadd", f"~{usage}:rejected"),
        _selector("zremrangebyscore", f"~{_literal(keys.instances)}"),
        _selector(_BROKER, f"~{_literal(keys.prefix)}celery:*", "allchannels"),
    ]


ACCOUNTS: Final[dict[str, Callable[[Keys], Rules]]] = {
    "publisher": publisher,
    "enforcer": enforcer,
    "worker": worker,
}


def password_rules(password: str) -> Rules:
    """Return the rules that make this the only password of an account; they hold its hash, as the store does."""
    return ["resetpass", f"#{hashlib.sha256(password.encode()).hexdigest()}"]


def acl_line(name: str, rules: Sequence[str], password: str) -> str:
    """Return the line that makes an account in a file of accounts."""
    return " ".join(("user", name, "on", *password_rules(password), *rules))


def _counters(keys: Keys, projects: Sequence[str] = ()) -> Rules:
    if projects:
        return [*_below(keys, "global"), *(pattern for ident in projects for pattern in _below(keys, _literal(ident)))]
    # Limits in code have tags of 22 characters (fingerprint() in model/keys.py). None may be a brace: the names of
    # other keys would fit too, with their own tag as the beginning of one.
    in_code = "[^}]" * 22
    return [*_below(keys, "proj_*"), *_below(keys, "global"), *_below(keys, in_code)]


def _below(keys: Keys, tag: str) -> Rules:
    """Return the pattern of all keys with a hash tag; *tag* is a pattern itself."""
    return [f"~{_literal(keys.prefix)}{{{tag}}}:*"]


def _may(commands: str) -> Rules:
    return [f"+{command}" for command in commands.split()]


def _selector(commands: str, *patterns: str) -> str:
    """Return rights that hold only together: these commands, for these keys."""
    return f"({' '.join([*_may(commands), *patterns])})"


def _literal(text: str) -> str:
    """Return the pattern that only *text* fits."""
    return "".join(f"\\{char}" if char in "\\*?[" else char for char in text)


__all__ = ["ACCOUNTS", "BLANK", "Rules", "acl_line", "enforcer", "password_rules", "publisher", "worker"]
