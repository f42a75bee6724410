"""Publish policies and tokens for a test as the control plane does, without a control plane."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from enforcement.base import BaseLimiter
from enforcement.metering.price_documents import parse_prices
from enforcement.model.documents import SCHEMA
from enforcement.model.instants import to_us
from enforcement.model.keys import DEFAULT_PREFIX, WHOLE, Keys
from enforcement.model.limits import Limit
from enforcement.model.matching import check_labels
from enforcement.model.partitions import DEFAULT_CAP
from enforcement.model.strict_json import dumps
from enforcement.model.tokens import digest, mint
from enforcement.store.client import connect, load_library
from enforcement.store_calls.publication import Document, Publication, publish_call, refused_by, tags_of

FOLLOW_SECONDS: Final = 5.0
PRICES_SECONDS: Final = 1.0
PROJECT: Final = "test"
"""The default project of tokens. It exists from the beginning."""


class Published:
    """
    Publishes documents to a store. Each change is a revision, and returns when all *followers* use it.

    Policies and projects are named by their slugs.

    Args:
        url: Of a store that only tests use.
        prefix: The prefix of all keys.
    Attributes:
        followers: Started limiters. Those of the fixtures are among them.
        revision: The last published revision.
    """

    def __init__(self, url: str, *, prefix: str = DEFAULT_PREFIX) -> None:
        self.keys = Keys(prefix)
        self.client = connect(url)
        self.followers: list[BaseLimiter] = []
        self._store_id = f"test-{secrets.token_hex(8)}"
        self._made = 0
        self._policies: dict[str, int] = {}
        self._projects: dict[str, dict[str, Any]] = {}
        self._tokens: dict[str, dict[str, Any]] = {}
        load_library(self.client)
        self.client.set(self.keys.decision_key, secrets.token_hex(32), nx=True)
        self.revision = int(self.client.hget(self.keys.documents, "revision") or 0)

    def policy(self, slug: str, *limits: Limit) -> None:
        """Publish a policy of these limits, or replace its limits."""
        self._policies[slug] = version = self._policies.get(slug, 0) + 1
        rows = [limit.to_json() for limit in limits]
        document = {"id": _policy(slug), "slug": slug, "name": slug, "version": version, "limits": rows}
        self.publish({f"policy:{_policy(slug)}": {"schema": SCHEMA, **document}})

    def globally(self, policy: str | None) -> None:
        """Apply a policy to every request, or, for None, remove the global policy."""
        self.publish({"global": {"schema": SCHEMA, "policy": self._known(policy)}})

    def project(
        self,
        slug: str = PROJECT,
        *,
        policy: str | None = None,
        active: bool = True,
        partition_cap: int = DEFAULT_CAP,
        anonymous_policy: str | None = None,
    ) -> None:
        """
        Publish a project, or replace its settings. Its overrides stay.

        Args:
            policy: Slug of its policy. None: it has none.
            partition_cap: For each limit, how many attribute values have a counter of their own.
            anonymous_policy: Slug of the policy of requests without a token. None: they are refused.
        """
        known = self._projects.get(slug, {"id": f"proj_{len(self._projects) + 1}", "overrides": []})
        document = {"schema": SCHEMA, "slug": slug, "active": active, "policy": self._known(policy)}
        known.pop("anonymous_policy", None)
        anonymous = {} if anonymous_policy is None else {"anonymous_policy": self._known(anonymous_policy)}
        self._publish_project({**known, **document, **anonymous, "partition_cap": partition_cap})

    def token(
        self,
        *,
        policy: str | None = None,
        project: str = PROJECT,
        name: str = "test",
        expires_at: datetime | None = None,
        revoked: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """
        Publish a token and return its secret.

        Args:
            policy: Slug of its own policy, which applies in addition to the policy of the project and the global one.
            expires_at: With a time zone, by the clock of the limiter.
            labels: Its labels by name, which limits name as ``label.NAME``.
        Raises:
            ValueError: The policy or project is unknown, a label breaks a rule, or the expiry has no time zone or is
                more than a day ago. By then the store has deleted the token.
        """
        if project not in self._projects:
            raise ValueError(f"project: must be published first, got {project!r}.")
        try:
            own = {} if labels is None else {"labels": dict(check_labels(labels))}
        except ValueError as exc:
            raise ValueError(f"labels: {exc}.") from exc
        self._made += 1
        ident = self._projects[project]["id"]
        document = {"id": f"tok_{self._made}", "project": ident, "name": name, "revoked": revoked}
        document |= {"policy": self._known(policy), "expires_at_us": _expiry(expires_at), "overrides": []}
        secret = mint("live")
        self._publish_token(secret, {"schema": SCHEMA, **document, **own})
        return secret

    def revoke(self, token: str) -> None:
        """Revoke a token that :meth:`token` returned."""
        self._publish_token(token, {**self._tokens[token], "revoked": True})

    def override(
        self,
        limit: str,
        *,
        quota: int,
        burst: int | None = None,
        token: str | None = None,
        project: str = PROJECT,
        ends_at: datetime | None = None,
        partition: Mapping[str, str] | None = None,
    ) -> None:
        """
        Override the quota of one limit for a token, or for a project if *token* is None.

        Args:
            limit: ``"policy-slug/limit-name"``.
            ends_at: With a time zone. None: the override has no end.
            partition: Values of what the limit is partitioned by, such as ``{"label.team": "web"}``. None: for all.
        Raises:
            ValueError: The policy is unknown, or *ends_at* has no time zone.
        """
        slug, _, name = limit.partition("/")
        self._made += 1
        row: dict[str, object] = {"id": f"ovr_{self._made}"}
        row |= {"policy": self._known(slug), "limit": name, "quota": quota, "burst": burst}
        row["ends_at_us"] = None if ends_at is None else _microseconds("ends_at", ends_at)
        row |= {"partition": dict(partition)} if partition else {}
        document = self._projects[project] if token is None else self._tokens[token]
        document = {**document, "overrides": [row, *document["overrides"]]}
        if token is None:
            self._publish_project(document)
        else:
            self._publish_token(token, document)

    def prices(
        self,
        *prices: Mapping[str, object],
        overrides: Sequence[Mapping[str, object]] = (),
        currency: str = "USD",
        learned: Mapping[str, object] | None = None,
        reported_costs: Sequence[str] = (),
    ) -> int:
        """
        Publish all prices of models, in the place of earlier ones, and return their revision.

        Args:
            prices: Each has a pattern as its ``model``, and micros per million tokens as its ``input`` and ``output``.
            overrides: Prices that come before the others.
            currency: Three capital letters.
            learned: What was learned of estimates: ``groups`` of models with five numbers each, in millionths of a
                token, and ``tools`` of providers with the tokens that one use adds.
            reported_costs: Hosts of upstreams whose own costs are charged.
        Raises:
            InvalidDocument: One breaks a rule. The message names the field and the rule.
        """
        lists = {"prices": list(prices), "overrides": list(overrides)}
        further: dict[str, object] = {} if learned is None else {"learned": dict(learned)}
        if reported_costs:
            further["reported_costs"] = list(reported_costs)
        document = {"schema": SCHEMA, "revision": self.revision + 1, "currency": currency, **lists, **further}
        parse_prices(dumps(document))
        return self.publish(prices=(document,))

    def publish(
        self,
        documents: Mapping[str, Document | None] | None = None,
        tokens: Mapping[str, Document | None] | None = None,
        *,
        resets: Sequence[Mapping[str, str]] = (),
        **more: Any,
    ) -> int:
        """
        Publish raw documents without any check, and return the revision.

        Args:
            documents: By field of the hash of documents. None removes a document.
            tokens: By secret. None removes a token.
            resets, more: As in :class:`~enforcement.store_calls.publication.Publication`.
        Raises:
            AssertionError: The store has a later revision, or a follower does not use the new one in time.
        """
        self.revision += 1
        hashed = {digest(secret): document for secret, document in (tokens or {}).items()}
        publication = Publication(
            self.revision, time.time_ns() // 1_000, self._store_id, documents or {}, hashed, resets, **more
        )
        for tag in tags_of(publication.documents):  # Nothing was ever checkpointed, so the store lacks no counters.
            self.client.sadd(self.keys.dirty(tag), WHOLE)
        function, keys, arguments = publish_call(publication, self.keys)
        later = refused_by(self.client.fcall(function, len(keys), *keys, *arguments))
        if later is not None:
            raise AssertionError(f"The store refused revision {self.revision}, since it has revision {later}.")
        self._wait()
        if any(publication.prices):
            self._wait_for_prices()
        return self.revision

    def close(self) -> None:
        """Close the connection to the store."""
        self.client.close()

    def _publish_project(self, document: dict[str, Any]) -> None:
        self._projects[document["slug"]] = document
        self.publish({f"project:{document['id']}": document})

    def _publish_token(self, secret: str, document: dict[str, object]) -> None:
        self._tokens[secret] = document
        self.publish(tokens={secret: document})

    def _known(self, policy: str | None) -> str | None:
        if policy is not None and policy not in self._policies:
            raise ValueError(f"policy: must be published first, got {policy!r}.")
        return None if policy is None else _policy(policy)

    def _wait(self) -> None:
        deadline = time.monotonic() + FOLLOW_SECONDS
        for limiter in self.followers:
            while limiter.revision < self.revision:
                if time.monotonic() > deadline:
                    stats = limiter.stats()
                    raise AssertionError(
                        f"{stats.instance} ({stats.state}) uses revision {stats.revision} in place of {self.revision}."
                    )
                time.sleep(0.001)

    def _wait_for_prices(self) -> None:
        """Wait for the followers that use prices. A wrong document is used by none of them, so this is no error."""
        deadline = time.monotonic() + PRICES_SECONDS
        using = [it._documents for it in self.followers if it._documents.price_revision is not None]
        while time.monotonic() < deadline and any((it.price_revision or 0) < self.revision for it in using):
            time.sleep(0.001)


def _policy(slug: str) -> str:
    return f"pol_{slug}"


def _expiry(expires_at: datetime | None) -> int | None:
    if expires_at is None:
        return None
    expiry_us = _microseconds("expires_at", expires_at)
    if expires_at < datetime.now(UTC) - timedelta(days=1):
        raise ValueError("expires_at: must be less than a day ago. The store deletes older tokens by its own clock.")
    return expiry_us


def _microseconds(name: str, instant: datetime) -> int:
    if instant.tzinfo is None:
        raise ValueError(f"{name}: must have a time zone.")
    return to_us(instant)
