"""A store with published documents, for tests of the library alone: what a control plane would have written."""

import itertools
import time
from typing import Any

from enforcement.keys import Keys
from enforcement.publishing import Publication, publish_call
from enforcement.store import connect, load_library
from enforcement.tokens import digest, mint

PROJECT = "proj_1"


class World:
    """Publishes policies, projects and tokens, as the control plane does, and waits until its followers know."""

    def __init__(self, url: str) -> None:
        self.keys = Keys()
        self.client = connect(url)
        self.revision = 0
        self.followers: list[Any] = []
        load_library(self.client)

    def publish(
        self, documents: dict[str, Any] | None = None, tokens: dict[str, Any] | None = None, **more: Any
    ) -> int:
        """Publish a revision; tokens by secret."""
        self.revision += 1
        hashed = {digest(secret): document for secret, document in (tokens or {}).items()}
        now_us = time.time_ns() // 1_000
        publication = Publication(self.revision, now_us, "store-1", documents or {}, hashed, **more)
        function, keys, args = publish_call(publication, self.keys)
        reply = self.client.fcall(function, len(keys), *keys, *args)
        assert reply[0] == 1
        assert eventually(lambda: all(limiter.revision == self.revision for limiter in self.followers))
        return self.revision

    def policy(self, name: str, *limits: dict[str, Any], version: int = 1) -> dict[str, Any]:
        """Return a policy's document under its field."""
        policy = {
            "schema": 1,
            "id": f"pol_{name}",
            "slug": name,
            "name": name,
            "version": version,
            "limits": list(limits),
        }
        return {f"policy:pol_{name}": policy}

    def project(
        self, policy: str | None = None, *, active: bool = True, overrides: Any = (), ident: str = PROJECT, **more: Any
    ) -> dict[str, Any]:
        """Return the project's document under its field."""
        document = {"id": ident, "slug": "shop", "active": active, "policy": policy, "overrides": list(overrides)}
        return {f"project:{ident}": {"schema": 1, **document, **more}}

    def token(self, policy: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return a token's document."""
        document = {"id": f"tok_{next(_numbers)}", "project": PROJECT, "name": "t", "policy": policy, "revoked": False}
        return {"schema": 1, **document, "expires_at_us": None, "overrides": [], **changes}

    def everything(self, *limits: dict[str, Any], **token: Any) -> str:
        """Publish one policy of these limits, a project and a token under it; return the secret."""
        secret = mint("live")
        documents = {"global": {"schema": 1, "policy": None}, **self.policy("api", *limits), **self.project()}
        self.publish(documents, {secret: self.token("pol_api", **token)})
        return secret


_numbers = itertools.count(1)


def fixed(quota: int, *, name: str = "rpm", seconds: int = 3_600, **more: Any) -> dict[str, Any]:
    """Return a fixed window's JSON; an hour, so that no test meets its end by chance more often than once an hour."""
    return {"name": name, "algorithm": "fixed_window", "quota": quota, "window_seconds": seconds, **more}


def eventually(condition: Any, seconds: float = 5.0) -> bool:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
