"""Read and settle reservations for operators, with the keys and the code that enforcers use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from enforcement.model.instants import time_reply_us
from enforcement.model.keys import Keys
from enforcement.plan.costs import Costs, check_costs
from enforcement.plan.records import Conclusion, RecordKeys, ReservationRecord, recorded, was_open
from enforcement.store.errors import StoreError

MAX_LISTED: Final = 1_000


@dataclass(frozen=True, slots=True)
class Amount:
    """Permits that a reservation has charged to one limit."""

    policy: str
    limit: str
    unit: str
    permits: int


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """
    A reservation that was not settled yet.

    Attributes:
        id: The id by which it is settled.
        lost: Whether its process has not prolonged it in time, so that it will hardly settle it any more.
        at_us: When it was charged, microseconds since the epoch.
        expires_at_us: When it is lost, or since when it has been, microseconds since the epoch.
        token: Id of the token. Empty for a request without one.
        instance: Name of the instance that has made it.
        amounts: What it has charged, one for each limit.
        about: What the record says besides, such as the model of a metered request.
    """

    id: str
    lost: bool
    at_us: int
    expires_at_us: int
    token: str
    instance: str
    amounts: tuple[Amount, ...]
    about: Mapping[str, Any]


def open_reservations(
    client: Redis, keys: Keys, tag: str, *, lost_only: bool = False, at_most: int = MAX_LISTED
) -> list[OpenReservation]:
    """
    Return the reservations of a project that were not settled yet, as a new list, those first that are lost longest.

    Args:
        tag: Id of the project. ``global``: those of requests that fall under limits of the global policy alone.
        lost_only: Leave out those that their process still prolongs.
        at_most: How many are read. One whose record cannot be read is left out.
    Raises:
        redis.RedisError: The store does not reply.
    """
    now_us = time_reply_us(client.time())
    index = keys.reservations(tag)
    most = now_us if lost_only else "+inf"
    rows: Any = client.zrange(index, "-inf", most, byscore=True, offset=0, num=at_most, withscores=True)
    ends = {_text(ident): int(score) for ident, score in rows}
    if not ends:
        return []
    raw = client.mget([keys.reservation(tag, ident) for ident in ends])
    found = (_open(f"{tag}.{ident}", text, ends[ident], now_us) for ident, text in zip(ends, raw, strict=True))
    return [it for it in found if it is not None]


def _open(reservation_id: str, raw: object, ends_us: int, now_us: int) -> OpenReservation | None:
    try:
        record = ReservationRecord.read(raw)
    except StoreError:
        return None
    if record is None:
        return None
    about = dict(record.head)
    token, instance = about.pop("token", ""), about.pop("instance", "")
    amounts = tuple(
        Amount(c.bound.policy_slug, c.bound.limit.name, c.bound.limit.unit, c.permits)
        for c in record.charges
        if c.mark is not None
    )
    return OpenReservation(reservation_id, ends_us <= now_us, record.at_us, ends_us, token, instance, amounts, about)


def settle_reservation(client: Redis, keys: Keys, reservation_id: str, costs: Costs | None) -> Conclusion | None:
    """
    Settle a reservation with the real cost, or give back all of it, and return what was corrected.

    Args:
        costs: As for :meth:`enforcement.Limiter.settle`. None: all is given back.
    Returns:
        None if it was settled before.
    Raises:
        ValueError: The id or the costs are not valid.
        enforcement.StoreError: The record cannot be read, or its counters are not restored yet.
        redis.RedisError: The store does not reply, or lacks the function library.
    """
    where = RecordKeys.from_id(keys, reservation_id)
    if costs is not None:
        check_costs(costs)
    record = ReservationRecord.read(client.execute_command(*recorded(where)))  # type: ignore[no-untyped-call]
    if record is None:
        return None
    conclusion, now_us = Conclusion.of(record, costs), time_reply_us(client.time())
    changed = client.execute_command(*conclusion.command(where, now_us, None))  # type: ignore[no-untyped-call]
    return conclusion if was_open(changed) else None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


__all__ = ["Amount", "OpenReservation", "open_reservations", "settle_reservation"]
