"""Changes of policies. Admin, API and tasks call these functions with an open change."""

from collections.abc import Sequence
from itertools import chain

from django.core.exceptions import ValidationError

from controlplane.changes.change.transaction import BrokenRules, OpenChange
from controlplane.core.transactions import take_turn
from controlplane.objects.policies.models import Limit, Policy
from enforcement.model.documents import Policy as PolicyValue
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue


def lock_global_policy() -> None:
    """
    Lock the choice of the global policy, and the policy that is chosen now, until the end of the transaction.

    Of two changes of it at once, the second then sees the policy that the first has chosen.
    """
    take_turn("global policy")
    Policy.objects.select_for_update().filter(is_global=True).first()


def set_global_policy(tx: OpenChange, policy: Policy | None) -> None:
    """
    Make *policy* the one that applies to every request, in place of the present one, or none for None.

    Raises:
        ValidationError: The policy belongs to a project, or is deleted by now.
    """
    lock_global_policy()
    for former in Policy.objects.filter(is_global=True).exclude(pk=policy and policy.pk):
        _set_global(tx, former, False)
    if policy is None:
        return
    # Locked and read again, because another request may change or delete it.
    chosen = Policy.objects.select_for_update().filter(pk=policy.pk).first()
    if chosen is None:
        message = f"There is no policy {policy.slug!r} any more."
        raise ValidationError({"policy": ValidationError(message, code="does_not_exist")})
    if not chosen.is_global:
        _set_global(tx, chosen, True)


def _set_global(tx: OpenChange, policy: Policy, is_global: bool) -> None:
    before = policy.as_record()
    policy.is_global = is_global
    policy.full_clean()
    policy.save(update_fields=["is_global", "updated_at"])
    tx.record("global.set", policy, before=before, after=policy.as_record())


def create_policies(tx: OpenChange, policies: Sequence[tuple[Policy, Sequence[LimitValue]]]) -> None:
    """
    Save new policies, whose fields are clean, with their limits and audit entries, with few statements.

    Raises:
        BrokenRules: Limits of one or more policies break a rule of :func:`replace_limits`.
    """
    limits = limits_of_new(policies)
    created = Policy.objects.bulk_create([policy for policy, _ in policies])
    Limit.objects.bulk_create(chain.from_iterable(limits))
    # With the limits that are at hand, so that the records need not read them again.
    records = [policy.as_record(own) for policy, own in zip(created, limits, strict=True)]
    tx.record_many("policy.create", zip(created, [None] * len(created), records, strict=True))


def limits_of_new(policies: Sequence[tuple[Policy, Sequence[LimitValue]]]) -> list[list[Limit]]:
    """Return the limits of each new policy, checked and unsaved, or raise BrokenRules as ``create_policies`` does."""
    limits: list[list[Limit]] = []
    broken = {}
    for number, (policy, values) in enumerate(policies):
        try:
            limits.append(_new_limits(policy, values))
        except ValidationError as exc:
            broken[number] = exc
    if broken:
        raise BrokenRules(broken)
    return limits


def _new_limits(policy: Policy, values: Sequence[LimitValue]) -> list[Limit]:
    """Return the limits of a new policy, checked and unsaved, or raise ValidationError."""
    _check_names(policy, values)
    limits = [Limit(policy=policy, position=position) for position in range(len(values))]
    for limit, value in zip(limits, values, strict=True):
        limit.assign(value)
        limit.clean_fields(exclude=["policy"])
        limit.check_alone()
    Limit.check_together(limits)
    return limits


def _check_names(policy: Policy, values: Sequence[LimitValue]) -> None:
    try:
        PolicyValue(policy.pk, policy.slug, tuple(values))
    except InvalidLimit as exc:
        raise ValidationError({exc.field: exc.reason}) from exc


def replace_limits(tx: OpenChange, policy: Policy, values: Sequence[LimitValue], *, restored: bool = False) -> None:
    """
    Replace the limits of *policy* by *values*, in their order.

    A limit that keeps its name keeps its row, and so its overrides. The caller records the change of the policy, with
    ``before = policy.as_record()`` first and ``tx.updated`` or ``tx.created`` afterwards. *restored* is for limits of a
    published document, which may break a rule that is newer than the document.

    Raises:
        ValidationError: There are more than 32 limits, two have the same name, or a limit breaks a rule of the model.
    """
    _check_names(policy, values)
    names = {value.name for value in values}
    present = {limit.name: limit for limit in policy.limits.all()}
    for name in present.keys() - names:
        remove_limit(tx, present[name])
    for position, value in enumerate(values):
        limit = present.get(value.name) or Limit(policy=policy)
        limit.position, limit.restored = position, restored
        limit.assign(value)
        limit.full_clean()
        limit.save()


def copy_policy(tx: OpenChange, policy: Policy, slug: str, name: str) -> Policy:
    """
    Save and return a policy with the same limits and rules for metered requests, which nothing uses yet.

    Raises:
        ValidationError: Another policy has the slug, or the slug or the name breaks a rule of the model.
    """
    fields = {"description": policy.description, "project": policy.project, "metering": policy.metering}
    copied = Policy(slug=slug, name=name, **fields)
    copied.full_clean()
    copied.save()
    replace_limits(tx, copied, [limit.as_value() for limit in policy.limits.all()], restored=True)
    tx.created(copied)
    return copied


def remove_limit(tx: OpenChange, limit: Limit) -> None:
    """Delete a limit with its overrides, which are recorded. The caller records the change of the policy."""
    tx.record_deleted(limit.dependents())
    limit.delete()
