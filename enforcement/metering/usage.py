"""The tokens of one request, by the classes that providers price apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_COUNT: Final = 1_000_000_000
"""Greatest count of tokens that is believed of a provider."""

MAX_TOKENS: Final = 2 * MAX_COUNT
"""Greatest number of tokens of one class. No format adds more than two counts into a class."""

CLASSES: Final = ("input", "cached_input", "cache_write", "output")
"""Names of the usage classes, in the order of the fields of :class:`Usage`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """
    Tokens of one request by class. No token is counted in two classes.

    Raises:
        ValueError: A number is not an integer from 0 to :data:`MAX_TOKENS`.
    """

    input: int = 0
    """Tokens of the request that were neither read from nor written to the provider's cache."""

    cached_input: int = 0
    """Tokens of the request that the provider read from its cache."""

    cache_write: int = 0
    """Tokens of the request that the provider wrote to its cache."""

    output: int = 0
    """Generated tokens, including those of reasoning."""

    def __post_init__(self) -> None:
        counts = self.input, self.cached_input, self.cache_write, self.output
        for name, value in zip(CLASSES, counts, strict=True):
            if type(value) is not int or not 0 <= value <= MAX_TOKENS:
                raise ValueError(f"{name}: must be an integer from 0 to {MAX_TOKENS}, got {value!r}")

    @property
    def all_input(self) -> int:
        """Return the tokens of the three input classes. Price tiers depend on it."""
        return self.input + self.cached_input + self.cache_write


__all__ = ["CLASSES", "MAX_COUNT", "MAX_TOKENS", "Usage"]
