"""
Write the header fields that say what remains, in the form of the IETF draft and in older forms.

Every response has these fields, so they must be cheap. The usual case formats the numbers of the store's reply, and
takes from a cache what is the same for all decisions of a plan. Only the other cases create limit states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final, Protocol

from enforcement.model.calendars import window
from enforcement.model.checks import shown
from enforcement.model.instants import SECOND_US, from_us, to_us
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import REQUESTS
from enforcement.plan.limit_state import LimitState, seconds, tightness
from enforcement.plan.reply import NO_REPLY, Reply

LIST_FIELDS: Final = frozenset({"RateLimit-Policy", "RateLimit"})
"""Fields of the draft. Their values are lists, so items can be appended to a field that exists already."""


_YEAR_9999_US: Final = to_us(datetime(9999, 1, 1, tzinfo=UTC))


class DescribedPlan(Protocol):
    """The part of a :class:`~enforcement.plan.plan.Plan` that header fields need."""

    bounds: tuple[BoundLimit, ...]
    counts_units: bool
    header_cache: HeaderCache | None


class Described(Protocol):
    """The part of a :class:`~enforcement.plan.decision.Decision` that header fields need."""

    allowed: bool
    reply: Reply
    held: int

    @property
    def plan(self) -> DescribedPlan:
        """The counters of the request."""

    @property
    def shown(self) -> bool:
        """Whether the response shows limits."""

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """The state of each limit."""

    @property
    def limit(self) -> LimitState | None:
        """The state of the limit that decides, or None if there is none."""

    def unmetered_at(self) -> tuple[int, ...]:
        """Return the index of each limit that counted nothing, because the costs do not name its unit."""

    @property
    def reset_ms(self) -> int | None:
        """Milliseconds until that limit is full again, or None if it never is."""


class Preset(Protocol):
    """Return the fields of one convention."""

    def __call__(self, decision: Described) -> dict[str, str]: ...


@cache
def presets(names: str) -> tuple[Preset, ...]:
    """
    Return the functions that write the headers of the presets whose names are joined by ``+``.

    Raises:
        ValueError: One of them is unknown.
    """
    unknown = [name for name in names.split("+") if name not in _PRESETS] if isinstance(names, str) else [names]
    if unknown:
        raise ValueError(f"preset: must be one of {', '.join(_PRESETS)}, got {shown(unknown[0])}.")
    return tuple(_PRESETS[name] for name in names.split("+"))


class CalendarItem:
    """The item of ``RateLimit-Policy`` for a calendar limit, which is the same during one window."""

    __slots__ = ("_kept", "_label", "_limit", "_line")

    def __init__(self, limit: Limit, label: str) -> None:
        self._limit = limit
        self._label = label
        self._kept = (0, 0, "", 0)
        self._line = "", _policy_line("")

    def at(self, now_us: int) -> tuple[str, int]:
        """Return the item, and the length in seconds of the window that contains this instant."""
        start, end, item, length = self._kept
        if not start <= now_us < end:
            limit = self._limit
            start, end = window(now_us, limit.calendar or "", limit.time_zone, limit.anchor)
            length = (end - start) // SECOND_US
            item = _policy_item(self._label, limit.quota, limit.unit, limit.algorithm, length)
            self._kept = start, end, item, length  # in one step, as other threads read it
        return item, length

    def line_at(self, now_us: int) -> tuple[bytes, bytes]:
        """Return the name and value of a ``RateLimit-Policy`` field that has the item only, encoded for ASGI."""
        item, line = self.at(now_us)[0], self._line
        if line[0] is not item:
            line = self._line = item, _policy_line(item)
        return line[1]


@dataclass(frozen=True, slots=True)
class Spelled:
    """
    The constant parts of the draft's fields for one enforced limit.

    Attributes:
        at: The index of its bound in the plan.
        full: Permits of a full limit, without those that may be carried.
        window_seconds: The length of its window, or the lifetime of its slots. None for a lifetime limit.
        policy: Its item of ``RateLimit-Policy``.
        by_calendar: Has the length and the item instead, if the limit follows a calendar. None otherwise.
        line: The name and value of a ``RateLimit-Policy`` field that has this item only, encoded for ASGI. None: see
            *by_calendar*.
        head: The beginning of its item of ``RateLimit``, up to the number that remains.
        tells_time: Whether that item has a time.
    """

    at: int
    full: int
    window_seconds: int | None
    policy: str
    line: tuple[bytes, bytes] | None
    head: str
    tells_time: bool
    by_calendar: CalendarItem | None

    def line_at(self, now_us: int) -> tuple[bytes, bytes]:
        """Return *line*, or that for the calendar window that contains this instant."""
        if self.by_calendar is not None:
            return self.by_calendar.line_at(now_us)
        assert self.line is not None
        return self.line


def spell(bounds: Sequence[BoundLimit]) -> tuple[Spelled, ...]:
    """Return the constant parts of the header fields for all enforced limits."""
    names = _labels(bounds)
    return tuple(_spell(at, bound.limit, names[at]) for at, bound in enumerate(bounds) if not bound.limit.shadow)


class HeaderCache:
    """
    The header fields that all responses of a plan have in common.

    Attributes:
        labels: The labels of the limits.
        spelled: The result of :func:`spell`.
        only: Its item, if every response has that one only.
        only_if_counted: Its item, if every response has that one only to which the limit gets a cost.
        leased: The reply of the latest lease, with what all responses to requests on it have in common: permits in the
            reply, the field ``RateLimit-Policy``, and the end of the field ``RateLimit``.
    """

    __slots__ = ("labels", "leased", "only", "only_if_counted", "spelled")

    def __init__(self, bounds: Sequence[BoundLimit]) -> None:
        self.labels = _labels(bounds)
        self.spelled = spell(bounds)
        self.only: Spelled | None = None
        self.only_if_counted: Spelled | None = None
        self.leased: tuple[Reply, int, tuple[bytes, bytes], str] = NO_REPLY, 0, (b"", b""), ""
        if len(self.spelled) == 1:
            item = self.spelled[0]
            if bounds[item.at].limit.unit == REQUESTS:
                self.only = item
            else:
                self.only_if_counted = item


def _cached(plan: DescribedPlan) -> HeaderCache:
    """Return the cache of a plan, and create it on first use."""
    if plan.header_cache is None:
        plan.header_cache = HeaderCache(plan.bounds)
    return plan.header_cache


def _spell(at: int, limit: Limit, label: str) -> Spelled:
    slots = limit.algorithm == "concurrency"
    window_seconds = None if slots else limit.window_seconds
    policy = _policy_item(label, limit.quota, limit.unit, limit.algorithm, window_seconds)
    by_calendar = None if limit.calendar in (None, "lifetime") else CalendarItem(limit, label)
    line = _policy_line(policy) if by_calendar is None else None
    full = limit.quota if limit.rollover else limit.capacity
    return Spelled(at, full, limit.window_seconds, policy, line, f'"{label}";r=', not slots, by_calendar)


def labels(plan: DescribedPlan) -> Sequence[str]:
    """
    Return a unique label for each limit of a plan, in the order of the plan.

    Returns:
        The name. ``policy/name`` if several limits have that name, and ``scope/policy/name`` if they also have one
        policy, which is attached to the token and to its project, for instance.
    """
    return _cached(plan).labels


def _labels(bounds: Sequence[BoundLimit]) -> Sequence[str]:
    names = [bound.limit.name for bound in bounds]
    if len(set(names)) == len(names):
        return names
    longer = [f"{bound.policy_slug}/{bound.limit.name}" if bound.policy_slug else bound.limit.name for bound in bounds]
    longest = [f"{bound.scope}/{name}" for bound, name in zip(bounds, longer, strict=True)]
    rows = zip(names, longer, longest, strict=True)
    return [a if names.count(a) == 1 else b if longer.count(b) == 1 else c for a, b, c in rows]


def ordered(decision: Described) -> list[tuple[str, LimitState]]:
    """
    Return a list of (label, state) for the enforced limits that counted the request.

    The limit that decides comes first, then the tightest.
    """
    left_out, names = decision.unmetered_at(), labels(decision.plan)
    rows = enumerate(zip(names, decision.limits, strict=True))
    enforced = [row for i, row in rows if row[1].mode == "enforce" and i not in left_out]
    if len(enforced) > 1:
        first = decision.limit
        enforced.sort(key=lambda row: (row[1] is not first, row[1].tightness))
    return enforced


def _policy_item(label: str, quota: int, unit: str, algorithm: str, window_seconds: int | None) -> str:
    unit = "concurrent-requests" if algorithm == "concurrency" else unit
    length = "" if window_seconds is None else f";w={window_seconds}"
    return f'"{label}";q={quota}{length}' + ("" if unit == "requests" else f';qu="{unit}"')


def _policy_line(item: str) -> tuple[bytes, bytes]:
    return b"ratelimit-policy", item.encode("latin-1")


def _ietf(decision: Described) -> dict[str, str]:
    spelled = _cached(decision.plan).spelled
    if decision.allowed or len(spelled) == 1:
        if decision.plan.counts_units and (left_out := decision.unmetered_at()):
            spelled = tuple(item for item in spelled if item.at not in left_out)
        return _by_numbers(decision, spelled) if spelled else {}
    return by_states(decision)


def by_states(decision: Described) -> dict[str, str]:
    """Return the draft's header fields from the states of the limits, which is the slow way."""
    policies, limits = [], []
    for label, state in ordered(decision):
        slots = state.algorithm == "concurrency"
        policies.append(_policy_item(label, state.quota, state.unit, state.algorithm, state.window_seconds))
        until = "" if slots or state.more_ms is None else f";t={seconds(state.more_ms)}"
        limits.append(f'"{label}";r={state.remaining}{until}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)} if limits else {}


def draft_lines(decision: Described) -> list[tuple[bytes, bytes]]:
    """Return pairs of name and value of the draft's header fields for an allowed request, encoded for ASGI."""
    cached = decision.plan.header_cache
    if cached is not None and (
        (only := cached.only) is not None
        or ((only := cached.only_if_counted) is not None and not decision.unmetered_at())
    ):
        # This repeats _by_numbers() for one limit. A request on a lease is so fast that a call more would slow it down.
        reply, leased = decision.reply, cached.leased
        if leased[0] is reply:
            remaining = leased[1] + decision.held
            return [
                leased[2],
                (b"ratelimit", f"{only.head}{remaining if remaining > 0 else 0}{leased[3]}".encode("latin-1")),
            ]
        numbers, at = reply.numbers, 2 + only.at * reply.width
        remaining, more = numbers[at] + decision.held, numbers[at + 3] or numbers[at + 1]
        until = f";t={-(-more // 1_000_000)}" if more >= 0 and only.tells_time else ""
        line = only.line
        if line is None:
            line = only.line_at(reply.now_us)
        if decision.held:
            cached.leased = reply, numbers[at], line, until
        return [line, (b"ratelimit", f"{only.head}{remaining if remaining > 0 else 0}{until}".encode("latin-1"))]
    fields = _ietf(decision) if decision.shown else {}
    return [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in fields.items()]


def _by_numbers(decision: Described, spelled: Sequence[Spelled]) -> dict[str, str]:
    """Return the header fields from the numbers of the reply, the tightest limit first."""
    numbers, width, held, rows = decision.reply.numbers, decision.reply.width, decision.held, []
    for limit in spelled:
        at = 2 + limit.at * width
        remaining, more = numbers[at] + held, numbers[at + 3] or numbers[at + 1]
        if remaining < 0:
            remaining = 0
        until = f";t={-(-more // 1_000_000)}" if more >= 0 and limit.tells_time else ""
        policy, length_seconds = limit.policy, limit.window_seconds
        if limit.by_calendar is not None:
            policy, length_seconds = limit.by_calendar.at(decision.reply.now_us)
        if len(spelled) == 1:  # as most requests have one limit
            return {"RateLimit-Policy": policy, "RateLimit": f"{limit.head}{remaining}{until}"}
        share, length = tightness(remaining, limit.full, length_seconds)
        rows.append((share, length, limit.at, f"{limit.head}{remaining}{until}", policy))
    rows.sort()
    return {"RateLimit-Policy": ", ".join([row[4] for row in rows]), "RateLimit": ", ".join([row[3] for row in rows])}


def _legacy(decision: Described, reset: int | None) -> dict[str, str]:
    limit = decision.limit
    if limit is None:
        return {}
    fields = {"X-RateLimit-Limit": str(limit.quota), "X-RateLimit-Remaining": str(limit.remaining)}
    if reset is not None:
        fields["X-RateLimit-Reset"] = str(reset)
    return fields


def _legacy_delta(decision: Described) -> dict[str, str]:
    return _legacy(decision, None if decision.reset_ms is None else seconds(decision.reset_ms))


def _legacy_epoch(decision: Described) -> dict[str, str]:
    if decision.reset_ms is None:
        return _legacy(decision, None)
    return _legacy(decision, -(-(decision.reply.now_us + decision.reset_ms * 1_000) // 1_000_000))


def _tightest(decision: Described) -> Iterator[LimitState]:
    """Yield the state of the tightest limit on requests, and then of that on tokens, as far as there are such."""
    tightest: dict[str, LimitState] = {}
    for _, state in ordered(decision):
        if state.algorithm != "concurrency":
            tightest.setdefault(state.unit, state)
    return (tightest[unit] for unit in ("requests", "tokens") if unit in tightest)


def _openai(decision: Described) -> dict[str, str]:
    """Return a dictionary of OpenAI's header fields for the tightest limit on requests and that on tokens."""
    fields: dict[str, str] = {}
    for state in _tightest(decision):
        fields[f"x-ratelimit-limit-{state.unit}"] = str(state.quota)
        fields[f"x-ratelimit-remaining-{state.unit}"] = str(state.remaining)
        if state.reset_ms is not None:
            fields[f"x-ratelimit-reset-{state.unit}"] = _go_duration(state.reset_ms)
    return fields


def _anthropic(decision: Described) -> dict[str, str]:
    """
    Return a dictionary of Anthropic's header fields for the tightest limit on requests and that on tokens. The reset is
    an instant.
    """
    fields: dict[str, str] = {}
    for state in _tightest(decision):
        fields[f"anthropic-ratelimit-{state.unit}-limit"] = str(state.quota)
        fields[f"anthropic-ratelimit-{state.unit}-remaining"] = str(state.remaining)
        if state.reset_ms is not None:
            at_us = min(decision.reply.now_us + seconds(state.reset_ms) * SECOND_US, _YEAR_9999_US)
            fields[f"anthropic-ratelimit-{state.unit}-reset"] = from_us(at_us).strftime("%Y-%m-%dT%H:%M:%SZ")
    return fields


def _no_fields(decision: Described) -> dict[str, str]:
    """Return an empty dictionary. These providers have no fields for limits, and the presets only name their errors."""
    return {}


def _go_duration(span_ms: int) -> str:
    """Return a duration as Go formats it, such as ``1s``, ``6m0s``, ``1h0m2.5s`` or ``250ms``."""
    if span_ms < 1_000:
        return f"{span_ms}ms" if span_ms else "0s"
    minutes, rest = divmod(span_ms, 60_000)
    spelled = f"{rest / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return spelled
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{spelled}"


_PRESETS: Final[dict[str, Preset]] = {
    "ietf": _ietf,
    "legacy-delta": _legacy_delta,
    "legacy-epoch": _legacy_epoch,
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _no_fields,
    "bedrock": _no_fields,
    "cohere": _no_fields,
}
