"""The changes that an update of the catalogue would make."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from controlplane.changes.words.words import in_a_terminal
from controlplane.core.money import amount
from controlplane.objects.prices.models import RATES, ModelPrice

Place = tuple[str, datetime | None]


@dataclass(frozen=True, slots=True)
class Difference:
    """
    One price that is added, changed or removed.

    Attributes:
        old: The present row. None: it is added.
        new: The row that replaces it, which is not saved. None: it is removed.
    """

    old: ModelPrice | None
    new: ModelPrice | None

    @property
    def word(self) -> str:
        """``added``, ``changed`` or ``removed``."""
        if self.old is None:
            return "added"
        return "removed" if self.new is None else "changed"

    @property
    def rows(self) -> list[ModelPrice]:
        """The row before and the row after, or the only one of them that there is."""
        return [row for row in (self.old, self.new) if row is not None]

    def __str__(self) -> str:
        words = list(map(in_words, self.rows))
        return f"{self.word} {self.rows[-1]}: {in_a_terminal(*words) if len(words) == 2 else words[0]}"


def between(present: Iterable[ModelPrice], wanted: Iterable[ModelPrice]) -> list[Difference]:
    """Return how the present prices of the catalogue differ from the wanted ones, by pattern and beginning."""
    return sorted(_between(_placed(present), _placed(wanted)), key=_order)


def _between(present: dict[Place, ModelPrice], wanted: dict[Place, ModelPrice]) -> Iterator[Difference]:
    for place, new in wanted.items():
        old = present.get(place)
        if old is None:
            yield Difference(None, new)
        elif old.as_entry() != new.as_entry():
            new.pk, new._state.adding = old.pk, False
            yield Difference(old, new)
    for place, old in present.items():
        if place not in wanted:
            yield Difference(old, None)


def in_words(price: ModelPrice) -> str:
    """Return what a price demands, such as ``input 2.5, output 10``, in units of the currency for a million tokens."""
    rates = {name: getattr(price, name) for name in RATES}
    rates |= {"calls": price.calls, **price.classes}
    words = [f"{name} {amount(rate)}" for name, rate in rates.items() if rate is not None]
    words += [f"{name} x {amount(times * 1_000)}" for name, times in price.multipliers.items()]
    return ", ".join(words + [f"from {tier['above_input']:,} {_tier(tier)}" for tier in price.tiers])


def _tier(tier: dict[str, int]) -> str:
    return "/".join(amount(tier[name]) for name in RATES if tier.get(name) is not None)


def _placed(prices: Iterable[ModelPrice]) -> dict[Place, ModelPrice]:
    return {(price.pattern, price.valid_from): price for price in prices}


def _order(difference: Difference) -> tuple[int, str, str]:
    row = difference.rows[-1]
    return ("removed", "changed", "added").index(difference.word), row.pattern, str(row.valid_from or "")
