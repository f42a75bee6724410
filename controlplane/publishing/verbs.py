"""
What people do to more than one row. Admin, API and commands call these with an open change, and nothing else does it.

    with change(actor=actor, reason=reason) as tx:
        token, secret = verbs.issue_token(tx, project=project, name="ci")
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.policies.models import Limit, Override, Policy
from controlplane.projects.models import ManagementKey, Project, Token
from controlplane.publishing.changes import Change
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.limits import Policy as PolicyValue


def issue_token(tx: Change, **fields: Any) -> tuple[Token, str]:
    """
    Issue a token (project=, name=, policy=, expires_at=); return it and its secret, which is shown once.

    Raises:
        ValidationError: A field breaks a rule of the model.
    """
    token, secret = Token.objects.issue(**fields)
    tx.created(token)
    return token, secret


def rotate_token(tx: Change, token: Token, overlap_seconds: int = 0) -> tuple[Token, str]:
    """
    Replace a token; the old one goes on for *overlap_seconds*, and is revoked at once with 0.

    Raises:
        ValidationError: The token is revoked or expired, or the overlap is not 0 to 30 days.
    """
    before = token.as_record()
    issued, secret = Token.objects.rotate(token, overlap_seconds)
    tx.record("token.rotate", token, before=before, after={**token.as_record(), "replaced_by": issued.pk})
    tx.created(issued)
    return issued, secret


def revoke_token(tx: Change, token: Token) -> None:
    """Refuse the token from now on, everywhere; of a token that is revoked already nothing changes."""
    if token.revoked_at is None:
        before, now = token.as_record(), timezone.now()
        token.retire(now, now)
        tx.record("token.revoke", token, before=before, after=token.as_record())


def issue_management_key(tx: Change, **fields: Any) -> tuple[ManagementKey, str]:
    """
    Issue a key for REST (name=, scopes=, projects=, expires_at=); return it and its secret, which is shown once.

    Raises:
        ValidationError: A scope is unknown or a field breaks a rule of the model.
    """
    key, secret = ManagementKey.objects.issue(**fields)
    tx.created(key)
    return key, secret


def revoke_management_key(tx: Change, key: ManagementKey) -> None:
    """Refuse the key from now on; of one that is revoked already nothing changes."""
    if key.revoked_at is None:
        before = key.as_record()
        key.revoke(timezone.now())
        tx.record("managementkey.revoke", key, before=before, after=key.as_record())


def set_global_policy(tx: Change, policy: Policy | None) -> None:
    """
    Let *policy*, or none, fall on every request.

    Raises:
        ValidationError: The policy belongs to a project.
    """
    for former in Policy.objects.filter(is_global=True).exclude(pk=policy and policy.pk):
        _set_global(tx, former, False)
    if policy and not policy.is_global:
        _set_global(tx, policy, True)


def _set_global(tx: Change, policy: Policy, is_global: bool) -> None:
    before = policy.as_record()
    policy.is_global = is_global
    policy.full_clean()
    policy.save(update_fields=["is_global", "updated_at"])
    tx.record("global.set", policy, before=before, after=policy.as_record())


def replace_limits(tx: Change, policy: Policy, values: Sequence[LimitValue]) -> None:
    """
    Give *policy* exactly these limits, in this order. One that keeps its name keeps its row, and so its overrides.

    The caller records the change of the policy: ``before = policy.as_record()`` first, ``tx.updated`` or
    ``tx.created`` afterwards.

    Raises:
        ValidationError: There are more than 32, two have one name, or a limit breaks a rule of the model.
    """
    try:
        PolicyValue(policy.pk, policy.slug, tuple(values))
    except InvalidLimit as exc:
        raise ValidationError({exc.field: exc.reason}) from exc
    names = {value.name for value in values}
    kept = {limit.name: limit for limit in policy.limits.all()}
    for name in kept.keys() - names:
        _remove_limit(tx, kept[name])
    for position, value in enumerate(values):
        limit = kept.get(value.name) or Limit(policy=policy)
        limit.position = position
        limit.assign(value)
        limit.full_clean()
        limit.save()


def _remove_limit(tx: Change, limit: Limit) -> None:
    """The holders of its overrides are published anew: their documents name the limit."""
    for override in limit.dependents():
        for kind, object_id in override.touches():
            tx.touch(kind, object_id)
    limit.delete()


def save_override(tx: Change, override: Override) -> None:
    """
    Save a new or changed override.

    Raises:
        ValidationError: It has no holder, two of them, or numbers that its limit does not allow.
    """
    former = Override.objects.filter(pk=override.pk).first()
    if former is None:
        override.created_by = tx.actor.name[:200]
    override.full_clean()
    override.save()
    if former is None:
        tx.created(override)
        return
    for kind, object_id in former.touches():  # it may have had another holder
        tx.touch(kind, object_id)
    tx.updated(override, former.as_record())


def end_overrides(tx: Change, now: datetime) -> int:
    """Delete the overrides whose end has come and return how many; enforcers ignored them from that moment."""
    ended = list(Override.objects.filter(ends_at__lte=now).select_related("limit__policy", "token", "project"))
    for override in ended:
        tx.delete(override)
    return len(ended)


def reset_counters(tx: Change, holder: Token | Project, limit: Limit | None = None) -> None:
    """Forget what *holder* has used, of one limit or of all; enforcers are told through the change log."""
    project = holder.project_id if isinstance(holder, Token) else holder.pk
    token = holder.pk if isinstance(holder, Token) else None
    tx.record("counters.reset", holder, before=None, after={"limit": limit and str(limit)})
    told = {"project": project, "token": token} if token else {"project": project}
    tx.touch("reset", json.dumps(told, sort_keys=True))
