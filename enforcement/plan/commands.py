"""
The language of the store: a plan and its costs become one command, a reply becomes a decision. No I/O.

Every command names the version of the function library it was written for. What an error reply means for the one who
asked (was it executed? is the store to blame?) is said here and nowhere else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import hiredis

from enforcement.lua import function
from enforcement.model.algorithms import Spec
from enforcement.model.keys import dirty_beside
from enforcement.plan.plan import BoundLimit, Plan
from enforcement.store.late_replies import LOST, Late

if TYPE_CHECKING:
    from enforcement.plan.request import Request

DECIDE: Final = function("decide")
LEASE: Final = function("lease")
ENROL: Final = function("enrol")
ENROL_SETTLE: Final = function("enrol_settle")
SETTLE: Final = function("settle")
RENEW: Final = function("renew")
RESET: Final = function("reset")

SLOTS: Final = 16_384
"""Of every cluster."""
MAX_PORT: Final = 65_535

Steps = Generator[bytes, Any, Any]
"""Yields encoded commands, is sent their replies or thrown a StoreError, and returns what comes of them."""

TAKEN_FOR_EXECUTED: Final = frozenset({"timeout", "protocol"})
"""Causes; see :attr:`StoreError.charges`."""

RETRYABLE: Final = frozenset({"connection", "moved", "library", "readonly", "loading", "sentinel"})
"""Causes after which a call that surely was not executed is worth one more try at once."""

REMEMBERED_MS: Final = 3_600_000
"""How long the store remembers that a reservation was settled."""

NOT_RESTORED: Final = -3
"""In place of a reply: the store lost durable counters and has not got them back; nothing was read or written."""


class StoreError(Exception):
    """
    A call that gave no usable reply.

    Attributes:
        cause: A word for logs and counters: ``timeout``, ``connection``, ``protocol``, ``reply`` ...
        executed: Whether the store may have executed it; False: surely not, it may be sent again.
        away: Whether the store is to blame as a whole, and not this call alone.
        late: Its answer, if that may still come; None: nobody waits for it.
    """

    def __init__(
        self, cause: str, detail: str = "", *, executed: bool = True, away: bool = True, late: Late | None = None
    ) -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause
        self.executed = executed
        self.away = away
        self.late = late

    @property
    def charges(self) -> bool:
        """
        Whether the call is taken for executed, unless its late answer says otherwise: nobody charges the request again.

        A store that is slow or frozen has the call before it, and one whose reply was spoilt had executed it. Of a
        connection that was lost nothing is known: there the store may be gone, with the call.
        """
        return self.executed and self.cause in TAKEN_FOR_EXECUTED


class LibraryMissing(StoreError):
    """The store does not have the function library; whoever may load it should."""


_REDIRECTION: Final = re.compile(r"(MOVED|ASK) (?P<slot>\d{1,5}) (?P<host>\S*):(?P<port>\d{1,5})")


class Redirected(StoreError):
    """
    Another node of the cluster has the slot.

    Attributes:
        place: Host ("" for the one that was asked) and port.
        asks: Whether only this call is to go there, announced by ``ASKING``: the slot is on its way.
    """

    def __init__(self, slot: int, place: tuple[str, int], *, asks: bool) -> None:
        super().__init__("moved", f"slot {slot} to {place[0]}:{place[1]}", executed=False)
        self.slot = slot
        self.place = place
        self.asks = asks


# First word of an error reply -> (cause, whether the store is away). None of these calls was executed.
_REFUSALS: Final = {
    "MOVED": ("moved", True),
    "ASK": ("moved", True),
    "TRYAGAIN": ("moved", False),  # the keys of one call lie on both sides of a slot's move
    "CLUSTERDOWN": ("cluster", True),
    "READONLY": ("readonly", True),
    "LOADING": ("loading", True),
    "MASTERDOWN": ("masterdown", True),
    "BUSY": ("busy", True),
    "OOM": ("oom", True),
    "MISCONF": ("misconf", True),
    "NOREPLICAS": ("noreplicas", True),
    "NOPERM": ("auth", True),
    "NOAUTH": ("auth", True),
    "WRONGPASS": ("auth", True),
    "DENIED": ("auth", True),
    "CROSSSLOT": ("crossslot", False),
}
READS: Final = frozenset({"oom", "misconf", "noreplicas", "readonly"})
"""Causes for which a store takes no writes, and can be read all the same."""
# As the refusals, for errors whose first word is ERR: how their text begins.
_ERRORS: Final = {
    "ERR max number of clients": "maxclients",
    "ERR unknown command": "unsupported",  # older than functions, or a proxy that does not let them pass
    "ERR AUTH": "auth",
    "ERR invalid username-password": "auth",
}


def trouble(error: object) -> StoreError:
    """Return what an error reply means."""
    text = str(error)
    if "function not found" in text.lower():
        return LibraryMissing("library", text, executed=False)
    word = text.split(" ", 1)[0]
    if (sent := _redirection(text)) is not None:
        return sent
    if word in _REFUSALS:
        cause, away = _REFUSALS[word]
        return StoreError(cause, text, executed=False, away=away)
    for beginning, cause in _ERRORS.items():
        if text.startswith(beginning):
            return StoreError(cause, text, executed=False)
    for word in ("OOM", "NOPERM", "READONLY", "MISCONF"):  # raised inside the function, whose name then comes first
        if word in text or (word == "NOPERM" and "permission" in text.lower()):
            return StoreError(_REFUSALS[word][0], text)
    return StoreError("reply", text, away=False)


def _redirection(text: str) -> Redirected | None:
    """Read a redirection; None: it is none, or leads to what cannot be."""
    found = _REDIRECTION.fullmatch(text)
    if found is None:
        return None
    slot, port = int(found["slot"]), int(found["port"])
    if slot >= SLOTS or not 1 <= port <= MAX_PORT:
        return None
    return Redirected(slot, (found["host"], port), asks=found[1] == "ASK")


def charged(answer: object) -> bool:
    """Tell of an answer that came late, to a decision with or without an enrolment, whether the request was charged."""
    if answer is LOST or isinstance(answer, hiredis.ReplyError):
        return False
    reply = answer[0] if isinstance(answer, list) and answer else answer
    if isinstance(reply, list):
        return reply[:1] == [1]
    try:
        return numbers(reply)[0] == 1
    except StoreError:  # harmed on its way: as elsewhere, the call is taken for executed
        return True


def pack(arguments: Iterable[str | int]) -> bytes:
    """Encode a command."""
    packed: bytes = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]
    return packed


def numbers(reply: object) -> tuple[int, ...]:
    """
    Read the reply of a decision or a lease: 64-bit integers, big-endian, in one text.

    Raises:
        StoreError: It is something else.
    """
    if type(reply) is bytes:
        size = len(reply)
        reader = _READERS.get(size)
        if reader is not None:
            return reader(reply)
        if size and size % 8 == 0:
            return struct.unpack(f">{size // 8}q", reply)
    raise StoreError("protocol", f"a reply is no text of numbers: {reply!r:.80}")


_READERS: Final = {8 * count: struct.Struct(f">{count}q").unpack for count in (2, 6, 7, 10, 12, 14, 17)}


def decide_arguments(request: Request, now_us: int, *, clock: bool) -> list[str | int]:
    """
    Return the arguments of the call that decides a request.

    Args:
        now_us: This process' idea of the present, for calendar boundaries.
        clock: Whether *now_us* is a test's clock, which the store takes for its own.
    """
    plan = request.plan
    arguments: list[str | int] = ["FCALL", DECIDE, len(plan.touches), *plan.touches]
    arguments += [now_us if clock else "", "1" if request.charge else "0", request.ident]
    for bound, text in zip(plan.bounds, plan.texts(now_us), strict=True):
        arguments += [text, bound.cost_of(request.costs)]
    return arguments


def decide(request: Request, now_us: int, *, clock: bool) -> bytes:
    """Return the encoded call that decides a request; see :func:`decide_arguments`."""
    return pack(decide_arguments(request, now_us, clock=clock))


def register(request: Request, now_us: int, *, clock: bool) -> bytes:
    """
    Return the encoded call that decides a request whose values may be new to the store.

    Its reply is a list: the reply of :func:`decide`, then for each unregistered value of the plan 1 if the overflow
    counter decided, or 0.
    """
    plan = request.plan
    unregistered = [(i + 1, plan.bounds[i]) for i in plan.unregistered]
    return pack(_registering(ENROL, decide_arguments(request, now_us, clock=clock), unregistered))


def _registering(
    name: str, arguments: list[str | int], unregistered: Iterable[tuple[int, BoundLimit]]
) -> list[str | int]:
    """Return the arguments of a call with the enrolment of values before it; of each its place among the keys."""
    count = int(arguments[2])
    keys, numbers = arguments[3 : 3 + count], arguments[3 + count :]
    censuses: list[str | int] = []
    values: list[str | int] = []
    for at, bound in unregistered:
        census = bound.census
        assert census is not None
        censuses += [census.key, census.overflowed, census.overflow]
        values += [at, bound.value, census.cap, census.life_us]
    total, number = len(censuses) + count, len(values) // 4
    return ["FCALL", name, total, *censuses, *keys, number, *values, *numbers]


def lease_arguments(plan: Plan, wanted: int, share: int, now_us: int) -> list[str | int]:
    """
    Return the arguments of the call that takes permits ahead.

    Args:
        wanted: Permits, at least 1.
        share: One process may take a *share*-th part of what is left.
    """
    return ["FCALL", LEASE, len(plan.touches), *plan.touches, "", wanted, share, *plan.texts(now_us)]


@dataclass(frozen=True, slots=True)
class Correction:
    """One counter's part in a settlement: permits to add (negative: to give back) to the window of *mark*."""

    key: str
    spec: Spec
    delta: int
    mark: int


def settle(
    corrections: Sequence[Correction], marker: str, now_us: int | None, *, ident: str, once_for_ms: int | None
) -> list[str | int]:
    """
    Return the arguments of the call that corrects earlier charges.

    Args:
        marker: Key that remembers the id; in the slot of the counters.
        now_us: A test's clock, or None.
        once_for_ms: How long the id is remembered, so that a second settlement changes nothing; None: not at all.
    """
    keys = [marker, *(c.key for c in corrections)]
    keys += dict.fromkeys(dirty_beside(c.key) for c in corrections if c.spec.durable)
    arguments: list[str | int] = ["FCALL", SETTLE, len(keys), *keys]
    arguments += ["" if now_us is None else now_us, "" if once_for_ms is None else once_for_ms, ident]
    for c in corrections:
        arguments += [c.spec.text, c.delta, c.mark]
    return arguments


def register_settle(arguments: list[str | int], bounds: Sequence[BoundLimit]) -> list[str | int]:
    """
    Return the arguments of a :func:`settle` whose counters may stand in no census yet; *bounds* in its order.

    Its reply is [that of the settlement, then for each bound with a census 1: it has no place and was left out, or 0].
    """
    unregistered = [(i + 2, bound) for i, bound in enumerate(bounds) if bound.census is not None]
    return _registering(ENROL_SETTLE, arguments, unregistered)


def renew(slots: Sequence[tuple[BoundLimit, int]], ident: str, now_us: int | None) -> list[str | int]:
    """Return the arguments of the call that prolongs slots: of each limit, how many."""
    censuses = [bound.census.key for bound, _ in slots if bound.census]
    keys = [*(bound.key for bound, _ in slots), *censuses]
    arguments: list[str | int] = ["FCALL", RENEW, len(keys), *keys, "" if now_us is None else now_us, ident]
    for bound, count in slots:
        arguments += [count, (bound.limit.window_seconds or 1) * 1_000_000]
        arguments += [bound.value, bound.census.life_us] if bound.census else ["", 0]
    return arguments


def reset(keys: Sequence[str]) -> list[str | int]:
    """Return the arguments of the call that forgets counters."""
    return ["FCALL", RESET, len(keys), *keys]
