"""Send one message to one destination, once. What fails is said in a sentence, and nothing is raised."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

from django.conf import settings

from controlplane.webhooks import connecting, signing
from controlplane.webhooks.models import Delivery, Destination
from controlplane.webhooks.targets import networks
from enforcement.settings import VERSION

GONE = 410


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What one attempt brought.

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
    found = _SENDERS[delivery.destination.kind](delivery, secrets, now)
    return Outcome(found.ok, found.result, found.is_final, round((monotonic() - began) * 1000))


def _to_webhook(delivery: Delivery, secrets: list[str], now: datetime) -> Outcome:
    body = delivery.body.encode()
    about = {"Content-Type": "application/json", "User-Agent": f"Sluicegate/{VERSION}"}
    proof = signing.headers(delivery.message_id, now, body, secrets)
    try:
        status = connecting.post(
            delivery.destination.url, {**about, **proof}, body, allowed=networks(settings.ALERT_NETWORKS)
        )
    except (connecting.Refused, connecting.Unreachable) as exc:
        return Outcome(False, str(exc))
    if 200 <= status < 300:
        return Outcome(True, f"The response was {status}.")
    more = " Redirects are not followed." if 300 <= status < 400 else ""
    return Outcome(False, f"The response was {status}.{more}", is_final=status == GONE)


Sender = Callable[[Delivery, list[str], datetime], Outcome]
_SENDERS: dict[str, Sender] = {Destination.WEBHOOK: _to_webhook}
