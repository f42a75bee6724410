"""
Messages that wait for delivery.

A message is saved in the transaction of what it tells about, and is sent at least once: a worker that is killed while
it sends leaves the message due again. A message that failed at every attempt stays
in its list, as in a dead letter queue, and can be sent again.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.operations.webhooks.models import DELIVERED, FAILED, PENDING, Delivery, Destination
from controlplane.operations.webhooks.sending import Outcome, send

# How long after each failed attempt the next one follows. After the last of them, the message is given up.
PAUSES = tuple(timedelta(seconds=seconds) for seconds in (5, 30, 300, 1_800, 7_200, 18_000, 36_000, 36_000))
# Up to so many times as long.
LONGER = 1.2
# Longer than an attempt and a look-up of a name may take. Then another worker takes the message over.
CLAIMED_FOR = timedelta(minutes=2)
AT_ONCE = 16
# So that one destination that hangs does not keep all others waiting.
AT_ONCE_TO_ONE = 4
LOOKED_AT = 500
# A task begins no other batch after this time.
TASK_SECONDS = 8.0
# Nobody waits longer for a batch. A task that takes too long is killed, and then all of its batch is sent again.
BATCH_SECONDS = 30.0
LATE = Outcome(False, f"There was no outcome within {BATCH_SECONDS:g} seconds.")
# The most by which the clocks of two workers may differ.
CLOCKS_DIFFER = timedelta(minutes=1)
LOGGED = 20
KEPT = timedelta(days=30)
TEST = "test"


def enqueue(destinations: Iterable[Destination], message_id: str, kind: str, body: Mapping[str, Any]) -> list[Delivery]:
    """Save a message to each of the destinations that are active. It is sent after the transaction of the caller."""
    text = json.dumps(body, separators=(",", ":"))
    rows = [
        Delivery(destination=destination, message_id=message_id, kind=kind, body=text)
        for destination in destinations
        if destination.active
    ]
    return Delivery.objects.bulk_create(rows)


def body_of(kind: str, at: datetime, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a message, as Standard Webhooks has it."""
    return {"type": kind, "timestamp": at.isoformat().replace("+00:00", "Z"), "data": data}


def enqueue_test(destination: Destination, by: str) -> Delivery:
    """Save a message that says only that messages arrive, and return its delivery."""
    title = f"A test of {destination.name}"
    data = {"title": title, "text": f"{by} has asked for it. Nothing is wrong."}
    (delivery,) = enqueue([destination], new_id("evt"), TEST, body_of(TEST, timezone.now(), data))
    return delivery


def run(seconds: float = TASK_SECONDS, clock: Callable[[], float] = monotonic) -> int:
    """Send what is due for about so many *seconds*, and return the number of attempts."""
    until, count = clock() + seconds, 0
    hasten(timezone.now())
    while clock() < until and (claimed := claim(timezone.now())):
        count += len(claimed)
        _send_all(claimed)
    return count


def hasten(now: datetime) -> int:
    """
    Make the messages due that wait longer than any pause, and return their number.

    That happens if the clock is set back. An alert must not wait until it shows the former time again.
    """
    late = Q()
    for attempts, pause in enumerate((CLAIMED_FOR, *PAUSES)):
        bound = now + max(pause * LONGER, CLAIMED_FOR) + CLOCKS_DIFFER
        late |= Q(attempts=attempts, next_at__gt=bound)
    rows = Delivery.objects.filter(late, state=PENDING)
    return rows.update(next_at=now) if rows.exists() else 0  # which on SQLite blocks no other writer


def claim(now: datetime) -> list[Delivery]:
    """Return some messages that are due, the longest waiting first, which no other worker sends meanwhile."""
    until = now + CLAIMED_FOR
    # Two workers may have read the same row. Only one finds it as it was.
    mine = [
        one
        for one in _chosen(now)
        if Delivery.objects.filter(pk=one.pk, state=PENDING, next_at=one.next_at).update(next_at=until)
    ]
    for one in mine:
        one.next_at = until
    return mine


def _chosen(now: datetime) -> list[Delivery]:
    """Return messages that are due, of each destination some. One with a long queue does not hide the others."""
    due = Delivery.objects.filter(state=PENDING, next_at__lte=now, destination__active=True)
    chosen: list[Delivery] = []
    each: Counter[str] = Counter()
    while True:
        full = [destination for destination, count in each.items() if count >= AT_ONCE_TO_ONE]
        rows = due.exclude(destination__in=full).exclude(pk__in=[one.pk for one in chosen])
        seen = list(rows.select_related("destination").order_by("next_at", "pk")[:LOOKED_AT])
        for one in seen:
            each[one.destination_id] += 1
            if each[one.destination_id] <= AT_ONCE_TO_ONE:
                chosen.append(one)
        # Otherwise there are others behind those that were read, and at least one destination is full now.
        if len(chosen) >= AT_ONCE or len(seen) < LOOKED_AT:
            return chosen[:AT_ONCE]


def _send_all(claimed: list[Delivery]) -> None:
    """Send messages at the same time, and save each outcome at once."""
    now = timezone.now()
    pool = ThreadPoolExecutor(AT_ONCE)
    sent: dict[Future[Outcome], Delivery] = {
        pool.submit(send, one, one.destination.secrets(now), now): one for one in claimed
    }
    try:
        for attempt in as_completed(list(sent), BATCH_SECONDS):
            save(sent.pop(attempt), attempt.result(), timezone.now())
    except TimeoutError:
        for one in sent.values():
            save(one, LATE, timezone.now())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def save(delivery: Delivery, outcome: Outcome, now: datetime) -> None:
    """
    Save the outcome of an attempt.

    A worker that was slower than its claim, or during whose attempt somebody sent the message again, changes nothing
    but the log, and that the message has arrived.
    """
    with transaction.atomic():
        row = Delivery.objects.select_for_update().filter(pk=delivery.pk, state=PENDING).first()
        if row is None:
            return  # another attempt has ended it, or it was deleted
        is_mine = row.next_at == delivery.next_at
        entry = {"at": now.isoformat(), "ok": outcome.ok, "result": outcome.result[:300], "ms": outcome.ms}
        row.log = [*row.log, entry][-LOGGED:]
        if is_mine or outcome.ok:
            row.attempts += 1
        if outcome.ok:
            row.state, row.delivered_at = DELIVERED, now
        elif is_mine and (outcome.is_final or row.attempts > len(PAUSES)):
            row.state = FAILED
        elif is_mine:
            # Those that failed together need not come back together.
            row.next_at = now + PAUSES[row.attempts - 1] * random.uniform(1.0, LONGER)
        row.save(update_fields=["state", "attempts", "log", "next_at", "delivered_at"])


def prune(now: datetime) -> int:
    """
    Delete the messages of over a month ago that arrived or were given up, or whose destination is not active, and
    return their number.
    """
    waiting = Q(state=PENDING, destination__active=True)
    old = Delivery.objects.filter(~waiting, created_at__lt=now - KEPT)
    return old.delete()[1].get("webhooks.Delivery", 0)
