"""Documents as the control plane publishes them, for tests of those who read them."""

from __future__ import annotations

from typing import Any

from redis import Redis

from enforcement.model.keys import Keys
from enforcement.model.strict_json import dumps
from enforcement.store.client import load_library
from enforcement.store_calls.publication import Publication, publish_call

DIGEST = "a" * 64
KEYS = Keys()


def policy(quota: int = 100, ident: str = "pol_1") -> dict[str, Any]:
    limit = {"name": "per-minute", "algorithm": "fixed_window", "quota": quota, "window_seconds": 60}
    return {"schema": 1, "id": ident, "slug": "gold", "name": "Gold", "version": 1, "limits": [limit]}


def project(ident: str = "proj_1") -> dict[str, Any]:
    return {"schema": 1, "id": ident, "slug": "acme", "active": True, "policy": "pol_1", "overrides": []}


def token(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"schema": 1, "id": "tok_1", "project": "proj_1", "name": "ci", "policy": None}
    return fields | {"revoked": False, "expires_at_us": None, "overrides": []} | changes


def state(revision: int = 1, quota: int = 100, **fields: str) -> dict[str, str]:
    """Return the documents' hash of a small, whole state; *fields* are raw and win."""
    texts = {"revision": str(revision), "store_id": "store-1", "published_at_us": "1"}
    return texts | {"policy:pol_1": dumps(policy(quota)), "project:proj_1": dumps(project())} | fields


def changes(**parts: Any) -> str:
    """Return the text of a log entry."""
    return dumps({"schema": 1, "documents": {}, "tokens": [], "resets": [], "full": False} | parts)


def publish(client: Redis, revision: int, store_id: str = "store-1", **parts: Any) -> None:
    """Publish through the store's function, as the control plane does."""
    publication = Publication(revision=revision, now_us=1, store_id=store_id, **parts)
    function, keys, args = publish_call(publication, KEYS)
    load_library(client)
    assert client.fcall(function, len(keys), *keys, *args) == [1, revision]


def publish_quota(client: Redis, revision: int, quota: int) -> None:
    """Publish the whole small state with this quota."""
    publish(client, revision, documents={"policy:pol_1": policy(quota), "project:proj_1": project()})
