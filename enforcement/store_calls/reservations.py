"""Read and settle reservations for operators, with the keys and the code that enforcers use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from redis import Redis
from redis.exceptions import ResponseError

from enforcement.metering.charges import Counts, weighed
from enforcement.metering.price_documents import parse_price
from enforcement.model.documents import InvalidDocument
from enforcement.model.instants import time_reply_us
from enforcement.model.keys import GLOBAL_TAG, Keys
from enforcement.model.metered import MONEY, TOKEN_UNITS, cost_name
from enforcement.model.sizes import MAX_NUMBER
from enforcement.plan.costs import Costs, check_costs
from enforcement.plan.records import (
    MAX_RESERVATIONS,
    OF_TOKENS,
    Conclusion,
    RecordKeys,
    ReservationRecord,
    recorded,
    was_open,
)
from enforcement.store.errors import StoreError, trouble

MAX_LISTED: Final = 1_000
TAGS_AT_ONCE: Final = 500


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
        record: What the store has recorded.
    """

    id: str
    lost: bool
    at_us: int
    expires_at_us: int
    token: str
    instance: str
    amounts: tuple[Amount, ...]
    about: Mapping[str, Any]
    record: ReservationRecord = field(repr=False, compare=False)


def open_reservations(
    client: Redis,
    keys: Keys,
    tag: str,
    *,
    lost_only: bool = False,
    open_only: bool = False,
    at_most: int = MAX_LISTED,
) -> list[OpenReservation]:
    """
    Return the reservations of a project that were not settled yet, as a new list, those first that are lost longest.

    Args:
        tag: Id of the project. ``global``: those of requests that fall under limits of the global policy alone.
        lost_only: Leave out those that their process still prolongs.
        open_only: Leave out those that are lost.
        at_most: How many are read. One whose record cannot be read is left out.
    Raises:
        redis.RedisError: The store does not reply.
    """
    rows = each_reservation(client, keys, tag, lost_only=lost_only, open_only=open_only, at_most=at_most)
    return list(rows)


def each_reservation(
    client: Redis, keys: Keys, tag: str, *, lost_only: bool = False, open_only: bool = False, at_most: int
) -> Iterator[OpenReservation]:
    """
    Yield what :func:`open_reservations` returns, and read no more than MAX_LISTED of them ahead.

    One that is settled meanwhile may be left out, and another one with it.
    """
    now_us = time_reply_us(client.time())
    index = keys.reservations(tag)
    least, most = f"({now_us}" if open_only else "-inf", now_us if lost_only else "+inf"
    for start in range(0, at_most, MAX_LISTED):
        number = min(MAX_LISTED, at_most - start)
        rows: Any = ()
        with _spoilt_by_its_project():
            rows = client.zrange(index, least, most, byscore=True, offset=start, num=number, withscores=True)
        yield from _listed(client, keys, tag, dict(_ends(rows)), now_us)
        if len(rows) < number:
            return


def lost_reservations(client: Redis, keys: Keys, tag: str) -> dict[str, int]:
    """
    Return the ids of all lost reservations of a project, each with the instant since when it is lost, in microseconds
    since the epoch, as a new dictionary. Raises redis-py's errors.
    """
    index, now_us = keys.reservations(tag), time_reply_us(client.time())
    rows: Any = ()
    with _spoilt_by_its_project():
        rows = client.zrange(index, "-inf", now_us, byscore=True, offset=0, num=MAX_RESERVATIONS, withscores=True)
    return {f"{tag}.{ident}": ends for ident, ends in _ends(rows)}


def _ends(rows: Iterable[tuple[object, float]]) -> Iterator[tuple[str, int]]:
    """Yield the ids in a reply with the instants at which they are lost. Some may be no instants."""
    for ident, score in rows:
        if 0 <= score <= MAX_NUMBER:
            yield _text(ident), int(score)


def read_reservations(client: Redis, keys: Keys, lost: Mapping[str, int]) -> list[OpenReservation]:
    """
    Return some lost reservations of one project, as a new list. One whose record cannot be read is left out.

    Args:
        lost: Some of what :func:`lost_reservations` returns.
    Raises:
        redis.RedisError: The store does not reply.
    """
    tag = next(iter(lost), "").partition(".")[0]
    ends = {one.partition(".")[2]: since for one, since in lost.items()}
    return _listed(client, keys, tag, ends, max(ends.values(), default=0))


def _listed(client: Redis, keys: Keys, tag: str, ends: Mapping[str, int], now_us: int) -> list[OpenReservation]:
    if not ends:
        return []
    raw = client.mget([keys.reservation(tag, ident) for ident in ends])
    found = (_open(keys, f"{tag}.{ident}", text, ends[ident], now_us) for ident, text in zip(ends, raw, strict=True))
    return [it for it in found if it is not None]


def _open(keys: Keys, reservation_id: str, raw: object, ends_us: int, now_us: int) -> OpenReservation | None:
    try:
        record = _read(keys, reservation_id, raw)
        return None if record is None else _described(reservation_id, record, ends_us, now_us)
    except (StoreError, TypeError, ValueError):
        return None


def _read(keys: Keys, reservation_id: str, raw: object) -> ReservationRecord | None:
    """
    Return a record, or raise StoreError if it cannot be read, or names counters of another project.

    An account of the store that is limited to projects may write records. Settled here, they are settled by an account
    of all projects.
    """
    record, tag = ReservationRecord.read(raw), reservation_id.partition(".")[0]
    own = keys.scope(tag), keys.scope(GLOBAL_TAG)
    if record is not None and tag != GLOBAL_TAG and not all(str(it.bound.key).startswith(own) for it in record.charges):
        raise StoreError("protocol", "a reservation has counters of another project")
    return record


def _described(reservation_id: str, record: ReservationRecord, ends_us: int, now_us: int) -> OpenReservation:
    about = dict(record.head)
    token, instance = about.pop("token", ""), about.pop("instance", "")
    amounts = tuple(
        Amount(c.bound.policy_slug, c.bound.limit.name, c.bound.limit.unit, c.permits)
        for c in record.charges
        if c.mark is not None
    )
    return OpenReservation(
        reservation_id, ends_us <= now_us, record.at_us, ends_us, token, instance, amounts, about, record
    )


@dataclass(frozen=True, slots=True)
class ReservationCounts:
    """
    How many reservations one hash tag has.

    Attributes:
        open: Those that their process still prolongs.
        lost: Those that it did not prolong in time.
        lost_since_us: Since when the first of them is lost, microseconds since the epoch. None if none is lost.
        of_token: The most that one token has, of both.
    """

    open: int
    lost: int
    lost_since_us: int | None
    of_token: int = 0


def count_reservations(client: Redis, keys: Keys, tags: Iterable[str]) -> dict[str, ReservationCounts]:
    """
    Return how many reservations were not settled yet, as a new dictionary by project id, without those that have none.

    Args:
        tags: Ids of projects, and perhaps ``global``.
    Raises:
        redis.RedisError: The store does not reply.
    """
    now_us = time_reply_us(client.time())
    result: dict[str, ReservationCounts] = {}
    for some in _batches(tags):
        with client.pipeline(transaction=False) as pipe:
            for tag in some:
                pipe.zcard(keys.reservations(tag))
            sizes = pipe.execute(raise_on_error=False)
        for tag, size in zip(some, sizes, strict=True):
            with _spoilt_by_its_project():
                if isinstance(size, Exception):
                    raise size
                if size:
                    result[tag] = _counts(client, keys.reservations(tag), now_us)
    return result


@contextmanager
def _spoilt_by_its_project() -> Iterator[None]:
    """End the block if the store refuses a key as it is. A project's own programs may have spoilt it for themselves."""
    try:
        yield
    except ResponseError as exc:
        if not _is_of_its_keys(exc):
            raise


def _is_of_its_keys(exc: ResponseError) -> bool:
    """Return whether an error says nothing about the store, but only about the keys and arguments of the call."""
    return trouble(exc).cause == "reply"


def _counts(client: Redis, index: str, now_us: int) -> ReservationCounts:
    lost = int(client.zcount(index, "-inf", now_us))
    first: Any = client.zrange(index, 0, 0, withscores=True) if lost else ()
    since = next((ends for _, ends in _ends(first)), None)
    most: Any = ()
    with _spoilt_by_its_project():
        most = client.zrevrange(f"{index}{OF_TOKENS}", 0, 0, withscores=True)
    # Any account of the project may have written it, infinity too.
    of_token = int(min(max(0, most[0][1]), MAX_RESERVATIONS)) if most else 0
    return ReservationCounts(max(0, int(client.zcard(index)) - lost), lost, since, of_token)


def find_reservation(client: Redis, keys: Keys, reservation_id: str) -> OpenReservation | None:
    """
    Return one reservation, or None if it was settled, or never made.

    Raises:
        ValueError: The id is not valid.
        enforcement.StoreError: The record cannot be read.
        redis.RedisError: The store does not reply.
    """
    where = RecordKeys.from_id(keys, reservation_id)
    record = _read(keys, reservation_id, client.get(where.record))
    if record is None:
        return None
    now_us = time_reply_us(client.time())
    score: Any = client.zscore(where.index, where.ident)
    # A project with very many reservations drops lost ones from its index.
    return _described(
        reservation_id, record, next((ends for _, ends in _ends([("", score or 0)]) if ends), record.at_us), now_us
    )


def present_reservations(client: Redis, keys: Keys, ids: Iterable[str]) -> dict[str, bool]:
    """
    Return those of some reservations that can still be settled, each with whether its process prolongs it, as a new
    dictionary. Raises redis-py's errors.
    """
    result: dict[str, bool] = {}
    for some in _batches(ids):
        now_us = time_reply_us(client.time())
        with client.pipeline(transaction=False) as pipe:
            for where in (RecordKeys.from_id(keys, one) for one in some):
                pipe.mget([where.record])
                pipe.zscore(where.index, where.ident)
            replies = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and not (isinstance(reply, ResponseError) and _is_of_its_keys(reply)):
                raise reply
        for one, record, ends in zip(some, replies[::2], replies[1::2], strict=True):
            if record[0] is not None:
                # A project with very many reservations drops lost ones from its index.
                result[one] = isinstance(ends, float) and ends > now_us
    return result


def costs_of_usage(record: ReservationRecord, counts: Counts) -> dict[str, int]:
    """
    Return what tokens cost the limits of a metered reservation, by the names of the costs, for
    :func:`settle_reservation`. Requests, and money without a price, are left out, so they keep their estimate.

    Raises:
        ValueError: No meter has read the request, so that its tokens have no known cost.
    """
    if not record.is_metered:
        raise ValueError("usage: must be given for a metered reservation only. Settle this one by its costs.")
    return dict(_costs(record, counts))


def _costs(record: ReservationRecord, counts: Counts) -> Iterator[tuple[str, int]]:
    prices = record.head.get("prices", {})
    for limit in (charge.bound.limit for charge in record.charges):
        name = cost_name(limit)
        if limit.unit in TOKEN_UNITS:
            yield name, weighed(limit, counts)
        elif limit.unit == MONEY and name in prices:
            try:
                yield name, parse_price(prices[name]).micros(counts)
            except InvalidDocument as exc:
                raise StoreError("protocol", f"the price of a reservation cannot be read: {exc}") from exc


def settle_reservation(
    client: Redis, keys: Keys, reservation_id: str, costs: Costs | None, *, marked_for_ms: int | None = None
) -> Conclusion | None:
    """
    Settle a reservation with the real cost, or give it back, and return what was corrected.

    Args:
        costs: As for :meth:`enforcement.Limiter.settle`. None: it is given back, see
            :meth:`~enforcement.plan.records.Conclusion.by_hand`.
        marked_for_ms: How long :func:`was_marked` tells that this call has settled it, if its reply is lost. None: it
            does not. Settlements of processes leave no mark.
    Returns:
        None if it was settled before.
    Raises:
        ValueError: The id or the costs are not valid.
        enforcement.StoreError: The record cannot be read, its counters are not restored yet, or a key has another type.
        redis.RedisError: The store does not reply, or lacks the function library.
    """
    where = RecordKeys.from_id(keys, reservation_id)
    if costs is not None:
        check_costs(costs)
    record = _read(keys, reservation_id, _called(client, recorded(where)))
    if record is None:
        return None
    conclusion, now_us = Conclusion.by_hand(record, costs), time_reply_us(client.time())
    changed = _called(client, conclusion.command(where, now_us, None, marked_for_ms=marked_for_ms))
    return conclusion if was_open(changed) else None


def _called(client: Redis, command: Sequence[str | int]) -> Any:
    """Return the reply to a call, or raise StoreError if it fails by its keys alone, which no later call mends."""
    try:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]
    except ResponseError as exc:
        if not _is_of_its_keys(exc):
            raise
        raise trouble(exc) from exc


def was_marked(client: Redis, keys: Keys, reservation_id: str) -> bool:
    """Return whether a settlement with a mark was executed, and no other one. Raises redis-py's errors."""
    (mark,) = client.mget([RecordKeys.from_id(keys, reservation_id).marker])
    return mark is not None


def _batches(values: Iterable[str]) -> Iterator[Sequence[str]]:
    rows = list(values)
    return (rows[start : start + TAGS_AT_ONCE] for start in range(0, len(rows), TAGS_AT_ONCE))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
