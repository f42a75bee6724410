"""
The secrets of webhooks and their signatures, as Standard Webhooks has them.

A secret is derived from SECRET_KEY, the id of the destination and the number of its generation. So it can sign, and
nothing keeps it, neither the database nor a backup of it.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings

from controlplane.core.secret_keys import secret_keys

PREFIX = "whsec_"


def secret_of(destination: str, generation: int, secret_key: str = "") -> str:
    """Return the secret of a destination, such as ``whsec_...``, which follows from a SECRET_KEY, by default ours."""
    text = f"sluicegate webhook {destination} {generation}"
    key = hmac.digest((secret_key or settings.SECRET_KEY).encode(), text.encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(key).decode()


def secrets_of(destination: str, generations: Iterable[int]) -> list[str]:
    """Return the secrets of these generations, also those that follow from former values of SECRET_KEY."""
    return [secret_of(destination, generation, key) for generation in generations for key in secret_keys()]


def headers(message_id: str, at: datetime, body: bytes, secrets: Iterable[str]) -> dict[str, str]:
    """Return the header fields that prove a message, with a signature for each of the secrets."""
    timestamp = str(int(at.timestamp()))
    content = f"{message_id}.{timestamp}.".encode() + body
    keys = [base64.b64decode(secret.removeprefix(PREFIX)) for secret in secrets]
    marks = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{mark}" for mark in marks),
    }
