"""Changes of policies and overrides. Admin, API and tasks call these functions with an open change."""

from collections.abc import Sequence
from datetime import datetime

from django.core.exceptions import ValidationError

from controlplane.policies.models import Limit, Override, Policy
from controlplane.publishing.changes import Change
from enforcement.limits import InvalidLimit
from enforcement.limits import Limit as LimitValue
from enforcement.limits import Policy as PolicyValue


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
