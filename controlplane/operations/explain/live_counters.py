"""The present counters of a token or project, read and reset with the code of the enforcement library."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import redis
from django.conf import settings
from django.db import DatabaseError, transaction
from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.core import store
from controlplane.core.transactions import snapshot
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing import compile
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.usage import checkpoints
from enforcement.model import documents
from enforcement.model.documents import Policy
from enforcement.model.instants import to_us
from enforcement.model.strict_json import dumps
from enforcement.plan import rules
from enforcement.store.client import STORE_ERRORS, with_library
from enforcement.store_calls import inspection


class Forgotten(LookupError):
    """Raised for a holder that is deleted by now, or a token that expired so long ago that enforcers do not know it."""


@dataclass(frozen=True, slots=True)
class HolderDocuments:
    """The present documents that apply to a token or to a whole project."""

    project: documents.ProjectDocument
    token: documents.TokenDocument | None
    policies: dict[str, Policy]
    global_policy: str | None
    now: datetime

    @classmethod
    def of(cls, holder: Token | Project, now: datetime) -> "HolderDocuments":
        """
        Return new documents as enforcers have them for *holder*, compiled from SQL.

        Raises:
            Forgotten: The holder is deleted by now, or is a token that enforcers no longer know.
        """
        with snapshot():
            return cls._of(holder, now)

    @classmethod
    def _of(cls, holder: Token | Project, now: datetime) -> "HolderDocuments":
        token = _token(holder, now) if isinstance(holder, Token) else None
        pk = token.project if token else holder.pk
        compiled = compile.documents([("project", pk), ("global", "")])
        document, for_all = compiled[f"project:{pk}"], compiled["global"]
        if document is None or for_all is None:
            raise Forgotten
        project, everywhere = documents.parse_project(dumps(document)), for_all["policy"]
        subject = rules.Subject(project, token, {}, everywhere)
        attached = {policy for *_, policy in subject.attached() if policy}
        return cls(project, token, compile.policies(attached), everywhere, now)

    def counters(self, client: redis.Redis) -> list[inspection.LiveCounter]:
        """Return the state of every limit that applies to the holder, or raise one of STORE_ERRORS."""
        fleet = max(1, Instance.objects.running(self.now).count())
        look = partial(
            inspection.live_counters, client, store.keys(), self.as_subject(), now_us=self._now_us(), fleet=fleet
        )
        return with_library(client, look)

    def scope_of(self, policy_id: str) -> str | None:
        """
        Return "token", "project", "anonymous" or "global", where a policy is attached first, or None if it does not
        apply.

        If it is attached at several of them, return the first. If it does not apply to this holder, return None.
        """
        places = [scope for scope, *_, policy in self.as_subject().attached() if policy == policy_id]
        return next((scope for scope in ("token", "project", "anonymous", "global") if scope in places), None)

    def has_one_counter(self, limit: Limit) -> bool | None:
        """Return whether a limit has one counter for all requests of the holder, or None if it does not apply."""
        found = rules.rules_of(self.as_subject(), self._now_us())
        named = [rule for rule in found if (rule.policy.id, rule.limit.name) == (limit.policy_id, limit.name)]
        return named[0].has_one_counter if named else None

    def narrowed(self, policy_id: str) -> "HolderDocuments":
        """
        Return a copy without any policy of the places after ``scope_of()``, so that this one is attached only once.

        So a reset for a token does not reset a counter that others share.
        """
        scope = self.scope_of(policy_id)
        project = replace(self.project, policy=None) if scope == "token" else self.project
        return replace(self, project=project, global_policy=self.global_policy if scope == "global" else None)

    def reset(self, client: redis.Redis, limit: Limit | None) -> inspection.Reset:
        """
        Delete the counters of one limit, or of all limits that only the holder has, and return their number in a Reset.
        Raises one of STORE_ERRORS.
        """
        subject = self.narrowed(limit.policy_id) if limit else self
        value, now_us, name = subject.as_subject(), self._now_us(), str(limit) if limit else None
        return with_library(
            client, partial(inspection.reset_counters, client, store.keys(), value, now_us=now_us, limit=name)
        )

    def as_subject(self) -> rules.Subject:
        """Return the documents as a new Subject of the library."""
        return rules.Subject(self.project, self.token, self.policies, self.global_policy)

    def _now_us(self) -> int:
        return to_us(self.now)


def client() -> redis.Redis:
    """Return the shared client for requests, with a short timeout because a person waits."""
    return store.connection(settings.PUBLISH_TIMEOUT_SECONDS)


def counters_of(holder: Token | Project) -> list[inspection.LiveCounter]:
    """
    Return the state of the counters of every limit that applies to a token or to a whole project. Nothing is charged.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
        Forgotten: The holder is a token that enforcers no longer know.
    """
    return HolderDocuments.of(holder, timezone.now()).counters(client())


class ResetUnfinished(Exception):
    """
    Raised after the commit of a reset if the store or the database became unavailable then.

    Counters may not be deleted. The audit has an entry that says so. Another reset does what is missing.
    """


@dataclass(slots=True)
class Resetting:
    """
    A reset that is part of an open change.

    Attributes:
        count: How many counters were deleted. None before the commit, which comes first.
    """

    count: int | None = None


def reset(tx: OpenChange, holder: Token | Project, limit: Limit | None = None) -> Resetting:
    """
    Record a reset of one limit or all own limits of *holder*, and delete the counters right after the commit.

    So no counter is deleted without an audit entry, even if the commit fails. Then the change is published, upon which
    enforcers drop the denials that they remember.

    Returns:
        A new object, which has the number of deleted counters after the change.
    Raises:
        One of STORE_ERRORS: The store is unavailable. The exception must end the caller's change, so that nothing is
            recorded.
        Forgotten: The holder is a token that enforcers no longer know.
        ResetUnfinished: Raised by the end of the change: it is recorded, but not finished.
    """
    record_reset(tx, holder, limit)
    subject, done = HolderDocuments.of(holder, timezone.now()), Resetting()
    subject.counters(client())  # a store that is unavailable already must not leave an audit entry
    transaction.on_commit(lambda: _delete(subject, holder, limit, done, tx))
    return done


def _delete(
    subject: HolderDocuments, holder: Token | Project, limit: Limit | None, done: Resetting, tx: OpenChange
) -> None:
    """Delete the counters of a recorded reset, or record that this failed and raise ResetUnfinished."""
    try:
        found = subject.reset(client(), limit)
        checkpoints.reset(found)
    except (*STORE_ERRORS, DatabaseError) as exc:
        with suppress(DatabaseError):
            tx.record("counters.reset_unfinished", holder, before=None, after={"limit": limit and str(limit)})
        raise ResetUnfinished from exc
    done.count = found.count


def record_reset(tx: OpenChange, holder: Token | Project, limit: Limit | None = None) -> None:
    """Write the audit entry and the outbox entry of a reset, through which enforcers learn of it."""
    project = holder.project_id if isinstance(holder, Token) else holder.pk
    token = holder.pk if isinstance(holder, Token) else None
    tx.record("counters.reset", holder, before=None, after={"limit": limit and str(limit)})
    named = {"project": project, "token": token} if token else {"project": project}
    tx.touch("reset", json.dumps(named, sort_keys=True))


def _token(token: Token, now: datetime) -> documents.TokenDocument:
    document = compile.tokens([token.digest], now)[token.digest]
    if document is None:
        raise Forgotten
    return documents.parse_token(dumps(document))
