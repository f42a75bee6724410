"""Check integers, and show refused values in error messages."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 64


def is_integer(value: object, least: int, most: int) -> bool:
    """Return whether a value is an integer within two bounds. A boolean is not an integer."""
    return type(value) is int and least <= value <= most


def integer_rule(value: object, least: int, most: int) -> str:
    """Return the end of an error message for a value that :func:`is_integer` refuses."""
    return f"must be an integer from {least} to {most}, got {shown(value)}"


def shown(value: object) -> str:
    """Return the ``repr()`` of a value for an error message, cut to 64 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits.
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


__all__ = ["integer_rule", "is_integer", "shown"]
