"""Send one message to one destination, once. What fails is said in a sentence, and nothing is raised."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from smtplib import SMTPException, SMTPRecipientsRefused
from time import monotonic

from django.conf import settings
from django.core.mail import EmailMessage, get_connection

from controlplane.core.text import visible
from controlplane.operations.webhooks import connecting, sealing, services, signing
from controlplane.operations.webhooks.models import Delivery, Destination
from controlplane.operations.webhooks.targets import Refused, networks
from enforcement.settings import VERSION

logger = logging.getLogger(__name__)

GONE = 410
MAIL_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The outcome of one attempt.

    Attributes:
        result: A sentence, which has nothing that the other side has written.
        is_final: Whether it is useless to try again.
    """

    ok: bool
    result: str
    is_final: bool = False
    ms: int = 0


def send(delivery: Delivery, secrets: list[str], now: datetime) -> Outcome:
    """Send a message, and return the outcome. The database is not used, so this may run in another thread."""
    began = monotonic()
    try:
        outcome = _SENDERS[delivery.destination.kind](delivery, secrets, now)
    except Exception as exc:  # noqa: BLE001  (one message must not keep all others waiting)
        # Without its text, which may have the URL of a service.
        logger.error("The message %s could not be sent: %s", delivery.pk, type(exc).__name__)
        outcome = Outcome(False, "An error of the server. Its log says more.")
    return Outcome(outcome.ok, outcome.result, outcome.is_final, round((monotonic() - began) * 1000))


def _to_webhook(delivery: Delivery, secrets: list[str], now: datetime) -> Outcome:
    body = delivery.body.encode()
    about = {"Content-Type": "application/json", "User-Agent": f"Sluicegate/{VERSION}"}
    proof = signing.headers(delivery.message_id, now, body, secrets)
    try:
        status = connecting.post(
            delivery.destination.url, {**about, **proof}, body, allowed=networks(settings.ALERT_NETWORKS)
        )
    except (Refused, connecting.Unreachable) as exc:
        return Outcome(False, str(exc))
    if 200 <= status < 300:
        return Outcome(True, f"The response was {status}.")
    more = " Redirects are not followed." if 300 <= status < 400 else ""
    return Outcome(False, f"The response was {status}.{more}", is_final=status == GONE)


def _to_mail(delivery: Delivery, secrets: list[str], now: datetime) -> Outcome:
    title, text = _words(delivery)
    domain = settings.DEFAULT_FROM_EMAIL.rpartition("@")[2].rstrip(">") or "localhost"
    message = EmailMessage(
        title[:200],
        f"{title}\n\n{text}\n\nEvent: {delivery.message_id}\n",
        to=delivery.destination.emails,
        # A repetition has the same id, so that readers of mail show it once.
        headers={"Message-ID": f"<{delivery.message_id}@{domain}>"},
        connection=get_connection(timeout=MAIL_SECONDS),
    )
    try:
        message.send()
    except SMTPRecipientsRefused:
        return Outcome(False, "The mail server refuses the addresses.")
    except SMTPException:
        return Outcome(False, "The mail server refuses the message or the account.")
    except OSError:
        return Outcome(False, "The mail server cannot be reached.")
    return Outcome(True, "The mail server has accepted the message.")


def _to_service(delivery: Delivery, secrets: list[str], now: datetime) -> Outcome:
    destination = delivery.destination
    try:
        url = sealing.unseal(destination.sealed)
        services.check(url)  # the setting may allow less than before
        accepted = services.notify(url, *_words(delivery))
    except sealing.UnreadableError:
        return Outcome(False, "The URL of the service cannot be read, because SECRET_KEY has changed. Enter it again.")
    except Refused:
        return Outcome(False, f"The service {destination.service} is not allowed any more.")
    if not accepted:
        return Outcome(False, f"The service {destination.service} did not accept the message.")
    return Outcome(True, f"The service {destination.service} has accepted the message.")


def _words(delivery: Delivery) -> tuple[str, str]:
    """Return the title and the text of a message for people, without line breaks, which names of models may have."""
    data = json.loads(delivery.body).get("data", {})
    return visible(data.get("title", delivery.kind)), visible(data.get("text", ""))


Sender = Callable[[Delivery, list[str], datetime], Outcome]
_SENDERS: dict[str, Sender] = {
    Destination.WEBHOOK: _to_webhook,
    Destination.EMAIL: _to_mail,
    Destination.CHAT: _to_service,
}
