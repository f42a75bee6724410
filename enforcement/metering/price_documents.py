"""
Read the document of prices that the control plane publishes.

A document is refused as a whole if any part of it breaks a rule. The reader then keeps the prices that it had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeVar

from enforcement.metering.amounts import USES
from enforcement.metering.prices import NO_FACTORS, Price, Prices
from enforcement.metering.rates import OPTIONAL_RATES, Rates
from enforcement.metering.typical import NONE_LEARNED, Learned, Numbers
from enforcement.model.checks import integer_rule, is_integer, shown
from enforcement.model.documents import SCHEMA, DocumentReader, InvalidDocument
from enforcement.model.instants import from_us, to_us
from enforcement.model.metered import FrozenMapping, InvalidMetering, Metering
from enforcement.model.sizes import MAX_PATTERN_LENGTH
from enforcement.model.strict_json import InvalidJSON, check_strings, loads_object

MAX_PRICES_BYTES: Final = 4 * 1024 * 1024
MAX_PRICES: Final = 20_000
"""Entries of one list of prices."""
MAX_TIERS: Final = 16
MAX_LEARNED: Final = 1_000
"""Groups of models, and kinds of tools, of which something was learned."""
MAX_GROUP_LENGTH: Final = 320
MAX_NUMBER_LEARNED: Final = 10**12
"""The greatest number of a group, in millionths of a token."""
MAX_TOOL_TOKENS: Final = 10_000_000
"""The most input tokens that one use of a tool of the provider is expected to add."""
MAX_ADDED_TOKENS: Final = 65_536
MAX_CAP: Final = 2**31 - 1
MAX_MULTIPLIERS: Final = 32
"""Multipliers of one price."""
MAX_MULTIPLIER: Final = 1_000_000
"""The greatest multiplier, per mille."""
MAX_HOSTS: Final = 32
"""Upstreams whose own costs are charged."""
HOST: Final = re.compile(r"[a-z0-9.-]{1,253}", re.ASCII)
MAX_RATE: Final = 10**12
"""The highest price, in micros per million tokens, which is one unit of the currency for each token."""

T = TypeVar("T")

_FEES: Final = ("calls", *USES)
_BOUNDS: Final = ("part_tokens", "added_tokens", "unbounded", "default_cap")
_MODIFIER: Final = re.compile(r"[a-z_]{1,32}=[\w.-]{1,64}", re.ASCII)
# The factors of a development version are not used.
_OPTIONAL: Final = frozenset({"currency", "overrides", "prices", "factors", "learned", "reported_costs"})
_INSTANT: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z",
    re.ASCII,
)
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)


def parse_prices(text: str | bytes) -> Prices:
    """
    Return the prices that a document describes.

    Args:
        text: JSON with ``schema``, ``revision`` and perhaps ``currency``, the lists ``overrides`` and ``prices``, the
            object ``learned``, and the list ``reported_costs``.
    Raises:
        InvalidDocument: It breaks a rule. The message names the field, such as ``prices[3].input``, and the rule.
    """
    try:
        value = loads_object(text, max_length=MAX_PRICES_BYTES)
        check_strings(value)
    except InvalidJSON as exc:
        raise InvalidDocument(str(exc)) from exc
    data = DocumentReader(value, {"revision"}, optional=_OPTIONAL)
    revision = data.integer("revision", least=1)
    lists = _prices(data, "overrides"), _prices(data, "prices")
    return Prices(revision, *lists, _currency(value), _learned(value), _reported_costs(value))


def price_to_json(price: Price) -> dict[str, object]:
    """Return an entry of a document, as JSON values that :func:`parse_prices` reads back."""
    dates = {"from": price.from_us, "until": price.until_us}
    tiers = [{"above_input": above, **_rates_to_json(rates)} for above, rates in price.tiers]
    return {
        "model": price.pattern,
        **{name: _instant_text(at_us) for name, at_us in dates.items() if at_us is not None},
        **_rates_to_json(price.rates),
        **{name: fee for name in _FEES if (fee := getattr(price, name)) is not None},
        **({"multipliers": dict(price.multipliers)} if price.multipliers else {}),
        **({"part_tokens": dict(price.part_tokens)} if price.part_tokens else {}),
        **({"added_tokens": price.added_tokens} if price.added_tokens else {}),
        **({"default_cap": price.default_cap} if price.default_cap else {}),
        **({"unbounded": True} if price.unbounded else {}),
        **({"tiers": tiers} if tiers else {}),
    }


def price_text(price: Price) -> str:
    """Return what :func:`price_to_json` does, encoded. Each reservation of money has it in its record."""
    if not price.text:
        object.__setattr__(price, "text", _price_text(price))
    return price.text


@lru_cache(1_024)
def _price_text(price: Price) -> str:
    return json.dumps(price_to_json(price), separators=(",", ":"))


def prices_to_json(prices: Prices) -> dict[str, object]:
    """Return a document as JSON values that :func:`parse_prices` reads back."""
    lists = {"overrides": prices.overrides, "prices": prices.prices}
    return {
        "schema": SCHEMA,
        "revision": prices.revision,
        **({"currency": prices.currency} if prices.currency else {}),
        **{name: [price_to_json(price) for price in entries] for name, entries in lists.items() if entries},
        **({"learned": learned} if (learned := learned_to_json(prices.learned)) else {}),
        **({"reported_costs": sorted(prices.reported_costs)} if prices.reported_costs else {}),
    }


def parse_price(item: Mapping[str, object]) -> Price:
    """
    Return the price that one entry of a document describes.

    Raises:
        InvalidDocument: It breaks a rule. The message names the field and the rule.
    """
    further = {*_FEES, *_BOUNDS, "from", "until", "tiers", "multipliers"}
    names, optional = {"model", "input", "output"}, OPTIONAL_RATES | further
    data = DocumentReader(item, names, optional=optional, nested=True)
    dates = _instant(item, "from"), _instant(item, "until")
    calls, file_searches, containers = (_optional_rate(data, name) for name in _FEES)
    fees = calls, file_searches, containers
    added = 0 if item.get("added_tokens") is None else data.integer("added_tokens", 0, MAX_ADDED_TOKENS)
    unbounded = "unbounded" in item and data.boolean("unbounded")
    cap = 0 if item.get("default_cap") is None else data.integer("default_cap", 1, MAX_CAP)
    bounds = _part_tokens(item.get("part_tokens", {})), added
    rates = _rates(data), *dates, _tiers(data)
    price = Price(_pattern(data), *rates, *fees, _multipliers(item), *bounds, unbounded, cap)
    if price.until_us is not None and price.from_us is not None and price.until_us <= price.from_us:
        raise InvalidDocument(f"until: must be after from, got {item['until']!r} and {item['from']!r}")
    return price


def _prices(data: DocumentReader, name: str) -> tuple[Price, ...]:
    places: dict[tuple[str, int | None], int] = {}

    def parse(item: Mapping[str, object]) -> Price:
        price = parse_price(item)
        key = price.pattern, price.from_us
        if key in places:
            raise InvalidDocument(f"model: must not have the model and from of {name}[{places[key]}]")
        places[key] = len(places)
        return price

    return tuple(_each(data, name, MAX_PRICES, parse))


def _each(data: DocumentReader, name: str, most: int, parse: Callable[[Mapping[str, object]], T]) -> Iterator[T]:
    """Yield what *parse* makes of each object of a list, which may be missing. Errors name the list and the place."""
    for i, item in enumerate(data.items(name, most) if name in data.data else ()):
        if not isinstance(item, Mapping):
            raise InvalidDocument(f"{name}[{i}]: must be an object, got {shown(item)}")
        try:
            yield parse(item)
        except InvalidDocument as exc:
            raise InvalidDocument(f"{name}[{i}].{exc}") from exc


def _pattern(data: DocumentReader) -> str:
    value = data.data["model"]
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN_LENGTH:
        rule = f"must be a string of 1 to {MAX_PATTERN_LENGTH} characters"
        raise InvalidDocument(f"model: {rule}, got {shown(value)}")
    return value


def _rates(data: DocumentReader) -> Rates:
    own = (_optional_rate(data, name) for name in Rates._fields[2:])
    return Rates(data.integer("input", 0, MAX_RATE), data.integer("output", 0, MAX_RATE), *own)


def _part_tokens(value: object) -> FrozenMapping[int]:
    try:
        return FrozenMapping(Metering(part_tokens=value).part_tokens)  # type: ignore[arg-type]
    except InvalidMetering as exc:
        raise InvalidDocument(str(exc)) from exc


def _optional_rate(data: DocumentReader, name: str) -> int | None:
    return None if data.data.get(name) is None else data.integer(name, 0, MAX_RATE)


def _tiers(data: DocumentReader) -> tuple[tuple[int, Rates], ...]:
    lower = 0

    def parse(item: Mapping[str, object]) -> tuple[int, Rates]:
        nonlocal lower
        tier = DocumentReader(item, {"above_input", "input", "output"}, optional=OPTIONAL_RATES, nested=True)
        lower = tier.integer("above_input", least=lower + 1)
        return lower, _rates(tier)

    return tuple(_each(data, "tiers", MAX_TIERS, parse))


def _instant(item: Mapping[str, object], name: str) -> int | None:
    if name not in item:
        return None
    value = item[name]
    found = _INSTANT.fullmatch(value) if isinstance(value, str) else None
    try:
        if found:
            *parts, fraction = found.groups(default="")
            return to_us(datetime(*map(int, parts), int(fraction.ljust(6, "0")), tzinfo=UTC))  # type: ignore[misc,arg-type]
    except ValueError:
        pass
    rule = "must be an instant in UTC such as 2026-01-31T00:00:00Z, with at most six decimals"
    raise InvalidDocument(f"{name}: {rule}, got {shown(value)}")


def _currency(value: Mapping[str, object]) -> str:
    if "currency" not in value:
        return ""
    currency = value["currency"]
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        raise InvalidDocument(f"currency: must be three capital letters such as USD, got {shown(currency)}")
    return currency


def _learned(value: Mapping[str, object]) -> Learned:
    if "learned" not in value:
        return NONE_LEARNED
    if not isinstance(value["learned"], Mapping):
        raise InvalidDocument(f"learned: must be an object, got {shown(value['learned'])}")
    data = DocumentReader(value["learned"], set(), optional={"groups", "tools"}, nested=True).data
    groups, tools = _named(data, "groups"), _named(data, "tools")
    for name, numbers in groups.items():
        if not isinstance(numbers, list) or len(numbers) != len(Numbers._fields):
            rule = f"must be a list of {len(Numbers._fields)} integers"
            raise InvalidDocument(f"learned.groups[{shown(name)}]: {rule}, got {shown(numbers)}")
        for number in numbers:
            if not is_integer(number, -MAX_NUMBER_LEARNED, MAX_NUMBER_LEARNED):
                rule = integer_rule(number, -MAX_NUMBER_LEARNED, MAX_NUMBER_LEARNED)
                raise InvalidDocument(f"learned.groups[{shown(name)}]: {rule}")
    for name, tokens in tools.items():
        if not is_integer(tokens, 0, MAX_TOOL_TOKENS):
            raise InvalidDocument(f"learned.tools[{shown(name)}]: {integer_rule(tokens, 0, MAX_TOOL_TOKENS)}")
    return Learned(FrozenMapping({name: Numbers(*found) for name, found in groups.items()}), FrozenMapping(tools))


def _named(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    result = data.get(name, {})
    if not isinstance(result, Mapping) or len(result) > MAX_LEARNED:
        raise InvalidDocument(f"learned.{name}: must be an object of at most {MAX_LEARNED}, got {shown(result)}")
    for key in result:
        if not 0 < len(key) <= MAX_GROUP_LENGTH:
            rule = f"must have names of 1 to {MAX_GROUP_LENGTH} characters"
            raise InvalidDocument(f"learned.{name}: {rule}, got {shown(key)}")
    return result


def learned_to_json(learned: Learned) -> dict[str, object]:
    """Return what was learned, as JSON values that :func:`parse_prices` reads back."""
    groups = {name: list(numbers) for name, numbers in learned.groups.items()}
    return {name: found for name, found in (("groups", groups), ("tools", dict(learned.tools))) if found}


def _multipliers(item: Mapping[str, object]) -> FrozenMapping[int]:
    if "multipliers" not in item:
        return NO_FACTORS
    found = item["multipliers"]
    if not isinstance(found, Mapping) or len(found) > MAX_MULTIPLIERS:
        rule = f"must be an object with at most {MAX_MULTIPLIERS} multipliers"
        raise InvalidDocument(f"multipliers: {rule}, got {shown(found)}")
    for name, value in found.items():
        if not _MODIFIER.fullmatch(name):
            raise InvalidDocument(f"multipliers: must have names such as service_tier=priority, got {shown(name)}")
        if not is_integer(value, 0, MAX_MULTIPLIER):
            raise InvalidDocument(f"multipliers[{shown(name)}]: {integer_rule(value, 0, MAX_MULTIPLIER)}")
    return FrozenMapping(found)


def _reported_costs(value: Mapping[str, object]) -> frozenset[str]:
    hosts = value.get("reported_costs", [])
    if not isinstance(hosts, list) or len(hosts) > MAX_HOSTS:
        raise InvalidDocument(f"reported_costs: must be a list of at most {MAX_HOSTS} hosts, got {shown(hosts)}")
    for host in hosts:
        if not isinstance(host, str) or not HOST.fullmatch(host):
            raise InvalidDocument(f"reported_costs: must have names of hosts such as openrouter.ai, got {shown(host)}")
    return frozenset(hosts)


def _rates_to_json(rates: Rates) -> dict[str, int]:
    return {name: value for name, value in rates._asdict().items() if value is not None}


def _instant_text(at_us: int) -> str:
    return from_us(at_us).isoformat().replace("+00:00", "Z")
