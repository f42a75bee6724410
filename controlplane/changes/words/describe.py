"""Limits and durations in words."""

import re
from itertools import pairwise

from controlplane.core.money import exact, permits
from enforcement.model import limit_fields
from enforcement.model.instants import PERIOD_SECONDS
from enforcement.model.instants import duration as in_words
from enforcement.model.limit_fields import attribute
from enforcement.model.limits import Limit
from enforcement.model.metered import CHARGE_AS, COUNT_ONLY, FULL_WEIGHT

_SPELLINGS = {"w": "week", "d": "day", "h": "hour", "m": "minute", "min": "minute", "s": "second", "sec": "second"}
_SECONDS = PERIOD_SECONDS | {spelling: PERIOD_SECONDS[name] for spelling, name in _SPELLINGS.items()}
_PART = re.compile(r"(\d{1,9})\s*([a-z]+)", re.ASCII)
_BETWEEN = re.compile(r"\s*(,|and)?\s*", re.ASCII)

COUNTED = {
    "sliding_window": "counted in a sliding window",
    "sliding_log": "counted exactly in the window that ends now",
    "token_bucket": "refilled at a steady rate",
}
ALIGNED = "counted in fixed windows"


def seconds_of(text: str) -> int:
    """
    Return the number of seconds in a text such as "90", "5m", "1 hour 30 min" or "2 weeks", or raise ValueError.

    Raises:
        ValueError: The text is not a duration.
    """
    text = text.strip().lower()
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    parts = list(_PART.finditer(text))
    if not parts or (parts[0].start(), parts[-1].end()) != (0, len(text)):
        raise ValueError(text)
    if any(not _BETWEEN.fullmatch(text[left.end() : right.start()]) for left, right in pairwise(parts)):
        raise ValueError(text)
    return sum(int(part[1]) * _length(part[2]) for part in parts)


def _length(name: str) -> int:
    try:
        return _SECONDS.get(name) or _SECONDS[name.removesuffix("s")]
    except KeyError as exc:
        raise ValueError(name) from exc


def sentence(limit: Limit, holder: str = "each token or project") -> str:
    """
    Return in words what a limit does, such as "100 requests per minute for each token, counted in a sliding window".
    """
    return ", ".join([brief(limit, holder), *_manner(limit), *_behaviour(limit)])


def brief(limit: Limit, holder: str = "each token or project") -> str:
    """Return how much a limit allows, to whom and for which requests, and not how that is counted."""
    return f"{amount(limit)} for {_whom(limit, holder)}{_which(limit)}"


def at_a_glance(limit: Limit) -> str:
    """
    Return how much a limit allows and for which requests, such as "20 requests per hour for each ip on /login".

    Whose requests it counts together is only said of attributes, because a list says who uses the policy.
    """
    each = " and ".join(f"each {attribute(name)}" for name in limit.partition_by)
    return f"{amount(limit)}{f' for {each}' if each else ''}{_which(limit)}"


def amount(limit: Limit) -> str:
    """Return the quota of a limit with its period, such as "100 requests per minute"."""
    return limit_fields.amount(limit.to_json(), exact)


def _whom(limit: Limit, holder: str) -> str:
    return " and ".join([holder, *(f"each {attribute(name)}" for name in limit.partition_by)])


def _which(limit: Limit) -> str:
    match = limit.match
    attributes = ((attribute(name), rule) for name, rule in match.attributes.items())
    rules = [f"{name} is {' or '.join(r) if isinstance(r, tuple) else r}" for name, r in attributes]
    parts = [*([" or ".join(match.methods)] if match.methods else []), *([match.path] if match.path else [])]
    requests = f" on {' '.join(parts)}" if parts else ""
    return requests + (f" where {' and '.join(rules)}" if rules else "")


def _manner(limit: Limit) -> list[str]:
    if limit.quota == 0:
        return ["so every request is denied"]
    if limit.algorithm == "concurrency":
        return [f"a slot ends {in_words(limit.window_seconds or 0)} after its last renewal"]
    if limit.algorithm == "token_bucket":
        return [f"{COUNTED[limit.algorithm]}, with bursts of up to {permits(limit.capacity, limit.unit)}"]
    if limit.calendar and limit.calendar != "lifetime":
        begins = f", starting at {limit.anchor}" if limit.anchor is not None else ""
        more = permits(limit.rollover or 0, limit.unit)
        left = [f"and up to {more} that the windows before left"] if limit.rollover else []
        return [*left, f"in the time zone {limit.time_zone}{begins}"]
    return [] if limit.calendar else [COUNTED.get(limit.algorithm, ALIGNED)]


def _behaviour(limit: Limit) -> list[str]:
    parts = []
    if limit.charge_on:
        parts.append(f"charged for {' and '.join(limit.charge_on)} responses only")
    parts += [f"{name} tokens weighed {weight / FULL_WEIGHT:g}" for name, weight in limit.weights.items()]
    if limit.unpriced == COUNT_ONLY:
        parts.append("models without a price pass and cost nothing")
    elif not isinstance(limit.unpriced, str):
        parts.append(f"models without a price charged as {limit.unpriced[CHARGE_AS]}")
    if limit.unmetered == COUNT_ONLY:
        parts.append("requests that no meter can read pass uncounted")
    if limit.mode == "shadow":
        parts.append("counted but never denied (shadow)")
    return parts
