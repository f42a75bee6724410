"""
Name counters. The names are part of the interface of the store, so that every language can count what others count.

A name is computed from a sequence of strings, as the page "How it works" describes and ``tests/vectors/names`` shows.
Enforcers of 0.2 used other names. Those of durable counters can still be computed, as their counts are carried over.
"""

from __future__ import annotations

from enforcement.model.keys import fingerprint, name_of
from enforcement.model.limits import Limit

Identity = tuple[str, ...]
"""What a counter is kept for: scope, holder, policy, limit, and then the name and the value of each attribute."""


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


__all__ = ["Identity", "counter_name", "earlier_name", "shape_of"]
