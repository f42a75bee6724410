"""What limits have counted so far, read and reset by enforcement's own code: the same keys, the same arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import redis
from django.conf import settings
from django.utils import timezone

from controlplane.fleet.models import Instance
from controlplane.policies.models import Limit
from controlplane.projects.models import Project, Token
from controlplane.publishing import compile, store, verbs
from controlplane.publishing.changes import Change
from controlplane.usage import checkpoints
from enforcement.control import inspection
from enforcement.model import documents
from enforcement.model.limits import Policy
from enforcement.plan import binding
from enforcement.store.client import is_unknown_function, load_library


class Forgotten(LookupError):
    """The token expired so long ago that enforcers no longer know it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What applies to a token, or to a project as a whole, as SQL has it now."""

    project: documents.Project
    token: documents.Token | None
    policies: dict[str, Policy]
    global_policy: str | None
    now: datetime

    @classmethod
    def of(cls, holder: Token | Project, now: datetime) -> "Subject":
        """
        Compile what enforcers are told of *holder*.

        Raises:
            Forgotten: It is a token that enforcers no longer know.
        """
        token = _token(holder, now) if isinstance(holder, Token) else None
        name = f"project:{token.project if token else holder.pk}"
        compiled = compile.documents([tuple(name.split(":")), ("global", "")])
        project = documents.parse_project(documents.dumps(compiled[name]))
        everywhere = compiled["global"]["policy"]
        attached = {everywhere, project.policy, token and token.policy} - {None}
        found = compile.documents(("policy", pk) for pk in attached).values()
        policies = [documents.parse_policy(documents.dumps(document)) for document in found if document]
        return cls(project, token, {policy.id: policy for policy in policies}, everywhere, now)

    def counters(self, client: redis.Redis) -> list[inspection.LiveCounter]:
        """Read every counter. Raises one of STORE_ERRORS."""
        fleet = max(1, Instance.objects.running(self.now).count())
        look = partial(
            inspection.live_counters, client, store.keys(), self._as_value(), now_us=self._now_us(), fleet=fleet
        )
        return _with_library(client, look)

    def scope_of(self, policy_id: str) -> str | None:
        """Say what a policy is attached to: the token, else the project, else everything; None: to nothing here."""
        attached = {
            "token": self.token and self.token.policy,
            "project": self.project.policy,
            "global": self.global_policy,
        }
        return next((scope for scope, policy in attached.items() if policy == policy_id), None)

    def narrowed(self, policy_id: str) -> "Subject":
        """Leave a policy that is attached more than once at the closest place: what others share stays as it is."""
        scope = self.scope_of(policy_id)
        project = replace(self.project, policy=None) if scope == "token" else self.project
        return replace(self, project=project, global_policy=self.global_policy if scope == "global" else None)

    def reset(self, client: redis.Redis, limit: Limit | None) -> inspection.Reset:
        """Delete the counters of one limit, or of all that are the holder's own. Raises one of STORE_ERRORS."""
        subject = self.narrowed(limit.policy_id) if limit else self
        value, now_us, name = subject._as_value(), self._now_us(), limit and str(limit)
        return _with_library(
            client, partial(inspection.reset_counters, client, store.keys(), value, now_us=now_us, limit=name)
        )

    def _as_value(self) -> binding.Subject:
        return binding.Subject(self.project, self.token, self.policies, self.global_policy)

    def _now_us(self) -> int:
        return compile.microseconds(self.now) or 0


def client() -> redis.Redis:
    """Return the client for a request: somebody is waiting."""
    return store.connection(settings.PUBLISH_TIMEOUT_SECONDS)


def counters_of(holder: Token | Project) -> list[inspection.LiveCounter]:
    """
    Read every limit that falls on a token, or on a project as a whole. Nothing is charged.

    Raises:
        One of STORE_ERRORS: The store is away.
        Forgotten: As above.
    """
    return Subject.of(holder, timezone.now()).counters(client())


def reset(tx: Change, holder: Token | Project, limit: Limit | None = None) -> int:
    """
    Forget what *holder* has used, of one limit or of all that are its own; return how many counters there were.

    Enforcers that remember something are told when the change is published.

    Raises:
        One of STORE_ERRORS: The store is away; the caller's change ends with this, and nothing is recorded.
        Forgotten: As above.
    """
    verbs.reset_counters(tx, holder, limit)
    done = Subject.of(holder, timezone.now()).reset(client(), limit)
    checkpoints.reset(done)
    return done.count


def _token(token: Token, now: datetime) -> documents.Token:
    document = compile.tokens([token.digest], now)[token.digest]
    if document is None:
        raise Forgotten
    return documents.parse_token(documents.dumps(document))


def _with_library(store_client: redis.Redis, ask: Callable[[], Any]) -> Any:
    """Ask again, once, if the store lost the functions."""
    try:
        return ask()
    except redis.ResponseError as exc:
        if not is_unknown_function(exc):
            raise
        load_library(store_client)
        return ask()
