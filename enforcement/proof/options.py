"""Parse the options that ``load`` and ``verify`` share, which are numbers and limits."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Final

from enforcement.model.limits import InvalidLimit, Limit
from enforcement.settings import DEFAULT_URL

DEFAULT: Final = "default: %(default)s"

NumberOption = tuple[str, str, Callable[[str], float], float, str]
"""Name, metavar, parser, default and help."""


class InvalidOption(ValueError):
    """The value of an option is not valid."""


def add_numbers(parser: argparse._ActionsContainer, numbers: Iterable[NumberOption]) -> None:
    """Add options that take a number to a parser."""
    for option, metavar, parse, default, text in numbers:
        parser.add_argument(option, metavar=metavar, type=parse, default=default, help=text)


def store_url() -> str:
    """Return the URL of the store in the environment, or the default."""
    return os.environ.get("SLUICEGATE_REDIS_URL") or os.environ.get("REDIS_URL") or DEFAULT_URL


def integer(string: str) -> int:
    """Return the integer in a string, which must be 0 or more."""
    if not (string.isascii() and string.isdigit()):
        raise argparse.ArgumentTypeError(f"must be an integer, 0 or more, got {string!r}")
    return int(string)


def span(string: str) -> float:
    """Return the finite number in a string, which must be 0 or more."""
    try:
        number = float(string)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, got {string!r}")
    return number


def parse_limits(document: str | None, rates: Iterable[str] = ()) -> tuple[Limit, ...]:
    """
    Return the limits of a JSON list, and after them those of rates such as "100/minute".

    Raises:
        InvalidOption: The JSON, a limit in it or a rate is not valid.
    """
    try:
        data = json.loads(document) if document else []
    except (ValueError, RecursionError) as exc:
        raise InvalidOption(f"--limits: must be JSON: {exc}.") from exc
    if not isinstance(data, list):
        raise InvalidOption("--limits: must be a JSON list.")
    try:
        limits = tuple(map(_limit, data))
    except InvalidLimit as exc:
        raise InvalidOption(f"--limits: {exc}") from exc
    try:
        return (*limits, *map(Limit.parse, rates))
    except InvalidLimit as exc:
        raise InvalidOption(f"--limit: {exc}") from exc


def _limit(data: object) -> Limit:
    if isinstance(data, dict):
        data = {"name": "", "algorithm": "fixed_window", **data}
    return Limit.from_json(data)
