"""
Write the header fields that say what remains, in the form of the IETF draft and in older forms.

Every response has these fields, so they must be cheap. The usual case formats the numbers of the store's reply, and
takes from a cache what is the same for all decisions of a plan. Only the other cases create limit states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.plan.limit_state import LimitState, tightness
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply

LIST_FIELDS: Final = frozenset({"RateLimit-Policy", "RateLimit"})
"""Fields of the draft. Their values are lists, so items can be appended to a field that exists already."""


class Described(Protocol):
    """The part of a :class:`~enforcement.plan.decision.Decision` that header fields need."""

    allowed: bool
    plan: Plan
    reply: Reply
    held: int

    @property
    def shown(self) -> bool:
        """Whether the response shows limits."""

    @property
    def limits(self) -> tuple[LimitState, ...]:
        """The state of each limit."""

    @property
    def limit(self) -> LimitState | None:
        """The limit that decides, or None."""

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
    unknown = [name for name in names.split("+") if name not in _PRESETS]
    if unknown:
        raise ValueError(f"preset: must be one of {', '.join(_PRESETS)}, got {unknown[0]!r}.")
    return tuple(_PRESETS[name] for name in names.split("+"))


@dataclass(frozen=True, slots=True)
class Spelled:
    """
    The constant parts of the draft's fields for one enforced limit.

    Attributes:
        at: The index of its bound in the plan.
        capacity: Permits.
        window_seconds: The length of its window, or the lifetime of its slots. None for a lifetime limit.
        policy: Its item of ``RateLimit-Policy``.
        line: The name and value of a ``RateLimit-Policy`` field that has this item only, encoded for ASGI.
        head: The beginning of its item of ``RateLimit``, up to the number that remains.
        tells_time: Whether that item has a time.
    """

    at: int
    capacity: int
    window_seconds: int | None
    policy: str
    line: tuple[bytes, bytes]
    head: str
    tells_time: bool


def spell(bounds: Sequence[BoundLimit]) -> tuple[Spelled, ...] | None:
    """
    Return the constant parts of the header fields for all enforced limits, or None if a limit follows a calendar.

    Returns:
        None if a limit follows a calendar, because its windows differ in length.
    """
    if any(bound.limit.calendar not in (None, "lifetime") for bound in bounds):
        return None
    names = labels([(bound.policy_slug, bound.limit.name) for bound in bounds])
    return tuple(_spell(at, bound.limit, names[at]) for at, bound in enumerate(bounds) if not bound.limit.shadow)


class _Cache:
    """The result of :func:`spell` for a plan, and its item if there is exactly one."""

    __slots__ = ("only", "spelled")

    def __init__(self, bounds: Sequence[BoundLimit]) -> None:
        self.spelled = spell(bounds)
        self.only = self.spelled[0] if self.spelled is not None and len(self.spelled) == 1 else None


def _cached(plan: Plan) -> _Cache:
    """Return the cache of a plan, and create it on first use."""
    if plan.header_cache is None:
        plan.header_cache = _Cache(plan.bounds)
    cached: _Cache = plan.header_cache
    return cached


def _spell(at: int, limit: Limit, label: str) -> Spelled:
    slots = limit.algorithm == "concurrency"
    window_seconds = None if slots else limit.window_seconds
    policy = _policy_item(label, limit.quota, limit.unit, limit.algorithm, window_seconds)
    line = (b"ratelimit-policy", policy.encode("latin-1"))
    return Spelled(at, limit.capacity, limit.window_seconds, policy, line, f'"{label}";r=', not slots)


def labels(names: Sequence[tuple[str, str]]) -> list[str]:
    """
    Return a unique label for each limit.

    Args:
        names: The policy and the name of each limit.
    Returns:
        The name, or ``policy/name`` if several limits have that name.
    """
    own = [name for _, name in names]
    return [f"{policy}/{name}" if policy and own.count(name) > 1 else name for policy, name in names]


def ordered(decision: Described) -> list[tuple[str, LimitState]]:
    """Return the enforced limits, each after its label. The limit that decides comes first, then the tightest."""
    names = labels([(state.policy, state.name) for state in decision.limits])
    enforced = [row for row in zip(names, decision.limits, strict=True) if row[1].mode == "enforce"]
    if len(enforced) > 1:
        first = decision.limit
        enforced.sort(key=lambda row: (row[1] is not first, row[1].tightness))
    return enforced


def seconds(span_ms: int) -> int:
    """Return a span in seconds, rounded up."""
    return -(-span_ms // 1_000)


def _policy_item(label: str, quota: int, unit: str, algorithm: str, window_seconds: int | None) -> str:
    unit = "concurrent-requests" if algorithm == "concurrency" else unit
    length = "" if window_seconds is None else f";w={window_seconds}"
    return f'"{label}";q={quota}{length}' + ("" if unit == "requests" else f';qu="{unit}"')


def _ietf(decision: Described) -> dict[str, str]:
    spelled = _cached(decision.plan).spelled
    if spelled is not None and (decision.allowed or len(spelled) == 1):
        return _by_numbers(decision, spelled)
    policies, limits = [], []
    for label, state in ordered(decision):
        slots = state.algorithm == "concurrency"
        policies.append(_policy_item(label, state.quota, state.unit, state.algorithm, state.window_seconds))
        until = "" if slots or state.more_ms is None else f";t={seconds(state.more_ms)}"
        limits.append(f'"{label}";r={state.remaining}{until}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)}


def draft_lines(decision: Described) -> list[tuple[bytes, bytes]]:
    """Return the draft's fields for an allowed request, encoded for ASGI."""
    cached: _Cache | None = decision.plan.header_cache
    if cached is not None and (only := cached.only) is not None:
        # This repeats _limit_item(). A request on a lease is so fast that one more function call would slow it down.
        numbers, at = decision.reply.numbers, 2 + only.at * decision.reply.width
        remaining, more = numbers[at] + decision.held, numbers[at + 3] or numbers[at + 1]
        until = f";t={-(-more // 1_000_000)}" if more >= 0 and only.tells_time else ""
        return [only.line, (b"ratelimit", f"{only.head}{remaining if remaining > 0 else 0}{until}".encode("latin-1"))]
    fields = _ietf(decision) if decision.shown else {}
    return [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in fields.items()]


def _by_numbers(decision: Described, spelled: Sequence[Spelled]) -> dict[str, str]:
    """Return the header fields from the numbers of the reply, without limit states. The tightest limit comes first."""
    rows = [(limit, *_limit_item(decision, limit)) for limit in spelled]
    rows.sort(key=lambda row: tightness(row[1], row[0].capacity, row[0].window_seconds))
    return {
        "RateLimit-Policy": ", ".join([row[0].policy for row in rows]),
        "RateLimit": ", ".join([row[2] for row in rows]),
    }


def _limit_item(decision: Described, limit: Spelled) -> tuple[int, str]:
    """Return the permits that a limit has left, and its item of ``RateLimit``."""
    remaining, reset, _, more = decision.reply.row(limit.at)
    remaining, more = max(0, remaining + decision.held), more or reset
    if more < 0 or not limit.tells_time:
        return remaining, f"{limit.head}{remaining}"
    return remaining, f"{limit.head}{remaining};t={-(-more // 1_000_000)}"


def _legacy(decision: Described, reset: int | None) -> dict[str, str]:
    limit = decision.limit
    assert limit is not None
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


def _openai(decision: Described) -> dict[str, str]:
    """Return the header fields for the tightest limit on requests and the tightest limit on tokens."""
    fields: dict[str, str] = {}
    for _, state in reversed(ordered(decision)):
        if state.algorithm == "concurrency" or state.unit not in ("requests", "tokens"):
            continue
        fields[f"x-ratelimit-limit-{state.unit}"] = str(state.quota)
        fields[f"x-ratelimit-remaining-{state.unit}"] = str(state.remaining)
        if state.reset_ms is not None:
            fields[f"x-ratelimit-reset-{state.unit}"] = _go_duration(state.reset_ms)
    return fields


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
}
