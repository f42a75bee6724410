"""
What the doors of frameworks do alike with limits that stand beside a view: whom they count, and what clients are told.

A request may meet several of them, and a published policy besides; each is a decision of its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from enforcement.decorator import key_text
from enforcement.doors._http import Answer, Header, Refusal, added_headers, denial, network_of
from enforcement.model.sizes import MAX_CODE_KEY_LENGTH
from enforcement.plan.decision import Decision

logger = logging.getLogger("sluicegate.doors")

# No colon: the first two of them end the scope and the kind, so that no client can name another counter.
_SCOPE: Final = re.compile(r"[^:\s]{1,255}")
_JOINED: Final = frozenset({"ratelimit", "ratelimit-policy"})
_warned: set[str] = set()


def check_scope(scope: str) -> str:
    """Return *scope*, which names the counters of a limit in code. Raises ValueError: blanks, colons, over 255 long."""
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise ValueError(f"scope: must be 1 to 255 characters without blanks or colons, not {scope!r}.")
    return scope


def name_of(view: Any) -> str:
    """
    Return the scope of a limit that has none: the view's full name, so that each view has counters of its own.

    A method that a framework has bound is named after its object's class: many inherit one and the same ``dispatch``.
    """
    owner = getattr(getattr(view, "func", view), "__self__", None)
    if owner is not None:
        return f"{type(owner).__module__}.{type(owner).__qualname__}.{view.__name__}"[:255]
    named = view if hasattr(view, "__qualname__") else type(view)
    return f"{named.__module__}.{named.__qualname__}"[:255]


def counter_key(scope: str, kind: str, value: object) -> str | None:
    """
    Return the key that a request is counted under: ``<scope>:<kind>:<value>``; None where *value* is None.

    Args:
        kind: What the value is: ``ip``, ``user``, ``all``, or ``key`` for what a function of the application said.
    Raises:
        TypeError: The value is neither text nor a whole number nor a UUID.
        Refusal: It is too long; cut short, it would name another caller.
    """
    text = key_text(value)
    if text is None:
        return None
    key = f"{scope}:{kind}:{text}"
    if len(key) > MAX_CODE_KEY_LENGTH:
        detail = f"What this request is counted by has {len(text)} characters; {MAX_CODE_KEY_LENGTH} is the most."
        raise Refusal(400, "Bad Request", detail, "key_too_long")
    return key


def counted_address(address: str | None) -> str:
    """
    Return what a client is counted by: its address, and of an IPv6 address the /64, all of which one client has.

    An unknown address is counted as one: a limit that all share is better than none. It is logged once.
    """
    if address is None:
        _warn_once("the client's address is unknown; trust 'unix' if a proxy connects over a Unix socket")
        return ""
    return network_of(address)


def told(decisions: Sequence[Decision], preset: str) -> list[Header]:
    """
    Return the header fields of an answer on which several decisions were made.

    A denial is told first, then what has the least share left. Lists are joined; a field of one value is the first's.
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


def denial_told_elsewhere(decision: Decision, preset: str) -> Answer:
    """
    Return the answer to a denial without the fields that tell what is left.

    Whoever sends the response adds those, together with what was decided on the same request besides.
    """
    answer = denial(decision, preset)
    told = {name for name, _ in added_headers(decision, preset)}
    return replace(answer, headers=tuple(header for header in answer.headers if header[0] not in told))


def _urgency(decision: Decision) -> tuple[bool, float]:
    return decision.allowed, 1.0 if decision.limit is None else decision.limit.share


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)
