"""
Reserve permits in such a way that any process can settle them, and read what was reserved.

The store keeps a record of such a reservation beside its counters until it is settled. The id of the reservation
contains the hash tag of these counters, so whoever knows the id finds the record. No I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from enforcement.lua import function
from enforcement.model.checks import shown
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.keys import OPEN_RESERVATIONS, RECORD, Keys, marker_beside
from enforcement.model.limits import Limit
from enforcement.model.sizes import MAX_NUMBER, USUAL_RESERVATION_SHARE
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import REQUESTS, Costs
from enforcement.plan.reply import NOT_RESTORED, OUTSIDE_CALENDAR, Reply
from enforcement.plan.request import OtherT, PlanT, Request
from enforcement.store.errors import StoreError
from enforcement.store.resp import pack

RESERVE: Final = function("reserve")
PROLONG: Final = function("prolong")
RECORDED: Final = function("recorded")

MAX_RESERVATIONS: Final = 10_000
"""Reservations of one project that may be open or lost. Lost ones make room for new ones."""
MAX_LIFE_SECONDS: Final = 7 * DAY_SECONDS
"""How long a reservation can be settled."""
OF_TOKENS: Final = "-of-tokens"
"""Ends the key beside an index that says how many reservations each token has that are not settled."""
TOO_MANY: Final = -4
"""The head of a reply while the index of reservations has no room. The call wrote nothing."""
TOKEN_HAS_TOO_MANY: Final = -6
"""The head of a reply while the token has as many reservations as one may have. The call wrote nothing."""
_REFUSALS: Final = {TOO_MANY: "too_many_reservations", TOKEN_HAS_TOO_MANY: "too_many_of_token"}

_NOT_NOW: Final[Mapping[object, str]] = {NOT_RESTORED: "not_restored", OUTSIDE_CALENDAR: "calendar"}
"""Why a settlement was not executed, by its reply."""
_VERSION: Final = 1
_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode
_ID: Final = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9a-f]{32})", re.ASCII)


About = Mapping[str, object] | str
"""The purpose of a reservation: JSON values by name, or an object in JSON."""


class TooManyReservations(Exception):
    """
    The project, or one token, has as many reservations as it may have, and nothing was charged.

    Args:
        reason: That of the decision.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class RecordKeys:
    """
    Where the store keeps one reservation.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        id: The id of the reservation, by which any process can settle it.
        ident: Its last part, under which the store knows its slots.
        index: The key that has the ids of the open reservations of a hash tag.
        record: The key of the record.
    """

    id: str
    ident: str
    index: str
    record: str

    @classmethod
    def of(cls, keys: Keys, tag: str, ident: str) -> Self:
        """Return the keys of the reservation *ident* whose counters have a hash tag."""
        scope = keys.scope(tag)
        return cls(f"{tag}.{ident}", ident, f"{scope}{OPEN_RESERVATIONS}", f"{scope}{RECORD}{ident}")

    @property
    def marker(self) -> str:
        """The key that says, after a settlement that left one, who has settled the reservation."""
        return marker_beside(self.record, self.ident)

    def lies_beside(self, counter: str) -> bool:
        """Return whether one call reaches the record and a counter on a cluster, as they have one hash tag."""
        return self.record.startswith(counter[: counter.index("}") + 1])

    @classmethod
    def from_id(cls, keys: Keys, reservation_id: object) -> Self:
        """
        Return the keys of a reservation.

        Raises:
            ValueError: It is not the id of a reservation.
        """
        found = _ID.fullmatch(reservation_id) if isinstance(reservation_id, str) else None
        if found is None:
            raise ValueError(f"id: must be the id of a reservation, got {shown(reservation_id)}.")
        return cls.of(keys, found[1], found[2])


class RecordedRequest(Request[PlanT]):
    """
    A request whose charges the store records until they are settled.

    Args:
        where: Where they are recorded. Its ``ident`` is the id of the request.
        life_seconds: After this time the reservation is lost, unless it is prolonged.
        head: What the record says of whose reservation it is, see :func:`record_head`.
        about: What it is for, beside what *head* says.
    """

    __slots__ = ("_about", "_head", "_life_seconds", "_where")

    def __init__(
        self, plan: PlanT, costs: Costs, where: RecordKeys, *, life_seconds: float, head: str, about: About
    ) -> None:
        super().__init__(plan, costs, True, where.ident)
        self._where = where
        self._life_seconds = life_seconds
        self._head = head
        self._about = about

    @property
    def where(self) -> RecordKeys:
        """Where the store records what is charged."""
        return self._where

    def encode(self, now_us: int, *, clock: bool, registers: bool) -> bytes:
        """Return the encoded call that decides the request and records what it charges."""
        plan, where, life_us = self.plan, self._where, max(1, int(self._life_seconds * 1_000_000))
        costs = [bound.cost_of(self.costs) for bound in plan.bounds]
        keys: Sequence[str | int] = plan.touches
        numbers: list[str | int] = [now_us if clock else "", "1" if self.charge else "0", self.ident]
        if registers:
            arguments = commands.register_arguments(self, now_us, clock=clock)
            count = int(arguments[2])
            keys, numbers = arguments[3 : 3 + count], arguments[3 + count :]
        else:  # what decide_arguments() returns, which would be copied three times
            for pair in zip(plan.texts(now_us), costs, strict=True):
                numbers += pair
        head = (
            "FCALL",
            RESERVE,
            2 + len(keys),
            where.index,
            where.record,
            *keys,
            where.ident,
            life_us,
            MAX_RESERVATIONS,
        )
        return pack((*head, self._text(costs), "1" if registers else "", *numbers))

    def read(self, raw: object, *, registers: bool) -> tuple[Reply, Sequence[int]]:
        """
        Return the reply to the call, and for each value that it registered 1 if its overflow counter was charged.

        Raises:
            TooManyReservations: Nothing was decided, as no further reservation may be open.
        """
        result = super().read(raw, registers=registers)
        reason = _REFUSALS.get(result[0].numbers[0])
        if reason:
            raise TooManyReservations(reason)
        return result

    def over(self, plan: OtherT) -> RecordedRequest[OtherT]:
        """Return a copy of the request for the counters of another plan."""
        life, head, about = self._life_seconds, self._head, self._about
        return RecordedRequest(plan, self.costs, self._where, life_seconds=life, head=head, about=about)

    def of_part(self, plan: OtherT, ident: str, *, charge: bool) -> Request[OtherT]:
        """Return the request for the counters of one hash tag. The record has those beside which it lies."""
        if charge and self._where.lies_beside(plan.keys[0]):
            return self.over(plan)
        return super().of_part(plan, ident, charge=charge)

    def _text(self, costs: Sequence[int]) -> str:
        """Return what the record has besides what was charged, with the cost of each limit."""
        plan = self.plan
        if plan.fragments is None:
            plan.fragments = ",".join([_ENCODE(bound.recorded()) for bound in plan.bounds])
        about = (self._about if isinstance(self._about, str) else _ENCODE(self._about))[1:-1]
        about = about and f",{about}"
        return f'{self._head}{about},"costs":[{",".join(map(str, costs))}],"limits":[{plan.fragments}]}}'


def record_head(values: Mapping[str, object], token_share: int = USUAL_RESERVATION_SHARE) -> str:
    """
    Return how the text of a record begins, which says whose reservation it is: an object that is still open.

    Args:
        values: JSON values, of which the first are ``project`` and ``token``.
        token_share: The part of a project's reservations that one token may have, in percent.
    """
    share = {} if token_share == USUAL_RESERVATION_SHARE else {"token_share": token_share}
    return _ENCODE({"v": _VERSION, **values, **share})[:-1]


@dataclass(frozen=True, slots=True)
class RecordedCharge:
    """
    The charge of a reservation to one counter.

    Attributes:
        bound: The limit, bound to its counter.
        permits: Permits that were charged, or slots.
        mark: The window that was charged. None: the limit did not admit the request, as only a shadow may.
    """

    bound: BoundLimit
    permits: int
    mark: int | None


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """
    A reservation as the store has recorded it.

    Attributes:
        at_us: When it was charged, by the store's clock, microseconds since the epoch.
        head: JSON values that say whose it is and what for: ``project``, ``token``, ``instance``, ``revision`` ...
        charges: One for each limit of the request.
    """

    at_us: int
    head: Mapping[str, Any]
    charges: tuple[RecordedCharge, ...]

    @property
    def is_metered(self) -> bool:
        """Whether a meter has read the request, so that its tokens have a known cost."""
        return "model" in self.head

    @classmethod
    def read(cls, raw: object) -> ReservationRecord | None:
        """
        Return the record that the store has, or None if it has none, as it was settled or never made.

        Raises:
            StoreError: What the store has is not a record.
        """
        if raw is None:
            return None
        try:
            text = raw.decode() if isinstance(raw, bytes) else str(raw)
            charged, _, said = text.partition("\n")
            at, marks, overflowed = charged.split("|")
            head = json.loads(said)
            if head.pop("v") != _VERSION:
                raise ValueError("an unknown version")
            head.pop("token_share", None)
            costs, limits = head.pop("costs"), head.pop("limits")
            diverted = iter(overflowed.split(",") if overflowed else ())
            bounds = [_bound(row, diverted) for row in limits]
            rows = zip(bounds, costs, marks.split(",") if marks else (), strict=True)
            charges = tuple(RecordedCharge(b, _number(cost), None if m == "-" else _number(m)) for b, cost, m in rows)
            return cls(_number(at), head, charges)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
            raise StoreError("protocol", f"a reservation cannot be read: {exc}") from exc


def _number(value: Any) -> int:
    """Return an integer that a store of limits can hold, or raise ValueError. Any client may have written it."""
    number = int(value)
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"must be at most {MAX_NUMBER}")
    return number


def _bound(row: Mapping[str, Any], diverted: Iterator[str]) -> BoundLimit:
    key = row["key"]
    if "overflow" in row and next(diverted, "0") == "1":
        key = row["overflow"]
    limit = Limit.from_json(row["limit"], published=True)
    return BoundLimit(limit, key, row["scope"], row["policy_id"], row["policy"])


@dataclass(frozen=True, slots=True)
class Conclusion:
    """
    How a reservation is settled by its record.

    Attributes:
        record: The reservation.
        deltas: For each of its charges, the permits to add. Below 0: to give back.
    """

    record: ReservationRecord
    deltas: tuple[int, ...]

    @classmethod
    def of(cls, record: ReservationRecord, costs: Costs | None) -> Conclusion:
        """
        Return how a reservation is settled with the real cost.

        Args:
            costs: A number of requests, or permits by unit. A unit that is not included keeps its estimate. 0 is 0 of
                every unit. None: all is given back.
        """
        real = {REQUESTS: costs} if isinstance(costs, int) else costs or {}
        keeps = costs is not None and costs != 0
        return cls(
            record,
            tuple(
                (bound.settled_cost(real, permits) if keeps and bound.letter != "c" else 0) - permits
                for bound, permits in ((charge.bound, charge.permits) for charge in record.charges)
            ),
        )

    @classmethod
    def by_hand(cls, record: ReservationRecord, costs: Costs | None) -> Conclusion:
        """
        Return how a reservation is settled by order of an operator or a late job.

        Args:
            costs: As for :meth:`of`. None gives back what was reserved, but the request of a metered reservation stays
                counted, because it was made. A limit that counts only some responses gets it back.
        """
        conclusion = cls.of(record, costs)
        if costs is not None or not record.is_metered:
            return conclusion
        rows = zip(record.charges, conclusion.deltas, strict=True)
        return cls(record, tuple([0 if _counts_requests(charge.bound) else delta for charge, delta in rows]))

    def command(
        self, where: RecordKeys, now_us: int, clock: int | None, *, marked_for_ms: int | None = None
    ) -> list[str | int]:
        """
        Return the arguments of the call that settles the reservation and frees its slots.

        Args:
            now_us: The time in this process, in microseconds since the epoch. It selects the calendar windows.
            clock: The time of a test's clock. None: the store uses its own clock.
            marked_for_ms: How long the key :attr:`RecordKeys.marker` remembers it, in milliseconds. None: not at all,
                as nobody repeats the call.
        """
        corrections = [
            commands.Correction(charge.bound.key, charge.bound.spec(now_us), delta, charge.mark)
            for charge, delta in self.charged()
            if charge.mark is not None
        ]
        settling = commands.settle(corrections, where.marker, clock, ident=where.ident, once_for_ms=marked_for_ms)
        return conclude(where, settling)

    def charged(self) -> list[tuple[RecordedCharge, int]]:
        """Return the charges that were made, each with the permits to add."""
        rows = zip(self.record.charges, self.deltas, strict=True)
        return [(charge, delta) for charge, delta in rows if charge.mark is not None]


def _counts_requests(bound: BoundLimit) -> bool:
    """Return whether a limit counts each request, whatever its response."""
    return bound.limit.unit == REQUESTS and bound.letter != "c" and not bound.limit.charge_on


def was_open(changed: object) -> bool:
    """
    Return whether a reservation was open, by the reply to the call that settles it.

    Raises:
        StoreError: The store has not settled it. The call may be repeated.
    """
    if type(changed) is not int:
        raise StoreError("protocol", f"a reply is not what the function returns: {changed!r:.80}")
    if changed in _NOT_NOW:
        raise StoreError(_NOT_NOW[changed], "the charges cannot be corrected now", executed=False, away=False)
    return changed >= 0


def conclude(where: RecordKeys, settling: Sequence[str | int], open_at_us: int | None = None) -> list[str | int]:
    """
    Return the arguments of the call that settles a reservation and removes its record.

    Args:
        settling: The arguments of :func:`enforcement.plan.commands.settle`, without ``once_for_ms``. If the record is
            gone, nothing happens, as the reservation was settled before.
        open_at_us: When it must have been open, by the store's clock, in microseconds since the epoch. If it was lost,
            the reply is :data:`~enforcement.plan.reply.IS_LOST`. None: it is settled also if it is lost.
    """
    count = int(settling[2])
    keys, numbers = [where.index, where.record, *settling[3 : 3 + count]], settling[3 + count :]
    name, more = (commands.CONCLUDE, ()) if open_at_us is None else (commands.CONCLUDE_OPEN, (open_at_us,))
    return ["FCALL", name, len(keys), *keys, where.ident, *more, *numbers]


def prolong(where: RecordKeys, life_seconds: float, now_us: int | None) -> list[str | int]:
    """Return the arguments of the call that prolongs an open reservation. The reply is how many were open."""
    return ["FCALL", PROLONG, 1, where.index, "" if now_us is None else now_us, where.ident, int(life_seconds * 1e6)]


def recorded(where: RecordKeys) -> list[str | int]:
    """Return the arguments of the call that reads a record, see :meth:`ReservationRecord.read`."""
    return ["FCALL", RECORDED, 1, where.record]
