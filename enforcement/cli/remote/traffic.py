"""
Requests of the past, from an access log or an export of usage.

A log has each request. Usage has how many there were in a minute, hour or day, which are taken as evenly spread.
"""

from __future__ import annotations

import codecs
import gzip
import heapq
import json
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from io import BufferedIOBase
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from enforcement.cli.remote.problems import CommandProblem
from enforcement.model.instants import SECOND_US, to_us

MAX_REQUESTS: Final = 20_000_000
MAX_USAGE_BYTES: Final = 256 * 1_048_576
MAX_LINE_BYTES: Final = 65_536
LATEST_US: Final = 4_102_444_800 * SECOND_US
"""The year 2100. No window of a calendar can be found around an instant near the last one that there is."""
UNORDERED_US: Final = 60 * SECOND_US
STDIN: Final = "-"
_GZIP: Final = b"\x1f\x8b"
_DAMAGED: Final = (EOFError, zlib.error, gzip.BadGzipFile)
STEPS_US: Final = {"minute": 60 * SECOND_US, "hour": 3_600 * SECOND_US, "day": 86_400 * SECOND_US}
ANONYMOUS: Final = "anonymous"
# The combined and the common format of web servers.
_COMBINED: Final = re.compile(
    r"(?P<ip>\S+) \S+ (?P<user>\S+) \[(?P<at>[^\]]+)\] "
    r'"(?P<method>[A-Z]{1,16}) (?P<path>\S+)[^"]*" (?P<status>[1-5]\d\d)\b',
    re.ASCII,
)
_INSTANT: Final = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)", re.ASCII)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LOG_ATTRIBUTES: Final = frozenset({"ip", "method", "path"})
_OWN: Final = frozenset({"at", "time", "caller", "token", "status"})


class InvalidTraffic(CommandProblem):
    """A file that has no requests that can be read."""


class PastRequest(NamedTuple):
    """
    One request of the past.

    Attributes:
        at_us: When it was sent, microseconds since the epoch.
        caller: Who sent it.
        attributes: What is known of it.
        status: The status of its response, such as ``200``. Empty if it is not known.
    """

    at_us: int
    caller: str
    attributes: Mapping[str, str]
    status: str


@dataclass(slots=True)
class Traffic:
    """
    The requests of a file.

    Attributes:
        requests: Yields them, in the order of their instants as far as the file has one.
        knows: Returns whether the file may have an attribute.
        has_status: Whether the status of responses is known.
        caution: What has to be known about the result, as a sentence. May be empty.
        unread: Lines that are no requests.
        first_unread: What the first of them is.
        unordered: Requests that are more than a minute earlier than one before them.
    """

    requests: Iterator[PastRequest] = field(default_factory=lambda: iter(()))
    knows: Callable[[str], bool] = lambda name: False
    has_status: bool = False
    caution: str = ""
    unread: int = 0
    first_unread: str = ""
    unordered: int = 0


Seen = Callable[[int], None]


def from_usage(path: str, seen: Seen) -> Traffic:
    """
    Return the requests of what ``sluicegate usage --json`` has printed.

    Args:
        seen: Is told how many rows are done.
    Raises:
        InvalidTraffic: It is something else, or has too many requests.
        OSError: It cannot be read.
    """
    try:
        with _opened(path) as file:
            raw = file.read(MAX_USAGE_BYTES + 1)
    except _DAMAGED:
        raise InvalidTraffic(f"{path}: Must be a whole file of gzip, but is damaged.") from None
    if len(raw) > MAX_USAGE_BYTES:
        raise InvalidTraffic(f"{path}: Must have at most {MAX_USAGE_BYTES:,} bytes.")
    try:
        values = json.loads(raw)
        step = values["step"]
        rows = sorted(map(_usage_row, filter(_is_total, values["results"])))
        length = STEPS_US[step]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidTraffic(f"{path}: Must be what `sluicegate usage --json` prints.") from None
    if values["results"] and not rows:
        rule = "Must be what `sluicegate usage --json` prints without --limit"
        raise InvalidTraffic(f"{path}: {rule}, because a limit judges only a part of the requests.")
    total = sum(count for _, _, count in rows)
    if total > MAX_REQUESTS:
        raise InvalidTraffic(f"{path}: Must have at most {MAX_REQUESTS:,} requests, got {total:,}.")
    caution = f"The requests of each {step} are taken as evenly spread, so bursts within a {step} are not seen."
    return Traffic(_spread(rows, length, seen), caution=caution)


def _is_total(row: Mapping[str, object]) -> bool:
    """Return whether a row counts all requests of a token, and not those that one limit has judged."""
    return row["limit"] is None


def _usage_row(row: Mapping[str, Any]) -> tuple[int, str, int]:
    """Return the start of a row, its caller, and its number of requests. Raises ValueError, KeyError and TypeError."""
    count = row["allowed"] + row["denied"]
    at = datetime.fromisoformat(row["at"])
    if type(count) is not int or count < 0 or at.tzinfo is None or not 0 <= to_us(at) < LATEST_US:
        raise ValueError
    return to_us(at), str(row["token"] or ANONYMOUS), count


def _spread(rows: list[tuple[int, str, int]], length: int, seen: Seen) -> Iterator[PastRequest]:
    done = 0
    for start, together in groupby(rows, key=lambda row: row[0]):
        counts: Counter[str] = Counter()
        for _, caller, count in together:
            counts[caller] += count  # a caller has a row for each project
            done += 1
        # Callers of one minute share limits of a project, so that their requests have to come in turn.
        for at_us, caller in heapq.merge(*(_of_one(start, length, *one) for one in counts.items())):
            yield PastRequest(at_us, caller, {}, "")
        seen(done)


def _of_one(start: int, length: int, caller: str, count: int) -> Iterator[tuple[int, str]]:
    return ((start + index * length // count, caller) for index in range(count))


def from_log(path: str, seen: Seen) -> Traffic:
    """
    Return the requests of an access log, in the combined or common format, or with a JSON object in each line.

    Args:
        seen: Is told how many bytes are done.
    Raises:
        OSError: It cannot be read.
    """
    lines = _raw_lines(path)
    first = []
    for raw in lines:
        first.append(raw)
        if raw.strip():
            break
    # Not opened a second time, because what was read of a pipe is gone.
    is_json = any(raw.lstrip().startswith(b"{") for raw in first)
    traffic = Traffic(has_status=True)
    traffic.knows = (lambda name: True) if is_json else LOG_ATTRIBUTES.__contains__
    read = _json_line if is_json else _combined_line
    traffic.requests = _requests(path, traffic, chain(first, lines), read, seen)
    return traffic


def log_size(path: str) -> int | None:
    """Return how many bytes an access log has. None if that is not known, as of a pipe or what is compressed."""
    if path == STDIN or path.endswith(".gz"):
        return None
    found = Path(path).stat()
    return found.st_size if stat.S_ISREG(found.st_mode) else None


@contextmanager
def _opened(path: str) -> Iterator[BufferedIOBase]:
    """Open a file, or standard input for ``-``. What gzip has compressed is read as it was before."""
    with ExitStack() as stack:
        file: Any = sys.stdin.buffer if path == STDIN else stack.enter_context(open(path, "rb"))
        yield stack.enter_context(gzip.GzipFile(fileobj=file)) if file.peek(2)[:2] == _GZIP else file


def _raw_lines(path: str) -> Iterator[bytes]:
    number = 0
    with _opened(path) as file:
        try:
            while raw := file.readline(MAX_LINE_BYTES):
                number += 1
                yield raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        except _DAMAGED:
            raise InvalidTraffic(f"{path}: Must be a whole file of gzip, but is damaged after line {number}.") from None


def _requests(
    path: str, traffic: Traffic, lines: Iterable[bytes], read: Callable[[str], PastRequest | None], seen: Seen
) -> Iterator[PastRequest]:
    done = latest = 0
    for number, raw in enumerate(lines, 1):
        done += len(raw)
        found = read(raw.decode("utf-8", "replace"))
        if found is not None:
            traffic.unordered += found.at_us < latest - UNORDERED_US
            latest = max(latest, found.at_us)
            yield found
        elif raw.strip():
            traffic.unread += 1
            traffic.first_unread = traffic.first_unread or f"{path}:{number}"
        if number % 1_000 == 0:
            seen(done)


def _combined_line(line: str) -> PastRequest | None:
    """Return the request of a line, or None if it is none."""
    match = _COMBINED.match(line)
    at_us = _logged_us(match["at"]) if match else None
    if match is None or at_us is None:
        return None
    attributes = {"ip": match["ip"], "method": match["method"], "path": match["path"].partition("?")[0]}
    return PastRequest(at_us, match["user"] if match["user"] != "-" else match["ip"], attributes, match["status"])


def _logged_us(text: str) -> int | None:
    """Return an instant such as ``10/Oct/2026:13:55:36 -0700``. Names of months are English in every locale."""
    match = _INSTANT.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        return None
    offset = timedelta(hours=int(match[8]), minutes=int(match[9])) * (-1 if match[7] == "-" else 1)
    year, month, day = int(match[3]), _MONTHS.index(match[2]) + 1, int(match[1])
    try:
        at = datetime(year, month, day, int(match[4]), int(match[5]), int(match[6]), tzinfo=timezone(offset))
    except (ValueError, OverflowError):
        return None
    return _known_us(at)


def _known_us(at: datetime) -> int | None:
    """Return an instant in microseconds since the epoch, or None if it is none that a request could have had."""
    at_us = to_us(at)
    return at_us if 0 <= at_us < LATEST_US else None


def _json_line(line: str) -> PastRequest | None:
    """Return the request of a line, or None if it is none. Every member that is a string is an attribute."""
    try:
        values = json.loads(line)
        at = values.get("at", values.get("time"))
        instant = datetime.fromisoformat(at)
        at_us = _known_us(instant) if instant.tzinfo else None
    except (ValueError, OverflowError, TypeError, AttributeError, RecursionError):
        return None
    if at_us is None:
        return None
    attributes = {name: value for name, value in values.items() if isinstance(value, str) and name not in _OWN}
    caller = values.get("caller") or values.get("token") or values.get("ip") or ANONYMOUS
    return PastRequest(at_us, str(caller), attributes, str(values.get("status", "")))
