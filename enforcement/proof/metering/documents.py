"""The documents of the proof: policies with budgets in tokens and money, projects, tokens, and prices."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from enforcement.model.documents import SCHEMA
from enforcement.model.keys import WHOLE, Keys
from enforcement.model.limits import Limit
from enforcement.model.tokens import digest, mint
from enforcement.proof.metering.provider import IMAGE_TOKENS
from enforcement.store.client import load_library
from enforcement.store_calls.publication import Publication, publish_call, tags_of

PROJECTS: Final = ("proj_1", "proj_2", "proj_3")
PRICES: Final[Mapping[str, Any]] = {
    "schema": 1,
    "revision": 3,
    "currency": "USD",
    "prices": [
        {
            "model": "big-*",
            "input": 3_000_000,
            "cached_input": 300_000,
            "cache_write": 3_750_000,
            "output": 15_000_000,
        },
        {"model": "small", "input": 150_000, "output": 600_000},
    ],
}
MODELS: Final = ("big-1", "big-2", "small")


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """
    One kind of budget, which several tokens have.

    Attributes:
        metering: The rules of the policy.
        limits: The limits of the policy, as JSON values. The first one is the budget.
    """

    metering: Mapping[str, object]
    limits: tuple[Mapping[str, object], ...]

    @property
    def is_bound(self) -> bool:
        """Whether no request may cost more than was reserved for it."""
        return bool(self.metering["estimate"] == "bound")

    @property
    def budget(self) -> Limit:
        """The limit that is the budget."""
        return Limit.from_json(self.limits[0])


@dataclass(frozen=True, slots=True)
class Budgets:
    """
    All that was published.

    Attributes:
        kinds: By the slug of the policy.
        tokens: For each secret the slug of its policy.
    """

    kinds: Mapping[str, DocumentKind]
    tokens: Mapping[str, str]


def _limit(name: str, unit: str, quota: int, **more: object) -> dict[str, object]:
    # Without the store nobody decides here, so that every charge is in the ledgers.
    row = {"name": name, "algorithm": "fixed_window", "quota": quota, "calendar": "lifetime", "unit": unit}
    return {**row, "on_store_failure": "deny", **more}


def kinds(requests: int) -> dict[str, DocumentKind]:
    """
    Return the kinds of budgets, of which most are used up by their share of this number of requests.

    Args:
        requests: How many requests each token sends.
    """
    bound = {"estimate": "bound", "default_cap": 200, "part_tokens": {"image": IMAGE_TOKENS}}
    typical = {"estimate": "typical", "default_cap": 200, "part_tokens": {"image": 85}}
    plenty = 10**12
    # A slot that was forgotten must still be held when the ledgers are read.
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60, "on_store_failure": "deny"}
    return {
        "bound-money": DocumentKind(
            bound, (_limit("money", "micros", 500 * requests), _limit("all", "tokens", plenty))
        ),
        "bound-tokens": DocumentKind(
            bound | {"on_disconnect": "drain", "clamp_at_least": 10},
            (_limit("tokens", "tokens", 90 * requests), _limit("money", "micros", plenty), slots),
        ),
        "typical-money": DocumentKind(
            typical | {"clamp_at_least": 5},
            (_limit("money", "micros", 400 * requests), _limit("rpm", "requests", plenty), slots),
        ),
        "typical-tokens": DocumentKind(
            typical | {"on_disconnect": "drain"},
            (
                _limit("tokens", "tokens", 60 * requests, weights={"cached_input": 100}),
                _limit("input", "input_tokens", plenty),
                _limit("output", "output_tokens", plenty),
                _limit("money", "micros", plenty),
            ),
        ),
        "plenty": DocumentKind(
            typical | {"on_disconnect": "drain"},
            (_limit("money", "micros", plenty), _limit("tokens", "tokens", plenty), _limit("rpm", "requests", plenty)),
        ),
    }


def publish(client: Redis, keys: Keys, *, tokens: int, requests: int) -> Budgets:
    """
    Publish everything to an empty store, and return what was published.

    Args:
        tokens: How many tokens share the kinds and the projects.
        requests: How many requests all of them send.
    """
    made = kinds(max(1, requests // tokens))
    load_library(client)
    client.set(keys.decision_key, secrets.token_hex(32), nx=True)
    documents: dict[str, Any] = {"global": {"schema": SCHEMA, "policy": None}}
    for slug, kind in made.items():
        row = {"id": f"pol_{slug}", "slug": slug, "name": slug, "version": 1, "limits": list(kind.limits)}
        documents[f"policy:pol_{slug}"] = {"schema": SCHEMA, **row, "metering": dict(kind.metering)}
    for ident in PROJECTS:
        row = {"id": ident, "slug": ident, "active": True, "policy": None, "overrides": []}
        documents[f"project:{ident}"] = {"schema": SCHEMA, **row}
    slugs, holders = list(made), [mint("live") for _ in range(tokens)]
    rows = {digest(secret): _token(at, slugs[at % len(slugs)]) for at, secret in enumerate(holders)}
    publication = Publication(1, time.time_ns() // 1_000, "proof", documents, rows, (), prices=(PRICES,))
    for tag in tags_of(documents):
        client.sadd(keys.dirty(tag), WHOLE)  # nothing was ever checkpointed, so no counter is missing
    function, names, arguments = publish_call(publication, keys)
    client.fcall(function, len(names), *names, *arguments)
    return Budgets(made, {secret: slugs[at % len(slugs)] for at, secret in enumerate(holders)})


def _token(at: int, slug: str) -> dict[str, object]:
    row = {"id": f"tok_{at}", "project": PROJECTS[at % len(PROJECTS)], "name": f"token {at}", "policy": f"pol_{slug}"}
    return {"schema": SCHEMA, **row, "revoked": False, "expires_at_us": None, "overrides": []}
