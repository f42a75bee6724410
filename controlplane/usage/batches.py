"""The entries of the streams of usage and denials, read strictly, because every client of the store may write there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import le
from typing import Any, NamedTuple, Self

from controlplane.usage.models import DeniedRequest, EstimateSample, MeteredRow, UsageBatch, UsageRow
from controlplane.usage.periods import KEPT
from enforcement.metering.broken import BROKEN_NAMES
from enforcement.metering.samples import SAMPLE_COUNTS, SUMS
from enforcement.metering.tally import COUNT_NAMES, MAX_MODEL_LENGTH, MeteredCounts
from enforcement.model import strict_json
from enforcement.model.instants import DAY_SECONDS, MINUTE_SECONDS
from enforcement.model.sizes import MAX_PATTERN_LENGTH
from enforcement.usage.denial_sample import MOST_ATTRIBUTES
from enforcement.usage.spread import PARTS

MAX_BYTES = 1024 * 1024
MAX_ROWS = 10_000
# Far more than one minute can count, and small enough that thousands of such rows add up within 64 bits.
MAX_COUNT = 2**50
# The largest error of a clock. A row from further ahead would stay in the tables until its time has come.
MOST_AHEAD = timedelta(hours=1)
# Older rows would be pruned at once.
MOST_BEHIND = max(KEPT.values())

NAMES = ("project_id", "token_id", "policy_id", "limit_name", "unit")
COUNTS = ("allowed", "denied", "would_deny", "cost")
# A cost may be negative, because a settlement returns permits that an earlier batch counted.
LEAST = {"allowed": 0, "denied": 0, "would_deny": 0, "cost": -MAX_COUNT}
MAY_BE_EMPTY = {"token_id", "policy_id", "limit_name", "model", "tool"}
METERED_NAMES = ("project_id", "token_id", "model", "settled_as")
# What enforcers of a development version send beside the counts, and nobody needs any more.
FORMER_COUNTS = 3
MAX_FORMAT_LENGTH = 32
SAMPLE_NAMES = ("project_id", "token_id", "model", "interface", "tool")
SAMPLE_NUMBERS = (*SAMPLE_COUNTS, *SUMS)


class InvalidBatch(ValueError):
    """Raised for an entry that cannot be counted. The message names the wrong field."""


class Row(NamedTuple):
    """
    The usage of one token under one limit in one minute.

    ``names`` and ``counts`` are in the order of NAMES and COUNTS. ``spread`` says when in the minute its requests came,
    as ``enforcement.usage.spread`` notes it. It is empty if that is not known.
    """

    at: datetime
    names: tuple[str, ...]
    counts: tuple[int, ...]
    spread: tuple[int, ...] = ()

    @property
    def token_id(self) -> str:
        return self.names[1]

    @property
    def is_total(self) -> bool:
        """Whether it counts each decision about the token once, and not the decisions of one limit."""
        return self.names[2:] == ("", "", "requests")


@dataclass(frozen=True, slots=True)
class SettledRow:
    """
    How metered requests of one token for one model were settled in one minute.

    ``names`` is in the order of METERED_NAMES.
    """

    at: datetime
    names: tuple[str, ...]
    approximate: bool
    price_revision: int
    counts: MeteredCounts

    @property
    def key(self) -> tuple[str | bool | int, ...]:
        """Its columns in the order of ``MeteredRow.KEY``, without the period and the time."""
        return *self.names, self.approximate, self.price_revision


class BrokenRow(NamedTuple):
    """
    Requests that used more than a bound had reserved, see ``BROKEN_NAMES`` of the library.

    ``is_for_all`` says whether whoever has written it may change what holds for all projects.
    """

    at: datetime
    project_id: str
    model: str
    format: str
    pattern: str
    requests: int
    added: int
    is_for_all: bool


class SampleRow(NamedTuple):
    """
    What was counted in requests of one token to one model, with one tool of the provider or with none, on one day.

    ``names`` is in the order of SAMPLE_NAMES, and ``numbers`` in that of SAMPLE_NUMBERS.
    """

    day: datetime
    names: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """
    One entry of the stream.

    ``entry`` is its id in the stream, and ``id`` is the id that the instance gave it.
    """

    entry: str
    id: str
    instance: str
    rows: tuple[Row, ...]
    metered: tuple[SettledRow, ...] = ()
    broken: tuple[BrokenRow, ...] = ()
    samples: tuple[SampleRow, ...] = ()

    @classmethod
    def parse(cls, entry: str, fields: Mapping[str, str], now: datetime, *, is_for_all: bool = False) -> Self:
        """
        Return an entry of the stream as a new batch, or raise an error if it is not valid.

        Args:
            is_for_all: Whether whoever has written it may change what holds for all projects.
        Raises:
            InvalidBatch: The entry has no id, or a row has a field that no enforcer would send.
        """
        batch_id = _text(fields.get("id"), "id", _width(UsageBatch, "batch_id"))
        instance = _text(fields.get("instance", ""), "instance", _width(UsageBatch, "instance"), may_be_empty=True)
        minutes = _Minutes(now)
        rows = [_row(number, row, minutes) for number, row in enumerate(_load(fields.get("rows"), "rows"))]
        rows = _with_spreads(rows, _load(fields.get("spread", "[]"), "spread"))
        settled = _load(fields.get("metered", "[]"), "metered")
        metered = [_settled(f"metered[{number}]", row, minutes) for number, row in enumerate(settled)]
        broken = _load(fields.get("broken", "[]"), "broken")
        over = [_broken(f"broken[{number}]", row, minutes, is_for_all) for number, row in enumerate(broken)]
        # What was learned holds for all projects.
        sampled = _load(fields.get("samples", "[]"), "samples") if is_for_all else []
        samples = [_sample(f"samples[{number}]", row, minutes) for number, row in enumerate(sampled)]
        return cls(entry, batch_id, instance, tuple(rows), tuple(metered), tuple(over), tuple(samples))


MAX_DENIALS = 1_000
# An attribute's name and value, with room for what marks a long value.
MAX_NAME, MAX_VALUE = 64, 80
DENIAL_TEXTS = ("reason", "project_id", "token_id", "policy_id", "limit_name")


def parse_denials(fields: Mapping[str, str], now: datetime) -> list[DeniedRequest]:
    """
    Return an entry of the stream of sampled denials as unsaved rows.

    Raises:
        InvalidBatch: A row has a field that no enforcer would send.
    """
    instance = _text(fields.get("instance", ""), "instance", _width(DeniedRequest, "instance"), may_be_empty=True)
    rows = _load(fields.get("rows"), "rows")
    if len(rows) > MAX_DENIALS:
        raise InvalidBatch(f"rows: must be a list of at most {MAX_DENIALS} rows.")
    return [_denial(number, row, instance, now) for number, row in enumerate(rows)]


def _denial(number: int, row: Any, instance: str, now: datetime) -> DeniedRequest:
    where = f"rows[{number}]"
    if not isinstance(row, list) or len(row) != 3 + len(DENIAL_TEXTS):
        raise InvalidBatch(f"{where}: must be a list of {3 + len(DENIAL_TEXTS)} fields.")
    decision, at_ms, *texts, attributes = row
    earliest, latest = ((now + distance).timestamp() * 1000 for distance in (-MOST_BEHIND, MOST_AHEAD))
    if type(at_ms) is not int or not earliest <= at_ms <= latest:
        raise InvalidBatch(f"{where}.at_ms: must be at most one hour ahead or two years back, got {at_ms!r:.40}.")
    if not isinstance(attributes, dict) or len(attributes) > MOST_ATTRIBUTES:
        raise InvalidBatch(f"{where}.attributes: must be an object of at most {MOST_ATTRIBUTES} strings.")
    for name, value in attributes.items():
        _text(name, f"{where}.attributes", MAX_NAME)
        _text(value, f"{where}.attributes[{name!r}]", MAX_VALUE, may_be_empty=True)
    named = {
        name: _text(value, f"{where}.{name}", _width(DeniedRequest, name), may_be_empty=name != "reason")
        for name, value in zip(DENIAL_TEXTS, texts, strict=True)
    }
    return DeniedRequest(
        decision=_text(decision, f"{where}.decision", _width(DeniedRequest, "decision")),
        at=datetime.fromtimestamp(at_ms / 1000, UTC),
        instance=instance,
        attributes=attributes,
        **named,
    )


def _load(text: str | None, name: str) -> list[Any]:
    if text is None or len(text) > MAX_BYTES:
        raise InvalidBatch(f"{name}: must be present and have at most {MAX_BYTES} bytes.")
    try:
        rows = strict_json.loads(text)
    except strict_json.InvalidJSON as exc:
        raise InvalidBatch(f"{name}: {exc}.") from exc
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise InvalidBatch(f"{name}: must be a list of at most {MAX_ROWS} rows.")
    return rows


def _settled(where: str, row: Any, minutes: "_Minutes") -> SettledRow:
    width = 3 + len(METERED_NAMES) + len(COUNT_NAMES)
    whole = width + FORMER_COUNTS
    if not isinstance(row, list) or len(row) not in (width, whole):
        raise InvalidBatch(f"{where}: must be a list of {width} or {whole} fields.")
    minute, *rest = row
    texts, (approximate, revision, *counts) = rest[: len(METERED_NAMES)], rest[len(METERED_NAMES) : width - 1]
    if type(approximate) is not int or approximate not in (0, 1):
        raise InvalidBatch(f"{where}.approximate: must be 0 or 1, got {approximate!r:.40}.")
    return SettledRow(
        minutes.read(minute, where),
        tuple(
            _text(value, f"{where}.{name}", _width(MeteredRow, name), may_be_empty=name in MAY_BE_EMPTY)
            for name, value in zip(METERED_NAMES, texts, strict=True)
        ),
        bool(approximate),
        _count(revision, f"{where}.price_revision", 0),
        MeteredCounts(*(_count(value, f"{where}.{name}", 0) for name, value in zip(COUNT_NAMES, counts, strict=True))),
    )


def _sample(where: str, row: Any, minutes: "_Minutes") -> SampleRow:
    width = 1 + len(SAMPLE_NAMES) + len(SAMPLE_NUMBERS)
    if not isinstance(row, list) or len(row) != width:
        raise InvalidBatch(f"{where}: must be a list of {width} fields.")
    day, texts, numbers = row[0], row[1 : 1 + len(SAMPLE_NAMES)], row[1 + len(SAMPLE_NAMES) :]
    minute = day * DAY_SECONDS // MINUTE_SECONDS if type(day) is int else day
    return SampleRow(
        minutes.read(minute, where),
        tuple(
            _text(value, f"{where}.{name}", _width(EstimateSample, name), may_be_empty=name in MAY_BE_EMPTY)
            for name, value in zip(SAMPLE_NAMES, texts, strict=True)
        ),
        tuple(_count(value, f"{where}.{name}", 0) for name, value in zip(SAMPLE_NUMBERS, numbers, strict=True)),
    )


def _broken(where: str, row: Any, minutes: "_Minutes", is_for_all: bool) -> BrokenRow:
    if not isinstance(row, list) or len(row) != len(BROKEN_NAMES):
        raise InvalidBatch(f"{where}: must be a list of {len(BROKEN_NAMES)} fields.")
    minute, project, model, form, pattern, requests, added = row
    return BrokenRow(
        minutes.read(minute, where),
        _text(project, f"{where}.project", _width(MeteredRow, "project_id")),
        _text(model, f"{where}.model", MAX_MODEL_LENGTH, may_be_empty=True),
        _text(form, f"{where}.format", MAX_FORMAT_LENGTH),
        _text(pattern, f"{where}.pattern", MAX_PATTERN_LENGTH, may_be_empty=True),
        _count(requests, f"{where}.requests", 1),
        _count(added, f"{where}.added", 0),
        is_for_all,
    )


def _row(number: int, row: Any, minutes: "_Minutes") -> Row:
    if not isinstance(row, list) or len(row) != 1 + len(NAMES) + len(COUNTS):
        raise InvalidBatch(f"rows[{number}]: must be a list of {1 + len(NAMES) + len(COUNTS)} fields.")
    names, counts = tuple(row[1 : 1 + len(NAMES)]), tuple(row[1 + len(NAMES) :])
    at = minutes.read(row[0], "rows[%d]", number)
    if not (_are_names(names) and _are_counts(counts)):
        # Looked at one by one, to name the field. Only a cost below 0 passes here and not there.
        for name, value, width in zip(NAMES, names, _WIDTHS, strict=True):
            _text(value, f"rows[{number}].{name}", width, may_be_empty=name in MAY_BE_EMPTY)
        for name, value in zip(COUNTS, counts, strict=True):
            _count(value, f"rows[{number}].{name}", LEAST[name])
    return Row(at, names, counts)


def _are_names(names: Sequence[Any]) -> bool:
    """Return whether the names of a row are right, without saying which of them is wrong."""
    try:
        is_printable = "".join(names).isprintable()
    except TypeError:
        return False
    return bool(is_printable and names[0] and names[4] and all(map(le, map(len, names), _WIDTHS)))


def _are_counts(counts: Sequence[Any]) -> bool:
    """Return whether these are integers from 0 to MAX_COUNT."""
    return set(map(type, counts)) == {int} and min(counts) >= 0 and max(counts) <= MAX_COUNT


def _with_spreads(rows: list[Row], spreads: list[Any]) -> list[Row]:
    """Return the rows with their spreads, each of which names its row by the index."""
    for number, values in enumerate(spreads):
        if not isinstance(values, list) or len(values) != 2 + PARTS:
            raise InvalidBatch(f"spread[{number}]: must be a list of {2 + PARTS} integers.")
        index, seconds, *parts = values
        if type(index) is not int or not 0 <= index < len(rows) or not rows[index].is_total or rows[index].spread:
            message = f"must be the index of a row without a limit, once, got {index!r:.40}."
            raise InvalidBatch(f"spread[{number}].row: {message}")
        if type(seconds) is not int or not 0 <= seconds < 2**MINUTE_SECONDS:
            raise InvalidBatch(f"spread[{number}].seconds: must be {MINUTE_SECONDS} bits, got {seconds!r:.40}.")
        if not _are_counts(parts):
            for value in parts:
                _count(value, f"spread[{number}].requests", 0)
        rows[index] = rows[index]._replace(spread=(seconds, *parts))
    return rows


class _Minutes:
    """The minutes that usage may have at *now*."""

    def __init__(self, now: datetime) -> None:
        self._earliest, self._latest = ((now + by).timestamp() // 60 for by in (-MOST_BEHIND, MOST_AHEAD))
        self._known: dict[int, datetime] = {}

    def read(self, value: Any, where: str, *numbers: int) -> datetime:
        """Return a minute, by its number since the epoch, as a datetime. An error says *where* it is."""
        if type(value) is not int or not self._earliest <= value <= self._latest:
            message = f"must be a minute since the epoch, at most one hour ahead or two years back, got {value!r:.40}."
            raise InvalidBatch(f"{where % numbers}.minute: {message}")
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = datetime.fromtimestamp(value * 60, UTC)
        return found


def _text(value: Any, where: str, width: int, *, may_be_empty: bool = False) -> str:
    # isprintable() also refuses NUL and lone surrogates, which PostgreSQL cannot store.
    if not isinstance(value, str) or not value.isprintable() or len(value) > width or not (value or may_be_empty):
        raise InvalidBatch(f"{where}: must be a string of {0 if may_be_empty else 1} to {width} printable characters.")
    return value


def _count(value: Any, where: str, least: int) -> int:
    if type(value) is not int or not least <= value <= MAX_COUNT:
        raise InvalidBatch(f"{where}: must be an integer from {least} to {MAX_COUNT}, got {value!r:.40}.")
    return value


def _width(model: type, field: str) -> int:
    return model._meta.get_field(field).max_length


_WIDTHS = tuple(_width(UsageRow, name) for name in NAMES)
