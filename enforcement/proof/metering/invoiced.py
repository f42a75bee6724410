"""Compute what an invoice costs each limit. This is on purpose not the code of the meter."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from enforcement.proof.metering.documents import PRICES

CLASSES: Final = ("input", "cached_input", "cache_write", "output")
_COUNTED: Final = {"tokens": CLASSES, "input_tokens": CLASSES[:3], "output_tokens": CLASSES[3:], "micros": CLASSES}


def invoiced_cost(limit: Mapping[str, Any], line: Mapping[str, Any]) -> int:
    """
    Return what a limit has to charge for one line of an invoice, rounded up.

    Args:
        limit: The limit as a JSON value.
        line: The line: the model, and the tokens of each class.
    """
    if limit.get("unit", "requests") == "requests":
        return 1
    price = _price(line["model"]) if limit["unit"] == "micros" else {}
    weights, total = limit.get("weights", {}), 0
    for name in _COUNTED[limit["unit"]]:
        total += line[name] * (price[name] * 1_000 if price else weights.get(name, 1_000) * 1_000_000)
    return -(-total // 1_000_000_000)


def _price(model: str) -> dict[str, int]:
    """Return micros for a million tokens of each class. A class without a price costs as much as the input."""
    row = next(row for row in PRICES["prices"] if fnmatchcase(model, row["model"]))
    return {name: row.get(name, row["input"]) for name in CLASSES}
