"""Read the notation for limits that other libraries use, such as ``"100/minute"``."""

from __future__ import annotations

import re
from typing import Any, Final

from enforcement.model.checks import shown
from enforcement.model.instants import PERIOD_SECONDS
from enforcement.model.metered import MONEY
from enforcement.model.money import MICROS

# A single letter has no plural: "ms" would be read as minutes.
_RATE: Final = re.compile(
    r"\s*(\d{1,16})\s*(?:/|per)\s*(\d{1,8})?\s*(?:([smhd])|([a-z]{2,}?)s?)\s*", re.ASCII | re.IGNORECASE
)
_WITHOUT_PERIOD: Final = re.compile(r"\s*(\d{1,16})\s*/\s*(\d{0,8})\s*", re.ASCII)
# An amount of money has the sign or the code of a currency, or decimals.
_CURRENCY: Final = r"[$\u00a3\u20ac]|\b(?:USD|EUR|GBP|JPY|CHF|CNY|INR|CAD|AUD)\b"
_OF_MONEY: Final = re.compile(
    rf"\s*(?=.*(?:{_CURRENCY}|\.))[^\d/]{{0,4}}(\d{{1,9}}(?:\.\d{{1,6}})?)[^\d/]{{0,4}}(?:/|per).*"
)
_DAYS: Final = {"month": 30, "year": 365}
_MOST_DAYS: Final = 366
_SHORT: Final = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
_SEPARATORS: Final = re.compile("[;,|]")


def parse_rate(text: object) -> dict[str, Any]:
    """
    Return as a dictionary the fields of a limit that a rate stands for, which are its quota, algorithm and window.

    Months and years become ``fixed_window`` limits of the calendar, because they differ in length. All other rates
    become a ``sliding_window``.

    Raises:
        ValueError: The text is not ``<quota>/[<number>] <period>``. The message is a rule, as a sentence.
    """
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        if isinstance(text, str) and (bare := _WITHOUT_PERIOD.fullmatch(text)):
            raise ValueError(f'The period is missing. For seconds, write "{bare[1]}/{bare[2]}s", got {shown(text)}.')
        several = isinstance(text, str) and _SEPARATORS.search(text)
        if isinstance(text, str) and not several and (amount := _OF_MONEY.fullmatch(text)):
            whole, _, decimals = amount[1].partition(".")
            quota = int(whole) * MICROS + int(f"{decimals:0<6}")
            write = f'Limit(quota={quota}, unit="{MONEY}", ...)'
            raise ValueError(f"Counts whole requests. For money, write {write}, got {shown(text)}.")
        hint = " Limit.parse_many() reads several." if several else ""
        raise ValueError(f'Must be like "100/minute" or "10 per 2 seconds", got {shown(text)}.{hint}')
    quota, multiple, period = int(found[1]), int(found[2] or 1), (found[3] or found[4]).lower()
    period = _SHORT.get(period, period)
    if period in PERIOD_SECONDS:
        seconds = multiple * PERIOD_SECONDS[period]
        return {"quota": quota, "algorithm": "sliding_window", "window_seconds": seconds}
    if period in ("month", "year") and multiple == 1:
        return {"quota": quota, "algorithm": "fixed_window", "calendar": period}
    if period in _DAYS:
        days = min(multiple * _DAYS[period], _MOST_DAYS)
        rule = f'Several {period}s have no fixed length. Write "{quota}/{days} days" instead'
        raise ValueError(f"{rule}, got {shown(found[0].strip())}.")
    raise ValueError(f"The period must be seconds to weeks, a month or a year, got {shown(found[0].strip())}.")


def split_rates(text: object) -> list[object]:
    """Return the rates in a string, separated by semicolons, commas or bars, or any other value alone in a list."""
    return list(_SEPARATORS.split(text)) if isinstance(text, str) else [text]


def rate_name(quota: int, window_seconds: int | None, calendar: str | None) -> str:
    """Return a name for a limit without one, such as ``100-per-minute``."""
    if calendar is not None:
        return f"{quota}-per-{calendar}"
    for period, seconds in PERIOD_SECONDS.items():
        if window_seconds is not None and window_seconds % seconds == 0:
            multiple = window_seconds // seconds
            return f"{quota}-per-{period}" if multiple == 1 else f"{quota}-per-{multiple}-{period}s"
    return f"{quota}-per-window"
