"""
Messages that wait for delivery.

A message is saved in the transaction of what it tells about, and is sent at least once: a worker that is killed while
it sends leaves the message due again.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.webhooks.models import DELIVERED, FAILED, PENDING, Delivery, Destination
from controlplane.webhooks.sending import Outcome, send

# How long after each failed attempt the next one follows. After the last of them, the message is given up.
PAUSES = tuple(timedelta(seconds=seconds) for seconds in (5, 30, 300, 1_800, 7_200, 18_000, 36_000, 36_000))
# Longer than an attempt and a look-up of a name may take. Then another worker takes the message over.
CLAIMED_FOR = timedelta(minutes=2)
AT_ONCE = 16
# So that one destination that hangs does not keep all others waiting.
AT_ONCE_TO_ONE = 4
LOOKED_AT = 500
# A task begins no other batch after this time.
TASK_SECONDS = 8.0
LOGGED = 20
KEPT = timedelta(days=30)
TEST = "test"


def enqueue(destinations: Iterable[Destination], message_id: str, kind: str, body: Mapping[str, Any]) -> list[Delivery]:
    """Save a message to each of the destinations that are active. It is sent after the transaction of the caller."""
    text = json.dumps(body, separators=(",", ":"))
    rows = [
        Delivery(destination=one, message_id=message_id, kind=kind, body=text) for one in destinations if one.active
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
    while clock() < until and (claimed := claim(timezone.now())):
        count += len(claimed)
        _send_all(claimed)
    return count


def claim(now: datetime) -> list[Delivery]:
    """Return some messages that are due, the longest waiting first, which no other worker sends meanwhile."""
    due = Delivery.objects.filter(state=PENDING, next_at__lte=now, destination__active=True)
    chosen: list[Delivery] = []
    each: Counter[str] = Counter()
    for one in due.select_related("destination").order_by("next_at", "pk")[:LOOKED_AT]:
        each[one.destination_id] += 1
        if each[one.destination_id] <= AT_ONCE_TO_ONE:
            chosen.append(one)
    until = now + CLAIMED_FOR
    # Two workers may have read the same row. Only one finds it as it was.
    mine = [
        one
        for one in chosen[:AT_ONCE]
        if Delivery.objects.filter(pk=one.pk, state=PENDING, next_at=one.next_at).update(next_at=until)
    ]
    for one in mine:
        one.next_at = until
    return mine


def _send_all(claimed: list[Delivery]) -> None:
    now = timezone.now()
    secrets = [one.destination.secrets(now) for one in claimed]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(send, claimed, secrets, [now] * len(claimed))
        for delivery, outcome in zip(claimed, found, strict=True):
            save(delivery, outcome, timezone.now())


def save(delivery: Delivery, outcome: Outcome, now: datetime) -> None:
    """
    Save the outcome of an attempt.

    A worker that was slower than its claim changes nothing but that the message has arrived.
    """
    claim_of, delivery.attempts = delivery.next_at, delivery.attempts + 1
    entry = {"at": now.isoformat(), "ok": outcome.ok, "result": outcome.result[:300], "ms": outcome.ms}
    delivery.log = [*delivery.log, entry][-LOGGED:]
    row = Delivery.objects.filter(pk=delivery.pk, state=PENDING)
    fields: dict[str, Any] = {"attempts": delivery.attempts, "log": delivery.log}
    if outcome.ok:
        row.update(state=DELIVERED, delivered_at=now, **fields)
        return
    if outcome.is_final or delivery.attempts > len(PAUSES):
        row.filter(next_at=claim_of).update(state=FAILED, **fields)
        return
    # Those that failed together need not come back together.
    pause = PAUSES[delivery.attempts - 1] * random.uniform(1.0, 1.2)
    row.filter(next_at=claim_of).update(next_at=now + pause, **fields)


def prune(now: datetime) -> int:
    """Delete the messages that arrived or were given up over a month ago, and return their number."""
    old = Delivery.objects.exclude(state=PENDING).filter(created_at__lt=now - KEPT)
    return old.delete()[1].get("webhooks.Delivery", 0)
