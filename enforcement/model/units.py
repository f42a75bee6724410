"""
Tell a unit that limits may count by mistake from those that meters report.

Any unit may be right, as callers report their own. One that is neither usual nor ever charged counts nothing, so that
its limit admits everything.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from enforcement.model.metered import METERED_UNITS, MONEY
from enforcement.model.money import MICROS, figure
from enforcement.model.spelling import closest

USUAL: Final = ("requests", *sorted(METERED_UNITS))
"""Units that requests and meters report by themselves."""

AMOUNTS: Final = ("quota", "burst", "rollover")
"""Fields of a limit that are in its unit."""

LEAST_MONEY: Final = MICROS // 10
"""A limit on less money was probably written in whole units of the currency."""

_REQUESTS: Final = frozenset({"request", "req", "reqs", "hit", "hits", "call", "calls", "query", "queries", "rpm"})
_MONEY: Final = frozenset(
    {
        *("money", "cost", "costs", "spend", "spending", "budget", "price", "amount", "currency"),
        *("dollar", "dollars", "cent", "cents", "euro", "euros", "pound", "pounds", "yen"),
        *("usd", "eur", "gbp", "jpy", "chf", "cny", "inr", "cad", "aud", "micro", "micros", "microdollars"),
    }
)
_TOKENS: Final = frozenset({"token", "tokens", "tok", "toks", "tpm"})
_INPUT: Final = frozenset({"input", "inputs", "prompt", "prompts", "in"})
_OUTPUT: Final = frozenset({"output", "outputs", "completion", "completions", "generated", "out"})


def meant(unit: str, charged: Collection[str] = (), currency: str = "") -> str:
    """
    Return the unit that somebody who wrote *unit* probably meant, or an empty string.

    Args:
        charged: Other units that requests have charged.
        currency: That of the installation, such as ``USD``.
    """
    parts = set(re.split("[_-]", unit))
    if parts & _INPUT and parts <= _INPUT | _TOKENS | {"llm"}:
        return "input_tokens"
    if parts & _OUTPUT and parts <= _OUTPUT | _TOKENS | {"llm"}:
        return "output_tokens"
    if parts & (_MONEY | {currency.lower()}):
        return MONEY
    if parts & _TOKENS:
        return "input_tokens" if parts & _INPUT else "output_tokens" if parts & _OUTPUT else "tokens"
    if parts & _REQUESTS:
        return "requests"
    return next(iter(closest(unit, [*USUAL, *charged], similar=0.8)), "")


def never_charged(unit: str, intended: str) -> str:
    """
    Return a sentence about a limit whose unit is neither usual nor ever charged.

    Args:
        intended: The unit that was probably meant, as the reader writes it. Empty if that is not known.
    """
    said = f"Nothing has been charged in {unit} so far, and a limit in a unit that nothing is charged in admits all."
    return f"{said} Did you mean {intended}?" if intended else f"{said} Usual units are {', '.join(USUAL)}."


def is_little(quota: int, unit: str) -> bool:
    """Return whether a quota is so little money that whoever wrote it may have meant whole units."""
    return unit == MONEY and 0 < quota < LEAST_MONEY


def little(quota: int, currency: str = "") -> str:
    """Return a sentence about a quota of little money, see :func:`is_little`."""
    amount, meant = (f"{figure(micros)} {currency or 'of the currency'}" for micros in (quota, quota * MICROS))
    return f"{quota} {MONEY} are {amount}. For {meant}, write {quota * MICROS}."
