"""The installation that a store belongs to, so that two databases do not publish over each other without a word."""

import redis

from controlplane.core import store
from controlplane.publishing.models import Installation, OutboxEntry


def other_owner(client: redis.Redis) -> str | None:
    """
    Return the id of the other installation that the store belongs to, or None if it is this one's or nobody's.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    present = client.get(store.keys().installation)
    return None if present in (None, Installation.own_id()) else present


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
