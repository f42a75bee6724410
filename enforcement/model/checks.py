"""Check integers and secrets, and show refused values in error messages."""

from __future__ import annotations

from typing import Final

LEAST_SECRET_LENGTH: Final = 16
MOST_SECRET_LENGTH: Final = 256

_SHOWN: Final = 64


def is_integer(value: object, least: int, most: int) -> bool:
    """Return whether a value is an integer within two bounds. A boolean is not an integer."""
    return type(value) is int and least <= value <= most


def integer_rule(value: object, least: int, most: int) -> str:
    """Return the end of an error message for a value that :func:`is_integer` refuses."""
    return f"must be an integer from {least} to {most}, got {shown(value)}"


def is_secret(value: object) -> bool:
    """Return whether a value is a string that is long enough for a secret, and not too long."""
    return isinstance(value, str) and LEAST_SECRET_LENGTH <= len(value) <= MOST_SECRET_LENGTH


def check_secret(name: str, value: object) -> None:
    """Raise ValueError, with the name of the setting, for a value that is no secret. The message does not show it."""
    if not is_secret(value):
        size = len(value) if isinstance(value, str) else type(value).__name__
        raise ValueError(f"{name}: must have {LEAST_SECRET_LENGTH} to {MOST_SECRET_LENGTH} characters, got {size}.")


def check_switch(name: str, value: object) -> bool:
    """Return *value* if it is a boolean, or raise ValueError with the name of the setting."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: must be True or False, got {shown(value)}.")
    return value


def shown(value: object) -> str:
    """Return the ``repr()`` of a value for an error message, cut to 64 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits.
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
