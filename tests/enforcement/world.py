"""A store with published documents, for tests of the library alone: what a control plane would have written."""

import itertools
import time
from typing import Any

from enforcement.model.tokens import mint
from enforcement.testing import Published

PROJECT = "proj_1"


class World:
    """Raw documents for a store, also such as no control plane would write; published as the test kit does it."""

    def __init__(self, url: str) -> None:
        self.published = Published(url)
        self.keys, self.client, self.followers = self.published.keys, self.published.client, self.published.followers

    @property
    def revision(self) -> int:
        return self.published.revision

    def publish(
        self, documents: dict[str, Any] | None = None, tokens: dict[str, Any] | None = None, **more: Any
    ) -> int:
        """Publish a revision; tokens by secret."""
        return self.published.publish(documents, tokens, **more)

    def follow(self, limiter: Any) -> Any:
        """Start a limiter that has each revision as soon as it is published, and return it."""
        limiter.start(0.0)
        self.followers.append(limiter)
        return limiter

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


def used_of(decision: Any) -> dict[str, int]:
    """Return how many permits of each limit are used, by the name of the limit."""
    return {state.name: state.quota - state.remaining for state in decision.limits}


def eventually(condition: Any, seconds: float = 10.0, every: float = 0.005) -> bool:
    """Wait until a condition holds, which is looked at so often."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def look_ups(limiter: Any) -> list[bytes]:
    """Return a list that grows with each command that looks up a token."""
    pipe, commands = limiter._lookup_pipe, list[bytes]()
    call_again = pipe.call_again

    def noting(command: bytes, seconds: float) -> Any:
        commands.append(command)
        return call_again(command, seconds)

    pipe.call_again = noting
    return commands
