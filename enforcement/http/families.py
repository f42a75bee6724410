"""
Header fields that belong together.

``X-RateLimit-Limit``, ``-Remaining`` and ``-Reset`` describe one limit. If one came from the application and another
from us, they would describe none, so such a family is taken whole from one side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

Field = tuple[str, str]

_MEMBER: Final = re.compile(
    r"(?P<one>x-ratelimit)-(?P<a>limit|remaining|reset)(?P<unit>-[a-z0-9-]{1,40})?"
    r"|(?P<two>anthropic-ratelimit-[a-z0-9-]{1,40})-(?P<b>limit|remaining|reset)"
)
_REMAINING: Final = "remaining"


@lru_cache(1_000)
def family_of(name: str) -> tuple[str, str] | None:
    """
    Return the family of a header field and what the field says of its limit, or None if it belongs to no family.

    Args:
        name: In any case.
    Returns:
        For ``X-RateLimit-Reset-Tokens`` it is ``("x-ratelimit-tokens", "reset")``.
    """
    matched = _MEMBER.fullmatch(name.lower())
    if matched is None:
        return None
    if matched["two"]:
        return matched["two"], matched["b"]
    return matched["one"] + (matched["unit"] or ""), matched["a"]


def families_in(names: Iterable[str]) -> set[str]:
    """Return a set of the families that header fields belong to."""
    return {family[0] for name in names if (family := family_of(name)) is not None}


def tighter_families(theirs: Sequence[Field], ours: Sequence[Field]) -> set[str]:
    """
    Return a set of the families in which our limit has less left than theirs.

    Args:
        theirs: The fields of the application or upstream.
        ours: Our fields.
    Returns:
        A family is left out if one of the two does not say how much is left.
    """
    left, found = _left(theirs), _left(ours)
    return {family for family, count in found.items() if family in left and count < left[family]}


def _left(fields: Sequence[Field]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, value in fields:
        family = family_of(name)
        if family is not None and family[1] == _REMAINING and value.isascii() and value.isdigit() and len(value) < 20:
            counts[family[0]] = min(int(value), counts.get(family[0], int(value)))
    return counts
