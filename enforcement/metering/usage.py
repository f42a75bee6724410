"""What one request has used, by the classes that providers price apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_COUNT: Final = 1_000_000_000
"""Greatest count of tokens that is believed of a provider."""

MAX_TOKENS: Final = 2 * MAX_COUNT
"""Greatest number of tokens of one class. No format adds more than two counts into a class."""

CLASSES: Final = ("input", "cached_input", "cache_write", "output", "calls")
"""Names of the usage classes, in the order of the fields of :class:`Usage`."""


@dataclass(slots=True)
class Usage:
    """
    Tokens of one request by class, and calls of the provider's tools. No token is counted in two classes.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

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

    calls: int = 0
    """Calls of the provider's own tools that it charges a fee for, such as searches of the web. They are no tokens."""

    other_rates: bool = False
    """Whether some of it has rates that no class has: of a service tier, of sound, of a longer life in the cache."""

    def __post_init__(self) -> None:
        counts = self.input, self.cached_input, self.cache_write, self.output, self.calls
        if {*map(type, counts)} == {int} and min(counts) >= 0 and max(counts) <= MAX_TOKENS:
            return
        for name, value in zip(CLASSES, counts, strict=True):
            if type(value) is not int or not 0 <= value <= MAX_TOKENS:
                raise ValueError(f"{name}: must be an integer from 0 to {MAX_TOKENS}, got {value!r}")

    @property
    def all_input(self) -> int:
        """Return the tokens of the three input classes. Price tiers depend on it."""
        return self.input + self.cached_input + self.cache_write
