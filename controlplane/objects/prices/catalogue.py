"""
Prices from the package genai-prices, which only the control plane uses.

Its data come with the package. A newer list is fetched only if an operator asks for that.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from math import ceil
from typing import Any, NamedTuple

from controlplane.objects.prices.models import CATALOGUE, RATES, ModelPrice
from enforcement.metering.amounts import FURTHER_NAMES

# Those whose requests can be metered, in the order in which they are asked for a model that several have.
PROVIDERS = ("openai", "anthropic", "google", "aws", "cohere", "voyageai")
CURRENCY = "USD"
AS_BEFORE = "Nothing was changed."

_NAMES = {"input_mtok": "input", "output_mtok": "output", "cache_read_mtok": "cached_input"}
_NAMES |= {"cache_write_mtok": "cache_write", "cache_write_1h_mtok": "cache_write_1h"}
_NAMES |= {"cache_audio_read_mtok": "cached_audio"}
_NAMES |= {f"{name}_mtok": name for name in FURTHER_NAMES if name.startswith(("input", "output"))}
# Fees of a thousand calls.
_FEES = {"web_searches_kcount": "calls", "storage_searches_kcount": "file_searches"}
# Names that end in a date. In this century it begins with 20.
_DATES = ((r"\d{4}-\d{2}-\d{2}", "20*-*-*"), (r"\d{8}", "20*"))
_LITERAL = re.compile(r"[\w.@:/ -]*\Z", re.ASCII)


class Unavailable(Exception):
    """Raised if the catalogue cannot be read. The message says why and what to do."""


class Found(NamedTuple):
    """
    The result of reading the catalogue.

    Attributes:
        prices: Rows that are not saved.
        left_out: A line for each model, or name of one, that has no price as we know them.
    """

    prices: list[ModelPrice]
    left_out: list[str]


def read(providers: Sequence[str] = PROVIDERS, *, fetch: bool = False) -> Found:
    """
    Return the prices of these providers.

    Args:
        providers: Their ids. Of two that have the same model, the first one counts.
        fetch: Whether to fetch the newest list from its publisher. Otherwise that of the package is read.
    Raises:
        Unavailable: The package is not installed, the list cannot be fetched or read, there is no such provider, or one
            has no prices, so that all its present ones would be removed.
    """
    installed = {provider.id for provider in _installed()}
    known = {provider.id: provider for provider in (_fetched() if fetch else _installed())}
    for name in providers:
        if name not in known and name in installed:
            raise Unavailable(
                f"The fetched list has no provider {name!r}, whose prices would all be removed. {AS_BEFORE}"
            )
        if name not in known:
            names = ", ".join(sorted(installed | set(known)))
            raise Unavailable(f"--provider: must be one of {names}, got {name!r}.")
    try:
        result, priced = _convert([known[name] for name in dict.fromkeys(providers)])
    except (ArithmeticError, AttributeError, TypeError, ValueError) as exc:
        raise Unavailable(f"The list of prices cannot be read: {_said(exc)}. {AS_BEFORE}") from exc
    for name in providers:
        if name not in priced:
            text = f"The list has no price of a model of {name!r}, whose prices would all be removed. {AS_BEFORE}"
            raise Unavailable(text)
    return result


def _installed() -> Sequence[Any]:
    try:
        from genai_prices import data_snapshot
    except ImportError as exc:
        text = "The package genai-prices is not installed. Install sluicegate[controlplane], which names it."
        raise Unavailable(text) from exc
    return data_snapshot.get_snapshot().providers


def _fetched() -> Sequence[Any]:
    _installed()
    from genai_prices import UpdatePrices

    try:
        found = UpdatePrices().fetch()
    except Exception as exc:
        raise Unavailable(f"The list of prices could not be fetched: {_said(exc)}. {AS_BEFORE}") from exc
    if found is None:
        raise Unavailable(f"The list of prices could not be fetched. {AS_BEFORE}")
    return found.providers


def _said(exc: Exception) -> str:
    """Return what an error says, on one line and not at any length."""
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:300].strip(":. ")


def _convert(providers: Iterable[Any]) -> tuple[Found, set[str]]:
    """Return what the list says, and the ids of the providers that have a price."""
    priced: set[str] = set()
    rows: dict[tuple[str, datetime | None], ModelPrice] = {}
    owners: dict[str, str] = {}
    left_out = []
    for provider in providers:
        for model in provider.models:
            name = f"{provider.id}/{model.id}"
            patterns, odd = _patterns(model.match)
            left_out += [f"{name}: the names {text} cannot be written as a pattern" for text in odd]
            prices = list(_dated(model.prices))
            if not prices:
                left_out.append(f"{name}: not priced by tokens, or by the time of day")
                continue
            if patterns:
                priced.add(provider.id)
            for pattern in patterns:
                if owners.setdefault(pattern, name) == name:
                    rows.update({(pattern, at): _row(pattern, at, rates) for at, rates in prices})
    return Found(list(rows.values()), left_out), priced


def _row(pattern: str, valid_from: datetime | None, rates: dict[str, Any]) -> ModelPrice:
    return ModelPrice(source=CATALOGUE, pattern=pattern, valid_from=valid_from, **rates)


def _patterns(match: Any) -> tuple[list[str], list[str]]:
    """Return the patterns for the names of a model, and the names that no pattern can describe."""
    clauses = getattr(match, "or_", None) or [match]
    patterns, odd = [], []
    for clause in clauses:
        found = _pattern(clause)
        patterns += found
        if not found:
            odd.append(str(getattr(clause, "regex", clause)))
    return list(dict.fromkeys(patterns)), odd


def _pattern(clause: Any) -> list[str]:
    """Return the patterns for one clause, or none if it cannot be written as patterns."""
    if hasattr(clause, "and_"):
        # That a name must not say "tts" cannot be written. Those models have longer names, and prices of their own.
        rest = [part for part in clause.and_ if not getattr(part, "regex", "").startswith("^(?!")]
        return _pattern(rest[0]) if len(rest) == 1 else []
    for name, form in (("equals", "{}"), ("starts_with", "{}*"), ("ends_with", "*{}"), ("contains", "*{}*")):
        text = getattr(clause, name, None)
        if text is not None:
            return [form.format(text)] if "*" not in text else []
    return _of_regex(getattr(clause, "regex", ""))


def _of_regex(regex: str) -> list[str]:
    """Return the patterns for names that begin with a literal and end in a date, or none for other expressions."""
    if not (regex.startswith("^") and regex.endswith("$")):
        return []
    for date, glob in _DATES:
        head, found, rest = regex[1:-1].partition(date)
        if not found or rest:
            continue
        heads = [head.replace("[-@]", mark) for mark in "-@"] if "[-@]" in head else [head]
        texts = [text.replace("\\.", "\0") for text in heads]
        if all(_LITERAL.match(text.replace("\0", "")) and "." not in text for text in texts):
            return [text.replace("\0", ".") + glob for text in texts]
    return []


def _dated(prices: Any) -> Iterator[tuple[datetime | None, dict[str, Any]]]:
    """Yield from when on each price holds, and its columns. Yield nothing for what is not priced by tokens."""
    conditional = prices if isinstance(prices, list) else [None]
    found = []
    for one in conditional:
        constraint = getattr(one, "constraint", None)
        start = getattr(constraint, "start_date", None)
        rates = _rates(prices if one is None else one.prices)
        if rates is None or (constraint is not None and start is None):
            return
        found.append((start and datetime.combine(start, time(), UTC), rates))
    # The first one also holds before its date.
    yield from [(None, found[0][1]), *found[1:]] if found else ()


def _rates(prices: Any) -> dict[str, Any] | None:
    """Return the columns of a price, or None if it has no price for tokens of input."""
    values = {column: getattr(prices, name, None) for name, column in _NAMES.items()}
    for side in ("input", "output"):
        if values[side] is None:
            values[side] = _dearest(prices, side)
    if values["input"] is None:
        return None
    if values["output"] is None:  # as of embeddings, which generate nothing
        values["output"] = Decimal(0)
    if values["input_image"] is not None and values["output_image"] is None and values["output_audio"] is None:
        values["output_image"] = values["output"]  # the model generates nothing but images
    starts = sorted({tier.start for value in values.values() for tier in getattr(value, "tiers", ())})
    rates, classes = _at(values, 0), _fees(prices)
    columns = {name: rates.pop(name) for name in RATES}
    columns["calls"] = classes.pop("calls", None)
    tiers = [{"above_input": start, **_known(_at(values, start))} for start in starts]
    return {**columns, "classes": classes | _known(rates), "tiers": tiers}


def _fees(prices: Any) -> dict[str, int]:
    """Return the fees of a million uses of the provider's tools, by name."""
    fees = {column: _micros(getattr(prices, name, None), 0) for name, column in _FEES.items()}
    return {name: fee * 1_000 for name, fee in fees.items() if fee is not None}


def _dearest(prices: Any, side: str) -> Any:
    """Return the highest price for tokens that are no text, such as those of sound, or None without any."""
    others = [getattr(prices, f"{side}_{kind}_mtok", None) for kind in ("audio", "image", "video")]
    return max((price for price in others if price is not None), key=lambda price: _micros(price, 0) or 0, default=None)


def _at(values: dict[str, Any], start: int) -> dict[str, int | None]:
    """Return the micros of each class for input above *start*, by the highest tier that has begun there."""
    return {name: _micros(value, start) for name, value in values.items()}


def _known(rates: dict[str, int | None]) -> dict[str, int]:
    return {name: rate for name, rate in rates.items() if rate is not None}


def _micros(value: Any, start: int) -> int | None:
    """Return a price in micros, rounded up, or None if there is none."""
    if value is None:
        return None
    tiers = getattr(value, "tiers", None)
    if tiers is not None:
        begun = [tier.price for tier in tiers if tier.start <= start]
        value = begun[-1] if begun and start else value.base
    return ceil(Decimal(value) * 1_000_000)
