"""
Build every key of the store.

A hash tag keeps the keys of one atomic call in one slot. There is one tag each for documents, instances and usage, and
one for the counters of each project. Tags consist of ids and digests, never of what a tenant has typed.

The names of counters are part of the interface of the store, so that every language can count what others count. A name
is computed from a sequence of strings, as the page "How it works" describes and ``tests/vectors/names`` shows.
Enforcers of 0.2 used other names. Those of durable counters can still be computed, as their counts are carried over.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from enforcement.model.checks import shown
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_PREFIX_LENGTH

T = TypeVar("T")

DEFAULT_PREFIX: Final = "sg:"
GLOBAL_TAG: Final = "global"
"""Hash tag of the counters that all projects share. The tag of a project is its id."""
NAME_LENGTH: Final = 26
"""Characters of the last part of a counter's key, which is ``c:`` and the name of the counter."""
EARLIER_NAME_LENGTH: Final = 23
"""Characters of the last part of a counter's key in 0.2."""
DIRTY: Final = "changed"
OPEN_RESERVATIONS: Final = "reservations"
RECORD: Final = "r:"
WHOLE: Final = "whole"
"""Member of a dirty set that is not a counter. It says that the store has all checkpointed counters of the tag."""


def rest_prefix(prefix: str) -> str:
    """
    Return the prefix of the keys by which the control plane limits requests to its own REST API.

    It begins as the prefix of the fleet does. With the same prefix, the control plane would be a member of the fleet.
    """
    longer = f"{prefix}rest:"
    if len(longer) <= MAX_PREFIX_LENGTH:
        return longer
    return f"{prefix[: MAX_PREFIX_LENGTH - 7]}{hashlib.sha256(prefix.encode()).hexdigest()[:6]}:"


class Keys:
    """The keys with one prefix. Fleets that share a store have different prefixes."""

    __slots__ = (
        *("decision_key", "denials", "documents", "installation", "instances", "last_fields", "last_week", "log"),
        *("prefix", "prices"),
        *("rebuild", "rebuild_place", "reconcile_place", "usage", "usage_shards"),
    )

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        usable = isinstance(prefix, str) and prefix.isascii() and 1 <= len(prefix) <= MAX_PREFIX_LENGTH
        if not usable or set(prefix) & set("{} \r\n"):
            raise ValueError(
                f"prefix: must be 1 to {MAX_PREFIX_LENGTH} ASCII characters without braces or blanks, "
                f"got {shown(prefix)}."
            )
        self.prefix = prefix
        self.documents = f"{prefix}{{doc}}:documents"
        self.decision_key = f"{prefix}{{doc}}:decision-key"
        self.installation = f"{prefix}{{doc}}:installation"
        self.last_fields = f"{prefix}{{doc}}:last-fields"
        self.last_week = f"{prefix}{{doc}}:last-week"
        self.log = f"{prefix}{{doc}}:log"
        self.prices = f"{prefix}{{doc}}:prices"
        self.rebuild = f"{prefix}{{doc}}:rebuild"
        self.rebuild_place = f"{prefix}{{doc}}:rebuild-place"
        self.reconcile_place = f"{prefix}{{doc}}:reconcile-place"
        self.instances = f"{prefix}{{fleet}}:instances"
        self.denials = f"{prefix}{{usage}}:denials"
        self.usage = f"{prefix}{{usage}}:stream"
        self.usage_shards = f"{prefix}{{usage}}:shards"

    def token(self, digest: str) -> str:
        """Return the key of a token's document. *digest* has 64 hexadecimal characters."""
        return f"{self.prefix}{{doc}}:token:{digest}"

    @property
    def probe(self) -> str:
        """The counter that is charged to see whether the store decides. Every enforcer may write it."""
        return f"{self.scope(GLOBAL_TAG)}trial"

    def intake(self, project: str) -> str:
        """Return the key of the stream of usage from accounts of the store that are limited to this project."""
        return f"{self.prefix}in:{{{project}}}"

    def usage_shard(self, shard: int) -> str:
        """Return the key of the stream of one shard of usage. It is used only while ``usage_shards`` announces it."""
        return f"{self.prefix}{{usage}}:shard:{shard}"

    @property
    def revision(self) -> str:
        """
        The key that has the revision of the documents beside the tokens, so that one ``MGET`` reads it with a token.

        It begins as the keys of tokens do, which is what accounts have a right to read.
        """
        return self.token("revision")

    def instance(self, instance_id: str) -> str:
        """Return the key of an instance's heartbeat."""
        return f"{self.prefix}{{fleet}}:instance:{instance_id}"

    def lock(self, name: str) -> str:
        """Return the key of a named lock of the control plane."""
        return f"{self.prefix}{{lock}}:{name}"

    def fence(self, name: str) -> str:
        """Return the key of the fencing counter of a named lock."""
        return f"{self.prefix}{{lock}}:{name}:fence"

    def dirty(self, tag: str) -> str:
        """Return the key of the set of durable counters of a tag that changed since their last checkpoint."""
        return f"{self.scope(tag)}{DIRTY}"

    def scope(self, tag: str) -> str:
        """Return the beginning of all keys of counters with a hash tag, which is a project id or a fingerprint."""
        return f"{self.prefix}{{{tag}}}:"

    def reservations(self, tag: str) -> str:
        """Return the key of the set of a tag's open reservations, by the instant at which each is lost."""
        return f"{self.scope(tag)}{OPEN_RESERVATIONS}"

    def reservation(self, tag: str, ident: str) -> str:
        """Return the key of the record of a reservation."""
        return f"{self.scope(tag)}{RECORD}{ident}"

    def earlier_dirty(self, tag: str) -> str:
        """Return the key of the set that the functions of 0.2 use in the place of :meth:`dirty`."""
        return f"{self.scope(tag)}dirty"

    def census(self, tag: str, identity: Iterable[str]) -> tuple[str, str]:
        """
        Return the keys of an index of partition values, and of the estimate of how many values have no room in it.
        """
        scope, name = self.scope(tag), name_of(identity)
        return f"{scope}n:{name}", f"{scope}o:{name}"


def dirty_beside(counter: str) -> str:
    """Return the key of :meth:`Keys.dirty`, the set of changed counters, for the tag of a counter's key."""
    return scope_of(counter) + DIRTY


def marker_beside(counter: str, ident: str) -> str:
    """Return the key, in the slot of a counter, that records a settlement by its id."""
    return marker_in(scope_of(counter), ident)


def marker_in(scope: str, ident: str) -> str:
    """Return the same key for the beginning of the keys of a tag, see :func:`scope_of`."""
    return f"{scope}m:{ident}"


def scope_of(counter: str) -> str:
    """Return the beginning of all keys of counters with the tag of a counter's key, as :meth:`Keys.scope` does."""
    return counter[: counter.index("}") + 2]


def together(things: Iterable[T], tag_of: Callable[[T], str]) -> list[list[T]]:
    """Return things in lists of one hash tag each, so that one call reaches each list on a cluster as well."""
    by_tag: dict[str, list[T]] = {}
    for thing in things:
        by_tag.setdefault(tag_of(thing), []).append(thing)
    return list(by_tag.values())


def name_of(parts: Iterable[str]) -> str:
    """
    Return 24 hexadecimal characters that identify a sequence of strings, the same in every language.

    They are the first of SHA-1 over each string, as its length in bytes, a colon and its bytes in UTF-8. So ``("a",
    "bc")`` and ``("ab", "c")`` differ. Nobody can find a string that has the name of another one's string. Whoever
    makes two of their own with one name has one counter for both.
    """
    return _sha1(parts)[:24]


def tag_of_key(key: str) -> str:
    """Return the hash tag of the counters of a key in code, which is 22 hexadecimal characters."""
    return _sha1(("key", key))[:22]


def _sha1(parts: Iterable[str]) -> str:
    joined = "".join([f"{len(part)}:{part}" if part.isascii() else _counted(part) for part in parts])
    return hashlib.sha1(joined.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _counted(part: str) -> str:
    """
    Return a string behind its length in bytes, as in ``3:abc``. Half a surrogate pair, which other languages lack, has
    three.
    """
    return f"{len(part.encode('utf-8', 'surrogatepass'))}:{part}"


def fingerprint(parts: Iterable[str]) -> str:
    """
    Return 22 characters that identify a sequence of strings, for names in the store of 0.2 and for files.

    The length of each string is hashed before it, so ``("a", "bc")`` and ``("ab", "c")`` differ. With 128 bits of
    BLAKE2b a key stays short, however long an attribute is.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(b"%d:" % len(encoded))
        hashed.update(encoded)
    return urlsafe_b64encode(hashed.digest())[:22].decode()


Identity = tuple[str, ...]
"""
The parts that identify a counter: scope, holder, policy, limit, and then the name and the value of each attribute.
"""


def shape_of(limit: Limit) -> str:
    """
    Return the part of a name that lets a limit start a new counter when it changes.

    A changed algorithm starts a new counter, and so does another length of a fixed or sliding window. Logs, buckets and
    slots keep their counter.
    """
    if limit.algorithm not in ("fixed_window", "sliding_window"):
        return limit.algorithm
    if limit.calendar is None:
        return f"{limit.algorithm}|{limit.window_seconds}"
    anchor = "" if limit.anchor is None else limit.anchor
    return f"{limit.algorithm}|{limit.calendar}|{limit.time_zone}|{anchor}"


def counter_name(limit: Limit, identity: Identity) -> str:
    """Return the last part of a counter's key, which is ``c:`` and 24 hexadecimal characters."""
    return "c:" + name_of((*identity, shape_of(limit)))


def earlier_name(limit: Limit, identity: Identity) -> str:
    """Return the last part of the key that 0.2 gave to a durable counter. The global scope had no holder."""
    known = identity if identity[1] else (identity[0], *identity[2:])
    if identity[0] == "overflow" and not identity[3]:
        known = (*identity[:3], *identity[4:])
    shape = f"{limit.calendar}|{limit.time_zone}|{limit.anchor}" if limit.calendar else f"{limit.window_seconds}"
    return "f" + fingerprint((*known, limit.name, shape))
