"""Find the name that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def closest(name: str, known: Iterable[str], *, most: int = 1, similar: float = 0.6) -> list[str]:
    """
    Return the known names that are most like a name, the best first, or an empty list.

    Args:
        most: The greatest number of names to return.
        similar: How much alike they must be, from 0 for anything to 1 for equal.
    """
    from difflib import get_close_matches  # only after a mistake

    return get_close_matches(name, list(known), n=most, cutoff=similar)
