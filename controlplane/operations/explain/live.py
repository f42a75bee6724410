"""The counters of limits now, read with the keys and the code of enforcement. Nothing is charged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import redis

from controlplane.core import store
from controlplane.operations.explain.matches import YES, Matched
from enforcement.model.keys import together
from enforcement.store.client import with_library
from enforcement.store_calls import inspection


@dataclass(frozen=True, slots=True)
class Now:
    """
    The counter of one limit now.

    Attributes:
        used: Permits that are charged.
        remaining: The largest cost that would pass.
        reset_ms: As in a decision. None: never.
        more_ms: As in a decision, the time until more would pass. None: never.
    """

    quota: int
    used: int
    remaining: int
    reset_ms: int | None
    more_ms: int | None


def counters(
    client: redis.Redis, found: Iterable[Matched], attributes: Mapping[str, str], now_us: int
) -> dict[tuple[str, str, str], Now]:
    """
    Return the counters of the limits that match, by their identity, with one command for each hash tag.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    matching = [one for one in found if one.matches == YES and one.rule is not None]
    read = partial(_read, client, matching, attributes, now_us)
    return with_library(client, read) if matching else {}


def _read(
    client: redis.Redis, matching: list[Matched], attributes: Mapping[str, str], now_us: int
) -> dict[tuple[str, str, str], Now]:
    keys, seen = store.keys(), {}
    for some in together(matching, attrgetter("rule.tag")):
        bounds = [one.rule.bind(keys, attributes) for one in some if one.rule]
        _, states = inspection.look(client, bounds, now_us)
        for one, (state, used) in zip(some, states, strict=True):
            seen[one.identity] = Now(state.quota, used, state.remaining, state.reset_ms, state.more_ms)
    return seen
