"""The usage of one request, by the classes that providers price apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, NamedTuple, Protocol

MAX_COUNT: Final = 1_000_000_000
"""Greatest count of tokens that is believed of a provider."""

MAX_TOKENS: Final = 2 * MAX_COUNT
"""Greatest number of tokens of one class. No format adds more than two counts into a class."""

CLASSES: Final = ("input", "cached_input", "cache_write", "output", "calls")
"""Names of the usage classes that most answers have, in the order of the fields of :class:`Usage`."""


class UsageClass(NamedTuple):
    """
    A class of tokens that few answers have.

    Attributes:
        name: Its name, also that of its rate.
        within: The class of :class:`Usage` by whose weight limits on tokens count it.
        costs_as: The class whose rate it has where a price has none for it. None: nobody knows, so that it costs what
            the dearest class of its side does, and the price is approximate.
    """

    name: str
    within: str
    costs_as: str | None = None

    @property
    def side(self) -> str:
        """``input`` or ``output``."""
        return "output" if self.within == "output" else "input"


FURTHER: Final = (
    UsageClass("input_audio", "input"),
    UsageClass("input_image", "input", costs_as="input"),
    UsageClass("input_video", "input", costs_as="input"),
    UsageClass("cached_audio", "cached_input"),
    UsageClass("cache_write_1h", "cache_write"),
    UsageClass("output_image", "output"),
    UsageClass("output_audio", "output"),
)
"""
The classes that few answers have. Lists of prices name images and video in the input only where they are not priced as
text, and the others wherever a model has them.
"""
FURTHER_NAMES: Final = tuple(one.name for one in FURTHER)
_PARTS: Final = {
    name: (name, *(one.name for one in FURTHER if one.within == name))
    for name in ("input", "cached_input", "cache_write", "output")
}
USES: Final = ("file_searches", "containers")
"""Uses of the provider's tools that have a fee of their own, other than that of a call."""


class TokenCounts(Protocol):
    """Numbers by usage class, as of a :class:`Usage` or an estimate. Only a :class:`DetailedUsage` is not plain."""

    @property
    def input(self) -> int: ...
    @property
    def cached_input(self) -> int: ...
    @property
    def cache_write(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def other_rates(self) -> bool: ...
    @property
    def is_plain(self) -> bool: ...


_INTEGERS: Final = {int}


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
    """Whether some of it has rates or fees that no class has."""

    is_plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        counts = self.input, self.cached_input, self.cache_write, self.output, self.calls
        if {*map(type, counts)} == _INTEGERS and min(counts) >= 0 and max(counts) <= MAX_TOKENS:
            return
        for name, value in zip(CLASSES, counts, strict=True):
            _check(name, value)

    @property
    def all_input(self) -> int:
        """Return the tokens of all input classes. Price tiers depend on it."""
        return self.input + self.cached_input + self.cache_write

    @property
    def all_output(self) -> int:
        """Return the tokens of all output classes."""
        return self.output

    def at_least(self, output: int, calls: int) -> Usage:
        """Return this usage with so much output and so many calls, if it has fewer."""
        more = output - self.all_output
        if more <= 0 and calls <= self.calls:
            return self
        return replace(self, output=self.output + max(0, more), calls=max(calls, self.calls))

    def with_more(self, more: Mapping[str, object]) -> Usage:
        """Return this usage with values for fields of :class:`DetailedUsage`, of which some may be set already."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return DetailedUsage(**{**known, **more})


@dataclass(slots=True)
class DetailedUsage(Usage):
    """
    A usage with classes that few answers have. Their tokens are in no class of :class:`Usage`.

    Raises:
        ValueError: As above.
    """

    input_audio: int = 0
    input_image: int = 0
    input_video: int = 0
    cached_audio: int = 0
    """Tokens of sound that the provider read from its cache."""
    cache_write_1h: int = 0
    """Tokens that the provider keeps for an hour."""
    output_image: int = 0
    output_audio: int = 0

    file_searches: int = 0
    """How many of the calls were searches of the client's files."""
    containers: int = 0
    """Containers that the provider ran code in. They are no calls."""
    steps: tuple[UsageStep, ...] = ()
    """Parts of this usage that are priced by themselves. All numbers above include them."""
    modifiers: tuple[str, ...] = ()
    """Modifiers on which the rates depend, such as ``service_tier=priority``."""
    cost: int | None = None
    """The cost of the request by the provider's own report, in millionths of its currency. None: it reports none."""

    is_plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Usage.__post_init__(self)
        for name in (*FURTHER_NAMES, *USES):
            _check(name, getattr(self, name))

    @property
    def all_input(self) -> int:
        return sum(map(self.whole, ("input", "cached_input", "cache_write")))

    @property
    def all_output(self) -> int:
        return self.whole("output")

    def whole(self, name: str) -> int:
        """Return the tokens of one of the four classes of tokens of :class:`Usage`, with all that count as such."""
        return sum([int(getattr(self, one)) for one in _PARTS[name]])

    def beside_steps(self) -> DetailedUsage:
        """Return what is left of the tokens without the steps."""
        if not self.steps:
            return self
        names = (*CLASSES[:-1], *FURTHER_NAMES)
        used = {name: sum(getattr(step.usage, name, 0) for step in self.steps) for name in names}
        return replace(self, steps=(), **{name: max(0, getattr(self, name) - used[name]) for name in names})


class UsageStep(NamedTuple):
    """
    A part of a request with a price or a tier of its own.

    Attributes:
        usage: Its tokens.
        model: The model that has used them. None: the one that was asked.
        tool: The tool of the provider whose model that is, if *model* is None. Empty: none.
    """

    usage: Usage
    model: str | None = None
    tool: str = ""


def total_of(usages: Iterable[Usage]) -> Usage:
    """Return the sum of some usages, class by class."""
    found = list(usages)
    if len(found) == 1:
        return found[0]
    names = (*CLASSES, *FURTHER_NAMES)
    sums: dict[str, Any] = {name: min(MAX_TOKENS, sum([getattr(one, name, 0) for one in found])) for name in names}
    further = {name: sums.pop(name) for name in FURTHER_NAMES}
    return Usage(**sums).with_more(further) if any(further.values()) else Usage(**sums)


def input_of(counts: TokenCounts) -> int:
    """Return the tokens of all input classes."""
    if isinstance(counts, DetailedUsage):
        return counts.all_input
    return counts.input + counts.cached_input + counts.cache_write


def count_of(counts: TokenCounts, name: str) -> int:
    """Return the tokens of one of the four classes of :class:`Usage`, with all that count as such."""
    return counts.whole(name) if isinstance(counts, DetailedUsage) else int(getattr(counts, name))


def _check(name: str, value: object) -> None:
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"{name}: must be an integer from 0 to {MAX_TOKENS}, got {value!r}")
