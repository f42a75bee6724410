"""
The installation that a store belongs to, so that two databases do not publish over each other without a word.

The secret of its decision ids is here too.
"""

import hashlib
import hmac

import redis
from django.conf import settings
from django.core import checks
from django.db import DatabaseError

from controlplane.core import store
from controlplane.releases.publishing.models import Installation, OutboxEntry
from enforcement.store.client import STORE_ERRORS


def other_owner(client: redis.Redis) -> str | None:
    """
    Return the id of the other installation that the store belongs to, or None if it is this one's or nobody's.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    present = client.get(store.keys().installation)
    return None if present is None or present == Installation.own_id() else str(present)


def claim(client: redis.Redis) -> str | None:
    """
    Make the store this installation's if it is nobody's, and return the id of the other one if it is another's.

    A store that was emptied, or is of release 0.2, is nobody's. A new epoch that waits in the outbox takes the store
    from another installation, which then publishes nothing more.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    key, own = store.keys().installation, Installation.own_id()
    if client.get(key) == own or client.set(key, own, nx=True):
        return None
    if OutboxEntry.objects.filter(revision=None, kind="epoch").exists():
        client.set(key, own)
        return None
    return other_owner(client)


def sentence(owner: str) -> str:
    """Return a sentence that says whose the store is, and one that says what to do."""
    return (
        f"The store belongs to another installation of the control plane ({owner}). Use another store or another "
        "SLUICEGATE_PREFIX, or take it over: manage.py publish --all --new-epoch --reason TEXT"
    )


def write_decision_key(client: redis.Redis) -> None:
    """
    Write the secret by which enforcers make decision ids to the store.

    It follows from SECRET_KEY, which it does not reveal. So a store that was emptied gets the same one again, and ids
    that clients have kept can still be read. It is no document, because enforcers of 0.2 would report an unknown one.
    """
    client.set(store.keys().decision_key, decision_secret(settings.SECRET_KEY))


def decision_secret(secret_key: str) -> str:
    """Return the secret of decision ids that follows from a ``SECRET_KEY``."""
    return hmac.digest(secret_key.encode(), b"sluicegate decision key", hashlib.sha256).hex()


@checks.register("store", deploy=True)
def store_is_ours(**_: object) -> list[checks.CheckMessage]:
    """Warn if the store belongs to another installation."""
    try:
        owner = other_owner(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except (*STORE_ERRORS, DatabaseError):
        return []  # another check reports the store, and before the first migration there is no table
    if owner is None:
        return []
    message, hint = sentence(owner).split(". ", 1)
    return [checks.Warning(f"{message}. Nothing is published.", f"{hint}.", id="sluicegate.W009")]
