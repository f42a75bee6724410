"""The entries of the streams of usage and denials, read strictly, because every client of the store may write there."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import le
from typing import Any, NamedTuple, Self, TypeVar

from controlplane.core.periods import COUNTS, KEPT
from controlplane.objects.prices.models import BrokenRow
from enforcement.metering.broken import BROKEN_NAMES
from enforcement.metering.samples import MAX_TOOL_LENGTH, SAMPLE_COUNTS, SUMS
from enforcement.metering.tally import COUNT_NAMES, MAX_MODEL_LENGTH, MeteredCounts
from enforcement.model import strict_json
from enforcement.model.instants import DAY_SECONDS, MINUTE_SECONDS
from enforcement.model.sizes import MAX_PATTERN_LENGTH
from enforcement.usage.denial_sample import MOST_ATTRIBUTES
from enforcement.usage.intakes import id_in_intake
from enforcement.usage.spread import PARTS

R = TypeVar("R")

MAX_BYTES = 1024 * 1024
MAX_ROWS = 10_000
# Far more than one minute can count, and small enough that thousands of such rows add up within 64 bits.
MAX_COUNT = 2**50
# The largest error of a clock. A row from further ahead would stay in the tables until its time has come.
MOST_AHEAD = timedelta(hours=1)
# Older rows would be pruned at once.
MOST_BEHIND = max(KEPT.values())

NAMES = ("project_id", "token_id", "policy_id", "limit_name", "unit")
# A cost may be negative, because a settlement returns permits that an earlier batch counted.
LEAST = {"allowed": 0, "denied": 0, "would_deny": 0, "cost": -MAX_COUNT}
MAY_BE_EMPTY = {"token_id", "policy_id", "limit_name", "model", "tool"}
METERED_NAMES = ("project_id", "token_id", "model", "settled_as")
# The number of counts that only enforcers of a development version send, and nobody needs any more.
FORMER_COUNTS = 3
MAX_FORMAT_LENGTH = 32
# The most characters of each string, as the tables have them.
WIDTHS = {
    **dict.fromkeys(("project_id", "token_id", "policy_id"), 40),
    **dict.fromkeys(("limit_name", "unit"), 64),
    **dict.fromkeys(("batch_id", "decision"), 200),
    **dict.fromkeys(("reason", "interface"), 32),
    "instance": 128,
    "settled_as": 16,
    "model": MAX_MODEL_LENGTH,
    "tool": MAX_TOOL_LENGTH,
}
# The fields of a batch with rows that are counted.
KINDS = ("rows", "metered", "broken", "samples")
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


class SampleRow(NamedTuple):
    """
    The sums over requests of one token to one model, with one tool of the provider or with none, on one day.

    ``names`` is in the order of SAMPLE_NAMES, and ``numbers`` in that of SAMPLE_NUMBERS.
    """

    day: datetime
    names: tuple[str, ...]
    numbers: tuple[int, ...]


class Refused(NamedTuple):
    """A row that is set aside, the field of the entry that has it, and the reason."""

    field: str
    row: Any
    reason: str


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """
    One entry of the stream.

    ``entry`` is its id in the stream, and ``id`` is the id that the instance gave it. ``refused`` has the rows that
    cannot be counted.
    """

    entry: str
    id: str
    instance: str
    rows: tuple[Row, ...]
    metered: tuple[SettledRow, ...] = ()
    broken: tuple[BrokenRow, ...] = ()
    samples: tuple[SampleRow, ...] = ()
    refused: tuple[Refused, ...] = ()

    @classmethod
    def parse(cls, entry: str, fields: Mapping[str, str], now: datetime, *, project: str = "") -> Self:
        """
        Return an entry of the stream as a new batch, or raise an error if it is not valid.

        Args:
            project: The id of the project whose intake it comes from. Its rows may be of no other project, and change
                nothing that holds for all. Empty: it comes from a stream of accounts of all projects.
        Raises:
            InvalidBatch: The entry has no id, or only rows with a field that no enforcer would send.
        """
        batch_id = _text(fields.get("id"), "id", WIDTHS["batch_id"])
        if project:
            batch_id = _text(id_in_intake(batch_id, project), "id", WIDTHS["batch_id"])
        instance = _text(fields.get("instance", ""), "instance", WIDTHS["instance"], may_be_empty=True)
        minutes, refused = _Minutes(now, project), list[Refused]()

        def valid(name: str, read: Callable[[int, Any, _Minutes], R], usual: str | None = "[]") -> dict[int, R]:
            found = list(enumerate(_load(fields.get(name, usual), name)))
            try:
                return {number: read(number, row, minutes) for number, row in found}
            except InvalidBatch:
                return dict(_each(name, read, found, minutes, refused))

        rows = valid("rows", _row, None)
        _add_spreads(rows, _load(fields.get("spread", "[]"), "spread"), refused)
        metered, broken = valid("metered", _settled), valid("broken", _broken)
        samples = {} if project else valid("samples", _sample)  # what was learned holds for all projects
        counted = tuple(rows.values()), tuple(metered.values()), tuple(broken.values()), tuple(samples.values())
        batch = cls(entry, batch_id, instance, *counted, tuple(refused))
        if refused and not batch.size:
            raise InvalidBatch(refused[0].reason)
        return batch

    @property
    def size(self) -> int:
        """The number of rows that can be counted."""
        return sum(len(getattr(self, kind)) for kind in KINDS)

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The names of each row of usage and of each metered one, which begin with a project and a token."""
        return [row.names for row in self.rows] + [row.names for row in self.metered]

    def each(self) -> Iterator[tuple[str, Any]]:
        """Yield the field and the row of all that can be counted."""
        for kind in KINDS:
            for row in getattr(self, kind):
                yield kind, row

    def halves(self) -> list[Self]:
        """Return two batches with the same id, each with half of the rows."""
        halves: list[dict[str, Any]] = [{}, {}]
        is_odd = False
        for kind in KINDS:
            some = getattr(self, kind)
            middle = (len(some) + is_odd) // 2
            is_odd ^= len(some) % 2 == 1
            halves[0][kind], halves[1][kind] = some[:middle], some[middle:]
        return [replace(self, **half, refused=()) for half in halves]

    def without(self, is_foreign: Callable[[Sequence[Any]], bool]) -> Self:
        """Return the batch with those rows refused whose names are of another project."""
        refused = list(self.refused)
        remaining: dict[str, Any] = {}
        for kind in ("rows", "metered"):
            remaining[kind] = tuple(row for row in getattr(self, kind) if not is_foreign(row.names))
            foreign = [row for row in getattr(self, kind) if is_foreign(row.names)]
            refused += [Refused(kind, row.names, f"{kind}: a token or policy of another project") for row in foreign]
        return replace(self, **remaining, refused=tuple(refused))


def _each(
    name: str,
    read: "Callable[[int, Any, _Minutes], R]",
    rows: Iterable[tuple[int, Any]],
    minutes: "_Minutes",
    refused: list[Refused],
) -> Iterator[tuple[int, R]]:
    """Yield the rows that can be counted by their number, and add the others to *refused*."""
    for number, row in rows:
        try:
            yield number, read(number, row, minutes)
        except InvalidBatch as exc:
            refused.append(Refused(name, row, str(exc)))


MAX_DENIALS = 1_000
# An attribute's name and value, with room for what marks a long value.
MAX_NAME, MAX_VALUE = 64, 80
DENIAL_TEXTS = ("reason", "project_id", "token_id", "policy_id", "limit_name")


class Denial(NamedTuple):
    """A sampled denial. The fields are those of ``DeniedRequest``."""

    decision: str
    at: datetime
    instance: str
    reason: str
    project_id: str
    token_id: str
    policy_id: str
    limit_name: str
    attributes: dict[str, str]


def parse_denials(fields: Mapping[str, str], now: datetime, *, project: str = "") -> list[Denial]:
    """
    Return sampled denials, from an entry of their stream, or of the intake of a project.

    Raises:
        InvalidBatch: A row has a field that no enforcer would send, or is of another project than the intake.
    """
    instance = _text(fields.get("instance", ""), "instance", WIDTHS["instance"], may_be_empty=True)
    rows = _load(fields.get("denials" if project else "rows"), "rows")
    if len(rows) > MAX_DENIALS:
        raise InvalidBatch(f"rows: must be a list of at most {MAX_DENIALS} rows.")
    denials = [_denial(number, row, instance, now) for number, row in enumerate(rows)]
    for number, denial in enumerate(denials if project else ()):
        _own(denial.project_id, project, f"rows[{number}]")
    return denials


def _denial(number: int, row: Any, instance: str, now: datetime) -> Denial:
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
        name: _text(value, f"{where}.{name}", WIDTHS[name], may_be_empty=name != "reason")
        for name, value in zip(DENIAL_TEXTS, texts, strict=True)
    }
    return Denial(
        decision=_text(decision, f"{where}.decision", WIDTHS["decision"]),
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


def _settled(number: int, row: Any, minutes: "_Minutes") -> SettledRow:
    where = f"metered[{number}]"
    width = 3 + len(METERED_NAMES) + len(COUNT_NAMES)
    whole = width + FORMER_COUNTS
    if not isinstance(row, list) or len(row) not in (width, whole):
        raise InvalidBatch(f"{where}: must be a list of {width} or {whole} fields.")
    minute, *rest = row
    texts, (approximate, revision, *counts) = rest[: len(METERED_NAMES)], rest[len(METERED_NAMES) : width - 1]
    _own(texts[0], minutes.project, where)
    if type(approximate) is not int or approximate not in (0, 1):
        raise InvalidBatch(f"{where}.approximate: must be 0 or 1, got {approximate!r:.40}.")
    return SettledRow(
        minutes.read(minute, where),
        tuple(
            _text(value, f"{where}.{name}", WIDTHS[name], may_be_empty=name in MAY_BE_EMPTY)
            for name, value in zip(METERED_NAMES, texts, strict=True)
        ),
        bool(approximate),
        _count(revision, f"{where}.price_revision", 0),
        MeteredCounts(*(_count(value, f"{where}.{name}", 0) for name, value in zip(COUNT_NAMES, counts, strict=True))),
    )


def _sample(number: int, row: Any, minutes: "_Minutes") -> SampleRow:
    where = f"samples[{number}]"
    width = 1 + len(SAMPLE_NAMES) + len(SAMPLE_NUMBERS)
    if not isinstance(row, list) or len(row) != width:
        raise InvalidBatch(f"{where}: must be a list of {width} fields.")
    day, texts, numbers = row[0], row[1 : 1 + len(SAMPLE_NAMES)], row[1 + len(SAMPLE_NAMES) :]
    minute = day * DAY_SECONDS // MINUTE_SECONDS if type(day) is int else day
    return SampleRow(
        minutes.read(minute, where),
        tuple(
            _text(value, f"{where}.{name}", WIDTHS[name], may_be_empty=name in MAY_BE_EMPTY)
            for name, value in zip(SAMPLE_NAMES, texts, strict=True)
        ),
        tuple(_count(value, f"{where}.{name}", 0) for name, value in zip(SAMPLE_NUMBERS, numbers, strict=True)),
    )


def _broken(number: int, row: Any, minutes: "_Minutes") -> BrokenRow:
    where = f"broken[{number}]"
    if not isinstance(row, list) or len(row) != len(BROKEN_NAMES):
        raise InvalidBatch(f"{where}: must be a list of {len(BROKEN_NAMES)} fields.")
    minute, project, model, form, pattern, requests, added = row
    _own(project, minutes.project, where)
    return BrokenRow(
        minutes.read(minute, where),
        _text(project, f"{where}.project", WIDTHS["project_id"]),
        _text(model, f"{where}.model", MAX_MODEL_LENGTH, may_be_empty=True),
        _text(form, f"{where}.format", MAX_FORMAT_LENGTH),
        _text(pattern, f"{where}.pattern", MAX_PATTERN_LENGTH, may_be_empty=True),
        _count(requests, f"{where}.requests", 1),
        _count(added, f"{where}.added", 0),
        not minutes.project,
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
    if minutes.project:
        _own(names[0], minutes.project, f"rows[{number}]")
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


def _add_spreads(rows: dict[int, Row], spreads: list[Any], refused: list[Refused]) -> None:
    """Add the spreads to the rows, each of which it names by the number. Without one, nothing is known of a row."""
    for number, values in enumerate(spreads):
        try:
            index, spread = _spread(rows, number, values)
        except InvalidBatch as exc:
            refused.append(Refused("spread", values, str(exc)))
        else:
            rows[index] = rows[index]._replace(spread=spread)


def _spread(rows: Mapping[int, Row], number: int, values: Any) -> tuple[int, tuple[int, ...]]:
    if not isinstance(values, list) or len(values) != 2 + PARTS:
        raise InvalidBatch(f"spread[{number}]: must be a list of {2 + PARTS} integers.")
    index, seconds, *parts = values
    row = rows.get(index) if type(index) is int else None
    if row is None or not row.is_total or row.spread:
        message = f"must be the index of a row without a limit, once, got {index!r:.40}."
        raise InvalidBatch(f"spread[{number}].row: {message}")
    if type(seconds) is not int or not 0 <= seconds < 2**MINUTE_SECONDS:
        raise InvalidBatch(f"spread[{number}].seconds: must be {MINUTE_SECONDS} bits, got {seconds!r:.40}.")
    if not _are_counts(parts):
        for value in parts:
            _count(value, f"spread[{number}].requests", 0)
    return index, (seconds, *parts)


def _own(project: Any, intake: str, where: str) -> None:
    if intake and project != intake:
        raise InvalidBatch(f"{where}.project_id: must be that of the account, {intake}, got {project!r:.60}.")


class _Minutes:
    """The minutes that usage may have at *now*, and the project that it must have, or an empty string."""

    def __init__(self, now: datetime, project: str) -> None:
        self.project = project
        self._earliest, self._latest = ((now + by).timestamp() // 60 for by in (-MOST_BEHIND, MOST_AHEAD))
        self._known: dict[int, datetime] = {}

    def read(self, value: Any, where: str, *numbers: int) -> datetime:
        """Return a minute, by its number since the epoch, as a datetime. An error says *where* it is."""
        if type(value) is not int or not self._earliest <= value <= self._latest:
            message = f"must be a minute since the epoch, at most one hour ahead or two years back, got {value!r:.40}."
            raise InvalidBatch(f"{where % numbers}.minute: {message}")
        result = self._known.get(value)
        if result is None:
            result = self._known[value] = datetime.fromtimestamp(value * 60, UTC)
        return result


def _text(value: Any, where: str, width: int, *, may_be_empty: bool = False) -> str:
    # isprintable() also refuses NUL and lone surrogates, which PostgreSQL cannot store.
    if not isinstance(value, str) or not value.isprintable() or len(value) > width or not (value or may_be_empty):
        raise InvalidBatch(f"{where}: must be a string of {0 if may_be_empty else 1} to {width} printable characters.")
    return value


def _count(value: Any, where: str, least: int) -> int:
    if type(value) is not int or not least <= value <= MAX_COUNT:
        raise InvalidBatch(f"{where}: must be an integer from {least} to {MAX_COUNT}, got {value!r:.40}.")
    return value


_WIDTHS = tuple(WIDTHS[name] for name in NAMES)
