"""
Limits in code, for the integrations of frameworks.

This is what they share: whom a limit counts, and the header fields of a response. A request may be charged to several
limits in code and to a published policy as well. Each of these is a separate decision.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPMethod
from inspect import iscoroutinefunction, unwrap
from typing import Any, Final

from enforcement.decorator import check_scope, declared, declared_pairs, key_text, known_limits, may_clash
from enforcement.http.addresses import USUAL_BITS, Bits, network_of
from enforcement.http.messages import (
    Header,
    PlainResponse,
    Refusal,
    added_headers,
    denial,
)
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_CODE_KEY_LENGTH
from enforcement.plan.decision import Decision

logger = logging.getLogger("sluicegate.doors")

_JOINED: Final = frozenset({"ratelimit", "ratelimit-policy"})
_warned: set[str] = set()
_wrapped: weakref.WeakSet[object] = weakref.WeakSet()

Pairs = list[tuple[tuple[Limit, ...], str]]
"""The limits that apply to one request, each group with its key."""

EXEMPT: Final = "sluicegate_exempt"
"""Attribute of a view that is not limited by what applies to all views."""
LIMITED: Final = "sluicegate_limited"
"""Attribute of a view that has limits of its own. It holds a tuple of them."""


def outlives_decision(pairs: Pairs) -> bool:
    """Return whether a limit is held, or charged by the status, until the response is complete."""
    return any(limit.algorithm == "concurrency" or limit.charge_on for limits, _ in pairs for limit in limits)


@dataclass(frozen=True, slots=True)
class Group:
    """
    Limits in code that count by one key.

    Attributes:
        limits: The limits, or what chooses them for each request.
        kind: ``ip``, ``user`` or ``all``; ``key`` if *find* finds the key.
        find: What finds the key of a request. None for another kind.
        scope: Name of the counters. None: that of the view.
        number: Which of several groups of the view it is that would otherwise have the same counters.
    """

    limits: Any
    kind: str
    find: Any
    scope: str | None
    number: int = 1

    def key(self, view: str, found: object, address: Callable[[], str | None], bits: Bits = USUAL_BITS) -> str | None:
        """
        Return the key that a request is counted under, or None if these limits do not apply to it.

        Args:
            view: The full name of the view.
            found: The value that *find* found, or the user.
            address: Returns the address of the client, or None if it is unknown.
            bits: How much of the address counts.
        Raises:
            TypeError, Refusal: As :func:`counter_key` does.
        """
        kind = self.kind
        if kind == "ip" or (kind == "user" and found is None):
            kind, found = "ip", counted_address(address(), bits)
        elif kind == "all":
            found = ""
        scope = self.scope or (view if self.number == 1 else f"{view}#{self.number}")
        return counter_key(scope, kind, found)

    def clashes(self, other: Group) -> bool:
        """Return whether another group of the same view may have the same counters, unless its number differs."""
        if self.scope or other.scope or not (self.kind == other.kind or {self.kind, other.kind} == {"ip", "user"}):
            return False  # who gives a scope wants to share
        return may_clash(*(None if callable(it.limits) else it.limits for it in (self, other)))


def beside(groups: Sequence[Group], earlier: Sequence[Group]) -> tuple[Group, ...]:
    """Return groups with numbers by which they count apart from the earlier groups of their view."""
    return tuple(replace(group, number=1 + sum(group.clashes(other) for other in earlier)) for group in groups)


def groups_of(
    limits: object,
    key: object,
    scope: str | None,
    costs: object,
    *,
    kinds: Sequence[str] = ("ip", "all"),
    source: str = "a function of the request",
    is_source: Callable[[Any], bool] = callable,
) -> tuple[Group, ...]:
    """
    Return the declared limits of one view, a group for each key. All groups are one decision.

    Args:
        limits: Limits, or what chooses them for each request, or pairs of either and a key.
        key: One of *kinds*, or what finds the key. None if *limits* are pairs.
        costs: Costs, or what finds them.
        kinds: The keys that a string may name.
        source: What finds a key, for error messages.
        is_source: Returns whether a value is found for each request.
    Raises:
        ValueError: A limit, a key, the scope or the costs are not valid, or the limits would not count the costs.
        TypeError: Something is not a limit.
    """
    scope = None if scope is None else check_scope(scope)
    groups = []
    for some, own in declared_pairs(limits, key):
        if not (own in kinds if isinstance(own, str) else is_source(own)):
            raise ValueError(f"key: must be {', '.join(map(repr, kinds))} or {source}, got {own!r}.")
        kind, find = (own, None) if isinstance(own, str) else ("key", own)
        groups.append(Group(some if is_source(some) else declared(some), kind, find, scope))
    known = [None if is_source(group.limits) else group.limits for group in groups]
    known_limits(known, costs, later=is_source(costs))
    return tuple(groups)


def note_wrapped(view: object) -> None:
    """Remember a view that a limit was put around, for :func:`warn_of_unlimited`."""
    with suppress(TypeError):  # not everything that can be called has weak references
        _wrapped.add(view)


def warn_of_unlimited(views: Iterable[object]) -> None:
    """Log each view that is served without the limit that was put around it later, so that it has no effect."""
    served = list(views)
    limited = {id(inner) for view in served for inner in _inside(view)}
    for view in served:
        with suppress(TypeError):
            if view in _wrapped and id(view) not in limited:
                logger.error(
                    "%s: a limit has no effect, because its decorator is above the one that registers the view. Put it "
                    "below.",
                    name_of(view),
                )


def _inside(view: object) -> Iterator[object]:
    while (view := getattr(view, "__wrapped__", None)) is not None:
        yield view


def as_call(pairs: Pairs) -> tuple[Any, str | None]:
    """Return pairs as the limits and the key that a limiter takes."""
    return pairs[0] if len(pairs) == 1 else (pairs, None)


def check_methods(methods: Sequence[str] | None) -> frozenset[str] | None:
    """
    Return the HTTP methods that a limit applies to, or None for all.

    Raises:
        ValueError: A method is not in capitals, or the list is empty. That could mean none of them as well as all.
    """
    if methods is None:
        return None
    if isinstance(methods, str) or not methods or any(method != method.upper() for method in methods):
        raise ValueError(f"methods: must be a list of at least one HTTP method in capitals, got {methods!r}.")
    for method in set(methods) - {*HTTPMethod}:
        logger.warning("methods: HTTP itself has no %r, so a limit of that may apply to no request.", method)
    return frozenset(methods)


def check_function(name: str, function: object) -> Any:
    """Return an argument that is a function or None. Raises TypeError if it is neither, or asynchronous."""
    if function is not None and not callable(function):
        raise TypeError(f"{name}: must be a function, got {function!r}.")
    if iscoroutinefunction(function):
        raise TypeError(f"{name}: must not be asynchronous, got {function!r}.")
    return function


def name_of(view: Any) -> str:
    """
    Return the full name of a view, which is the default scope of its limits.

    A bound method is named after the class of its object, because many views inherit the same ``dispatch``. What
    ``as_view()`` of Django or Flask returns is named after its class, and a partial after its function, because the
    names of those objects are the same for all classes and functions.
    """
    owner = getattr(getattr(view, "func", view), "__self__", None)
    if owner is not None:
        return f"{type(owner).__module__}.{type(owner).__qualname__}.{view.__name__}"[:255]
    named = getattr(view, "view_class", view)
    while isinstance(named, partial):
        named = named.func
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{named.__module__}.{named.__qualname__}"[:255]


def name_at(place: Any, view: Any, served: Any) -> str:
    """
    Return the full name of a view, and its place as well if others may have the same name.

    What is no view has no place.

    Args:
        place: What the framework calls the view by, as its endpoint or its route.
        view: The function that has a limit.
        served: The view that the framework has called for the request. None if there is none.
    """
    name = name_of(view)
    if not is_shared(name) or served is None or unwrap(served) is not unwrap(view):
        return name
    return named_at(name_of(served), place)


def is_shared(name: str) -> bool:
    """Return whether several views may have a full name, as functions that one function has made, and lambdas, do."""
    return "<" in name


def named_at(name: str, place: object) -> str:
    """Return the full name of a view with its place."""
    return f"{name}@{place}".replace(":", "_")


def counter_key(scope: str, kind: str, value: object) -> str | None:
    """
    Return ``scope:kind:value``, the key that a request is counted under, or None for no value, which has no limit.

    Args:
        kind: Kind of the value. ``ip``, ``user`` or ``all``; ``key`` if a function of the application returned it.
    Raises:
        TypeError: The value is not a string, an integer or a UUID.
        Refusal: The key is too long. It is not shortened, because it might then name another caller.
    """
    text = key_text(value)
    if text is None:
        return None
    key = f"{scope}:{kind}:{text}"
    if len(key) > MAX_CODE_KEY_LENGTH:
        detail = f"The key of this request has {len(key)} characters; at most {MAX_CODE_KEY_LENGTH} are allowed."
        raise Refusal(400, "Bad Request", detail, "key_too_long")
    return key


def counted_address(address: str | None, bits: Bits = USUAL_BITS) -> str:
    """
    Return the address or /64 network that a client is counted by, or an empty string if it is unknown.

    Returns:
        The address. The /64 network of an IPv6 address, because one client has all of it. An empty string if the
        address is unknown: all such clients share a limit, which is better than none. This is logged once.
    """
    if address is None:
        _warn_once("The client's address is unknown. If it connects over a Unix socket, add 'unix' to trusted proxies.")
        return ""
    return network_of(address, bits)


def limit_headers(decisions: Sequence[Decision], preset: str) -> list[Header]:
    """
    Return the names and values of the header fields of a response for all decisions on its request.

    Denials come first, then the limits with the least share left. Lists are joined. A field of one value is taken from
    the first decision that has it.
    """
    if len(decisions) == 1:
        return added_headers(decisions[0], preset)
    fields: dict[str, Header] = {}
    for decision in sorted(decisions, key=_urgency):
        for name, value in added_headers(decision, preset):
            known = fields.get(name.lower())
            if known is None:
                fields[name.lower()] = name, value
            elif name.lower() in _JOINED:
                fields[name.lower()] = name, f"{known[1]}, {value}"
    return list(fields.values())


def denial_without_limits(decision: Decision, preset: str) -> PlainResponse:
    """
    Return the response to a denial, without the header fields of its limits.

    The middleware adds these fields for all decisions on the request together.
    """
    answer = denial(decision, preset)
    added = {name for name, _ in added_headers(decision, preset)}
    return replace(answer, headers=tuple(header for header in answer.headers if header[0] not in added))


def _urgency(decision: Decision) -> tuple[bool, float]:
    return decision.allowed, 1.0 if decision.limit is None else decision.limit.share


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)
