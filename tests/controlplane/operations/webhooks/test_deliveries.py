"""Messages are sent at least once, and a repetition is the same message."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.operations.webhooks import actions, deliveries, signing
from controlplane.operations.webhooks.models import DELIVERED, FAILED, PENDING, Delivery, Destination
from controlplane.operations.webhooks.sending import Outcome
from tests.controlplane.operations.webhooks.conftest import OK

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"type": "test", "timestamp": "2026-11-26T12:00:00Z", "data": {"title": "A test"}}


def send_now(delivery: Delivery) -> Delivery:
    """Let a message be due, run the worker once, and return the row."""
    Delivery.objects.filter(pk=delivery.pk).update(next_at=timezone.now())
    deliveries.run()
    delivery.refresh_from_db()
    return delivery


@pytest.fixture
def delivery(webhook) -> Delivery:
    (delivery,) = deliveries.enqueue([webhook(name="ops")], "evt_1", "test", BODY)
    return delivery


def test_a_message_arrives_with_a_signature(delivery, receiver):
    """Its content is what was saved."""
    assert send_now(delivery).state == DELIVERED

    (request,) = receiver.requests
    assert json.loads(request.body) == BODY
    assert request.headers["webhook-id"] == "evt_1"
    at = timezone.datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), tz=timezone.get_default_timezone())
    secret = actions.secret(delivery.destination)
    expected = signing.headers("evt_1", at, request.body, [secret])["webhook-signature"]
    assert request.headers["webhook-signature"] == expected
    assert (delivery.attempts, delivery.log[0]["result"]) == (1, "The response was 204.")


def test_the_signature_is_that_of_standard_webhooks():
    """The example of the specification."""
    at = timezone.datetime.fromtimestamp(1614265330, tz=timezone.get_default_timezone())

    found = signing.headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}', ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
    )

    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_another_implementation_verifies_a_message(delivery, receiver):
    """With the secret that the page shows, and with none other."""
    standardwebhooks = pytest.importorskip("standardwebhooks")
    send_now(delivery)
    (request,) = receiver.requests

    verified = standardwebhooks.Webhook(actions.secret(delivery.destination)).verify(request.body, request.headers)

    assert verified == BODY
    other = standardwebhooks.Webhook(signing.secret_of("whk_other", 1))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        other.verify(request.body, request.headers)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"HTTP/1.1 500 secret-in-a-reply\r\n\r\n", "The response was 500."),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "The response was 302. Redirects are not followed."),
        (b"", "The connection was closed before a response."),
    ],
)
def test_a_message_that_does_not_arrive_is_sent_again_as_it_was(delivery, receiver, answer, result):
    receiver.answers = [answer]

    failed = send_now(delivery)

    assert (failed.state, failed.result) == (PENDING, result)
    assert failed.next_at > timezone.now()
    assert send_now(delivery).state == DELIVERED
    first, second = receiver.requests
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert [one["ok"] for one in delivery.log] == [False, True]


def test_a_message_is_given_up_after_the_last_pause(delivery, receiver):
    """Until then, the pauses grow."""
    receiver.answers = [b"HTTP/1.1 503 Busy\r\n\r\n"] * 20
    pauses = []

    while send_now(delivery).state == PENDING:
        pauses.append(delivery.next_at - timezone.now())

    assert (delivery.state, delivery.attempts) == (FAILED, len(deliveries.PAUSES) + 1)
    assert all(
        expected - timedelta(seconds=60) <= found <= 1.2 * expected
        for found, expected in zip(pauses, deliveries.PAUSES, strict=True)
    )


def test_a_receiver_that_is_gone_gets_no_second_attempt(delivery, receiver):
    receiver.answers = [b"HTTP/1.1 410 Gone\r\n\r\n"]

    assert send_now(delivery).state == FAILED


def test_two_workers_do_not_send_the_same_message(delivery):
    now = timezone.now()

    assert [one.pk for one in deliveries.claim(now)] == [delivery.pk]
    assert deliveries.claim(now) == []


def test_a_message_of_a_killed_worker_is_due_again(delivery, receiver):
    """It was sent, perhaps, and nobody has saved that."""
    now = timezone.now()
    deliveries.claim(now)

    assert deliveries.claim(now + deliveries.CLAIMED_FOR - timedelta(seconds=1)) == []
    (again,) = deliveries.claim(now + deliveries.CLAIMED_FOR)
    assert again.body == delivery.body


def test_a_slow_worker_does_not_undo_what_a_second_one_has_done(delivery):
    """Of its failure nothing is saved, and of its success all."""
    now = timezone.now()
    (slow,) = deliveries.claim(now)
    (second,) = deliveries.claim(now + deliveries.CLAIMED_FOR)

    deliveries.save(slow, Outcome(False, "late"), now)
    delivery.refresh_from_db()
    assert (delivery.state, delivery.next_at) == (PENDING, second.next_at)
    deliveries.save(second, Outcome(True, "there"), now)
    deliveries.save(slow, Outcome(False, "late", is_final=True), now)
    delivery.refresh_from_db()
    assert (delivery.state, delivery.result) == (DELIVERED, "there")


def test_one_destination_leaves_room_for_others(webhook):
    """However many messages to it are due."""
    busy, other = webhook(), webhook()
    for number in range(30):
        deliveries.enqueue([busy], f"evt_{number}", "test", BODY)
    deliveries.enqueue([other], "evt_last", "test", BODY)

    claimed = deliveries.claim(timezone.now())

    assert len(claimed) == deliveries.AT_ONCE_TO_ONE + 1
    assert other.pk in {one.destination_id for one in claimed}


def test_a_long_queue_of_one_destination_hides_no_other(webhook, monkeypatch):
    """Also if it is longer than what a worker looks at."""
    monkeypatch.setattr(deliveries, "LOOKED_AT", 10)
    busy, second, other = webhook(), webhook(), webhook()
    for number in range(30):
        deliveries.enqueue([busy, second], f"evt_{number}", "test", BODY)
    deliveries.enqueue([other], "evt_last", "test", BODY)

    claimed = deliveries.claim(timezone.now())

    assert len({one.pk for one in claimed}) == len(claimed) == 2 * deliveries.AT_ONCE_TO_ONE + 1
    assert other.pk in {one.destination_id for one in claimed}


def test_a_sender_that_does_not_end_keeps_no_batch_waiting(delivery, receiver, webhook, monkeypatch):
    """A task that takes too long is killed, and then nothing is known of any message that it has sent."""
    monkeypatch.setattr(deliveries, "BATCH_SECONDS", 2.0)
    deliveries.enqueue([webhook()], "evt_2", "test", BODY)
    receiver.answers = [receiver.hang, OK]

    deliveries.run()

    states = sorted(Delivery.objects.values_list("state", "log__0__result"))
    assert states == [(DELIVERED, "The response was 204."), (PENDING, deliveries.LATE.result)]
    assert Delivery.objects.get(state=PENDING).next_at < timezone.now() + deliveries.CLAIMED_FOR / 2
    receiver.stopped.set()


def test_a_clock_that_is_set_back_delays_no_message(delivery, receiver):
    """Neither a new one nor a repetition. One that waits as it has to goes on waiting."""
    hour = timezone.now() + timedelta(hours=1)
    Delivery.objects.update(next_at=hour)
    deliveries.run()
    delivery.refresh_from_db()
    assert delivery.state == DELIVERED

    Delivery.objects.update(state=PENDING, attempts=4, next_at=timezone.now() + deliveries.PAUSES[3])
    deliveries.run()
    assert len(receiver.requests) == 1
    Delivery.objects.update(next_at=timezone.now() + timedelta(hours=1))
    deliveries.run()
    assert len(receiver.requests) == 2


def test_a_message_that_is_sent_again_while_it_is_sent_keeps_both_attempts(delivery, receiver):
    """The first one fails after the click, and changes nothing but the log."""
    now = timezone.now()
    Delivery.objects.update(attempts=3)
    (flying,) = deliveries.claim(now)
    with change(actor=Actor("ann", "admin"), reason="now") as tx:
        actions.replay(tx, delivery)
    (again,) = deliveries.claim(timezone.now())

    deliveries.save(flying, Outcome(False, "first"), now)
    deliveries.save(again, Outcome(True, "second"), now)

    delivery.refresh_from_db()
    assert [one["result"] for one in delivery.log] == ["first", "second"]
    assert (delivery.state, delivery.attempts) == (DELIVERED, 1)


def test_a_message_whose_destination_is_deleted_while_it_is_sent_leaves_nothing(delivery):
    (flying,) = deliveries.claim(timezone.now())
    Destination.objects.all().delete()

    deliveries.save(flying, Outcome(False, "late"), timezone.now())

    assert not Delivery.objects.exists()


def test_a_message_that_cannot_be_sent_keeps_no_other_waiting(delivery, receiver, webhook):
    """A row that another program has written, for example."""
    Delivery.objects.filter(pk=delivery.pk).update(body="\ud800".encode("utf-8", "replace").decode(), message_id="\n")
    (other,) = deliveries.enqueue([webhook()], "evt_2", "test", BODY)
    deliveries.run()

    for row in (delivery, other):
        row.refresh_from_db()
    assert (delivery.state, delivery.result) == ("pending", "An error of the server. Its log says more.")
    assert other.state == DELIVERED


def test_nothing_is_sent_to_an_inactive_webhook(delivery, webhook):
    """What waits for it goes on waiting, and nothing new is saved."""
    Destination.objects.update(active=False)

    assert deliveries.claim(timezone.now()) == []
    assert deliveries.enqueue([webhook(active=False)], "evt_2", "test", BODY) == []


def test_a_replay_has_the_same_id_and_body(delivery, receiver):
    send_now(delivery)

    with change(actor=Actor("ann", "admin"), reason="they lost it") as tx:
        actions.replay(tx, delivery)
    send_now(delivery)

    first, second = receiver.requests
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert (delivery.state, delivery.attempts, len(delivery.log)) == (DELIVERED, 1, 2)
    entry = AuditEntry.objects.get(action="delivery.replay")
    assert (entry.reason, entry.before["state"], entry.after["state"]) == ("they lost it", DELIVERED, PENDING)


def test_old_messages_are_pruned_unless_they_wait(delivery, webhook):
    (done,) = deliveries.enqueue([webhook()], "evt_2", "test", BODY)
    Delivery.objects.filter(pk=done.pk).update(state=DELIVERED)
    later = timezone.now() + deliveries.KEPT + timedelta(days=1)

    assert deliveries.prune(later) == 1
    assert list(Delivery.objects.all()) == [delivery]
    Destination.objects.update(active=False)  # then it would wait for ever
    assert deliveries.prune(later) == 1
