"""Write money, which is counted in millionths of the currency, as people read it."""

from typing import Final

MICROS: Final = 1_000_000
"""Millionths in one unit of the currency."""


def figure(micros: int) -> str:
    """Return millionths with at least two decimals, and without the currency, such as ``1,234.50``."""
    whole, rest = divmod(abs(micros), MICROS)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{'-' if micros < 0 else ''}{whole:,}.{decimals:0<2}"
