"""
Write and read the ledger of one process.

A ledger is JSON, one object a line: a header, a line for each counter before its first use, and a line for each
decision. The reader refuses a line that it does not understand completely, since a guess would prove nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.strict_json import InvalidJSON, loads_object
from enforcement.plan.binding import BoundLimit
from enforcement.plan.decision import STATUSES, Decision

FORMAT: Final = 1
SOURCES: Final = frozenset({"store", "lease", "denial_cache", "fallback", "documents"})


class LedgerError(ValueError):
    """A ledger cannot be read. The message names the file, the line and the rule."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


@dataclass(frozen=True, slots=True)
class LedgerCounter:
    """
    A counter of the store, as a ledger declares it.

    Attributes:
        policy: Slug of the limit's policy. Empty for a limit in code.
    """

    key: str
    limit: Limit
    policy: str = ""

    @property
    def name(self) -> str:
        """The name of the limit, after the slug of its policy if it has one."""
        return f"{self.policy}/{self.limit.name}" if self.policy else self.limit.name


@dataclass(frozen=True, slots=True)
class Record:
    """
    One decision.

    Attributes:
        instance: The process that made the request.
        id: Id of the request, unique in the load.
        started_at_us: By the clock of this machine. ``ended_at_us`` adds the time by the monotonic clock.
        decided_at_us: The instant that selects the windows, by the store's clock or the process' estimate of it.
        cause: Why the store was called and did not decide, such as ``timeout`` or ``connection``. Empty otherwise.
        ambiguous: Whether a call got no reply, so that the store may have charged it.
        costs: Permits, one number for each of ``counters``.
        denied_by: Names of the limits that denied the request.
    """

    instance: str
    id: str
    started_at_us: int
    ended_at_us: int
    decided_at_us: int
    allowed: bool
    reason: str
    source: str
    cause: str
    ambiguous: bool
    revision: int
    counters: tuple[LedgerCounter, ...]
    costs: tuple[int, ...]
    denied_by: tuple[str, ...]

    @property
    def took_ms(self) -> float:
        """How long the caller waited, in milliseconds."""
        return (self.ended_at_us - self.started_at_us) / 1_000

    @property
    def degraded(self) -> bool:
        """Whether the process decided without the store."""
        return self.source == "fallback"


@dataclass(frozen=True, slots=True)
class Ledger:
    """
    All that one process wrote.

    Attributes:
        timeout_ms: The time budget of its decisions.
        records: Its decisions in their order.
    """

    path: Path
    instance: str
    timeout_ms: float
    records: list[Record] = field(default_factory=list)


class LedgerWriter:
    """
    Writes a ledger.

    The system has each line when ``write`` returns, so a killed process leaves whole lines.

    Args:
        path: A new file.
        instance: Name of the process in the fleet.
        timeout_ms: The time budget of its decisions.
    Raises:
        FileExistsError: The file exists. Evidence is never overwritten.
    """

    def __init__(self, path: Path, instance: str, timeout_ms: float) -> None:
        # Line buffering: a line is one write to the system.
        self._file = path.open("x", buffering=1, encoding="utf-8")
        self._counters: dict[str, tuple[int, Limit]] = {}
        self._declared = 0
        self._put({"ledger": FORMAT, "instance": instance, "timeout_ms": timeout_ms})

    def write(
        self, ident: str, started_at_us: int, ended_at_us: int, decision: Decision, costs: int | Mapping[str, int]
    ) -> None:
        """Write one decision to the ledger."""
        bounds = decision.bounds
        self._put(
            {
                "id": ident,
                "started_at_us": started_at_us,
                "ended_at_us": ended_at_us,
                "decided_at_us": decision.decided_at_us,
                "allowed": decision.allowed,
                "reason": decision.reason,
                "source": decision.source,
                "cause": decision.cause,
                "ambiguous": decision.ambiguous,
                "revision": decision.revision,
                "counters": [self._number(bound) for bound in bounds],
                "costs": [bound.cost_of(costs) for bound in bounds],
                "denied_by": [] if decision.allowed else list(decision.denied_by),
            }
        )

    def close(self) -> None:
        """Close the file of the ledger."""
        self._file.close()

    def _number(self, bound: BoundLimit) -> int:
        number, limit = self._counters.get(bound.key, (0, None))
        if limit is not bound.limit and limit != bound.limit:
            number, self._declared = self._declared, self._declared + 1
            self._counters[bound.key] = number, bound.limit
            limit_json = bound.limit.to_json()
            self._put({"counter": number, "key": bound.key, "limit": limit_json, "policy": bound.policy_slug})
        return number

    def _put(self, value: Mapping[str, object]) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")) + "\n")


def read(path: Path) -> Ledger:
    """
    Return the Ledger that one process wrote to the file at *path*.

    Raises:
        LedgerError: A line breaks the format, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _LedgerReader(path).read(file)
    except OSError as exc:
        raise LedgerError(path, 0, exc.strerror or str(exc)) from exc


class _LedgerReader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._line = 0
        self._counters: list[LedgerCounter] = []

    def read(self, lines: Iterable[bytes]) -> Ledger:
        ledger: Ledger | None = None
        for self._line, line in enumerate(lines, 1):
            value = self._object(line)
            if ledger is None:
                ledger = self._header(value)
            elif "counter" in value:
                self._counters.append(self._counter(value))
            else:
                ledger.records.append(self._record(ledger.instance, value))
        if ledger is None:
            raise self._error("the file is empty.")
        return ledger

    def _error(self, reason: str) -> LedgerError:
        return LedgerError(self._path, self._line, reason)

    def _object(self, line: bytes) -> dict[str, object]:
        if not line.endswith(b"\n"):
            raise self._error("the line is cut off.")
        try:
            return loads_object(line, fractions=True)
        except InvalidJSON as exc:
            raise self._error(f"{exc}.") from None

    def _header(self, value: dict[str, Any]) -> Ledger:
        if value.get("ledger") != FORMAT or type(value["ledger"]) is not int:
            raise self._error(f"ledger: must be {FORMAT}, got {value.get('ledger')!r}.")
        self._check(value, {"ledger": int, "instance": str, "timeout_ms": (int, float)})
        return Ledger(self._path, value["instance"], value["timeout_ms"])

    def _counter(self, value: dict[str, Any]) -> LedgerCounter:
        self._check(value, {"counter": int, "key": str, "limit": dict, "policy": str})
        if value["counter"] != len(self._counters):
            raise self._error(f"counter: must be {len(self._counters)}, got {value['counter']}.")
        try:
            return LedgerCounter(value["key"], Limit.from_json(value["limit"]), value["policy"])
        except InvalidLimit as exc:
            raise self._error(f"limit.{exc.field}: {exc.reason}") from exc

    def _record(self, instance: str, value: dict[str, Any]) -> Record:
        self._check(value, _FIELDS)
        for name in ("counters", "costs"):
            if any(type(number) is not int or number < 0 for number in value[name]):
                raise self._error(f"{name}: must be a list of integers, 0 or more.")
        if any(not isinstance(name, str) for name in value["denied_by"]):
            raise self._error("denied_by: must be a list of strings.")
        if len(value["counters"]) != len(value["costs"]):
            raise self._error("costs: must have as many items as counters.")
        if any(number >= len(self._counters) for number in value["counters"]):
            raise self._error("counters: must be declared by an earlier line.")
        if value["ended_at_us"] < value["started_at_us"]:
            raise self._error("ended_at_us: must not be less than started_at_us.")
        if value["source"] not in SOURCES:
            raise self._error(f"source: must be one of {', '.join(sorted(SOURCES))}, got {value['source']!r}.")
        if value["reason"] not in STATUSES or value["allowed"] != (value["reason"] == "ok"):
            raise self._error('reason: must be a reason of decisions, and "ok" if and only if allowed is true.')
        value["counters"] = tuple(self._counters[number] for number in value["counters"])
        value["costs"], value["denied_by"] = tuple(value["costs"]), tuple(value["denied_by"])
        return Record(instance, **value)

    def _check(self, value: dict[str, Any], kinds: Mapping[str, Any]) -> None:
        if value.keys() != kinds.keys():
            odd = sorted(value.keys() ^ kinds.keys())[0]
            raise self._error(f"{odd}: {'unknown field.' if odd in value else 'is required.'}")
        for name, kind in kinds.items():
            given = value[name]
            if not isinstance(given, kind) or (isinstance(given, bool) and kind is not bool):
                raise self._error(f"{name}: must not be {type(given).__name__}.")


_FIELDS: Final[Mapping[str, object]] = {
    "id": str,
    "started_at_us": int,
    "ended_at_us": int,
    "decided_at_us": int,
    "allowed": bool,
    "reason": str,
    "source": str,
    "cause": str,
    "ambiguous": bool,
    "revision": int,
    "counters": list,
    "costs": list,
    "denied_by": list,
}
