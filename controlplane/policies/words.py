"""Limits and durations as people say them."""

import re
from itertools import pairwise

from enforcement.model.limits import Limit

LENGTHS = {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
_SPELLINGS = {"w": "week", "d": "day", "h": "hour", "m": "minute", "min": "minute", "s": "second", "sec": "second"}
_SECONDS = LENGTHS | {spelling: LENGTHS[name] for spelling, name in _SPELLINGS.items()}
_PART = re.compile(r"(\d{1,9})\s*([a-z]+)", re.ASCII)
_BETWEEN = re.compile(r"\s*(,|and)?\s*", re.ASCII)

COUNTED = {
    "sliding_window": "counted in a sliding window",
    "sliding_log": "counted exactly over the time just past",
    "token_bucket": "refilled steadily",
}
ALIGNED = "counted in fixed windows"


def seconds_of(text: str) -> int:
    """
    Read a duration as people write it: "90", "1 minute", "5m", "1 hour 30 min", "2 weeks".

    Raises:
        ValueError: It is none.
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


def in_words(seconds: int) -> str:
    """Write a duration: 5400 is "1 hour 30 minutes"."""
    words = []
    for name, length in LENGTHS.items():
        number, seconds = divmod(seconds, length)
        if number:
            words.append(f"{number} {name}" + ("s" if number != 1 else ""))
    return " ".join(words) or "0 seconds"


def sentence(limit: Limit, holder: str = "each token or project") -> str:
    """Say what a limit does: "100 requests per minute for each token, counted in a sliding window"."""
    parts = [f"{_amount(limit)} for {_whom(limit, holder)}{_which(limit)}", *_manner(limit), *_behaviour(limit)]
    return ", ".join(parts)


def _amount(limit: Limit) -> str:
    unit = limit.unit.removesuffix("s") if limit.quota == 1 else limit.unit
    number = f"{limit.quota:,}" if limit.quota else "No"
    if limit.algorithm == "concurrency":
        return f"{number} {unit} at a time"
    return f"{number} {unit} {_period(limit)}"


def _period(limit: Limit) -> str:
    if limit.calendar == "lifetime":
        return "in all"
    if limit.calendar:
        return f"per calendar {limit.calendar}"
    words = in_words(limit.window_seconds or 0)
    return f"per {words.removeprefix('1 ')}" if words.startswith("1 ") and words.count(" ") == 1 else f"per {words}"


def _whom(limit: Limit, holder: str) -> str:
    return " and ".join([holder, *(f"each {name}" for name in limit.partition_by)])


def _which(limit: Limit) -> str:
    match = limit.match
    rules = [f"{name} is {' or '.join(r) if isinstance(r, tuple) else r}" for name, r in match.attributes.items()]
    parts = [*([" or ".join(match.methods)] if match.methods else []), *([match.path] if match.path else [])]
    told = f" on {' '.join(parts)}" if parts else ""
    return told + (f" where {' and '.join(rules)}" if rules else "")


def _manner(limit: Limit) -> list[str]:
    if limit.quota == 0:
        return ["so that nothing passes"]
    if limit.algorithm == "concurrency":
        return [f"a slot ends {in_words(limit.window_seconds or 0)} after its last sign of life"]
    if limit.algorithm == "token_bucket":
        return [f"{COUNTED[limit.algorithm]}, with bursts of up to {limit.capacity:,}"]
    if limit.calendar and limit.calendar != "lifetime":
        begins = f", beginning {limit.anchor}" if limit.anchor is not None else ""
        return [f"in the time of {limit.time_zone}{begins}"]
    return [] if limit.calendar else [COUNTED.get(limit.algorithm, ALIGNED)]


def _behaviour(limit: Limit) -> list[str]:
    told = []
    if limit.charge_on:
        told.append(f"charged for {' and '.join(limit.charge_on)} answers only")
    if limit.mode == "shadow":
        told.append("only watched: it never denies")
    return told
