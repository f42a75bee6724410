"""Write objects as a change has them, with its audit entries."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import models
from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.differences import limit_of
from controlplane.changes.words.fields import Record
from controlplane.objects.overrides.actions import end_override, save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import replace_limits, set_global_policy
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.drafts.models import PolicyDraft
from enforcement.model.limits import Limit as LimitValue

# What is written of each kind of object. Other fields say what happened to it, such as that it was revoked.
FIELDS: dict[str, tuple[str, ...]] = {
    "policy": ("slug", "name", "description", "metering", "managed_by", "is_global"),
    "project": (
        *("slug", "name", "policy", "anonymous_policy", "token_policy"),
        *("active", "partition_cap", "time_zone", "managed_by"),
    ),
    "token": ("name", "policy", "labels", "expires_at"),
    "override": ("partition", "quota", "burst", "reason", "ends_at", "managed_by"),
}
# Fields that a record leaves out if they are empty, and what makes an empty one.
_EMPTY: dict[str, Callable[[], Any]] = {
    "metering": dict,
    "labels": dict,
    "managed_by": str,
    "partition": str,
}


def write(tx: OpenChange, change: Change, deed: str) -> None:
    """
    Save the objects of *change*, and record each.

    A policy that is not there is created under its id, and gets its drafts back. An override that is not there begins
    anew, and one without a record afterwards ends. Other objects must be there.

    Args:
        deed: What the audit calls it, such as ``undo``.
    Raises:
        ValidationError: A value breaks a rule of the model, such as a slug that another object has by now.
        KeyError: A record lacks a field that is never left out. The open change is to be undone.
    """
    for one in change.objects:
        _WRITERS[one.kind](tx, one, deed)


def _write_policy(tx: OpenChange, one: ObjectChange, deed: str) -> None:
    # Read again, because what was written before it may have changed which policy is global.
    policy = Policy.objects.select_for_update(of=("self",)).filter(pk=one.pk).first()
    before, wanted = policy.as_record() if policy else None, _present(one)
    policy = policy or Policy(pk=one.pk, project_id=wanted["project"])
    _assign(policy, wanted, "is_global")
    policy.full_clean(exclude=["name", "description"])  # an old text may break a younger rule
    policy.save()
    if before is None:
        PolicyDraft.give_back(policy)
    values = [LimitValue.from_json(limit_of(limit), published=True) for limit in wanted["limits"]]
    replace_limits(tx, policy, values, restored=True)
    policy = Policy.objects.get(pk=policy.pk)
    if before is None or before != policy.as_record():
        tx.record(f"policy.{deed}", policy, before=before, after=policy.as_record())
    if wanted["is_global"] != policy.is_global:
        set_global_policy(tx, policy if wanted["is_global"] else None)


def _write_row(tx: OpenChange, one: ObjectChange, deed: str) -> None:
    model: type[Project | Token] = Project if one.kind == "project" else Token
    row = model.objects.select_for_update(of=("self",)).get(pk=one.pk)
    before, wanted = row.as_record(), _present(one)
    _assign(row, wanted)
    row.full_clean(exclude=[] if before["name"] != wanted["name"] else ["name"])
    row.save()
    tx.record(f"{one.kind}.{deed}", row, before=before, after=row.as_record())


def _write_override(tx: OpenChange, one: ObjectChange, deed: str) -> None:
    if one.after is None:
        return end_override(tx, Override.objects.get(pk=one.pk), timezone.now())
    holder = {name: one.after[name] for name in ("token", "project")}
    if one.before is None:
        # Only now, because the limit may have come back by the same change.
        override = Override(limit=limit_named(one.after["limit"]), **{f"{name}_id": pk for name, pk in holder.items()})
    else:
        override = Override.objects.select_related("limit__policy", "token", "project").get(pk=one.pk)
    _assign(override, one.after)
    return save_override(tx, override)


def _assign(row: models.Model, wanted: Record, *without: str) -> None:
    """Give a row the values of a record."""
    for name in FIELDS[str(row._meta.model_name)]:
        if name in without:
            continue
        # A record without any other field is damaged, and nothing is written of it.
        value: Any = _EMPTY[name]() if name in _EMPTY and name not in wanted else wanted[name]
        if name.endswith("_at") and value:
            value = datetime.fromisoformat(value)
        setattr(row, f"{name}_id" if name.endswith("policy") else name, value)


def _present(one: ObjectChange) -> Record:
    assert one.after is not None  # only overrides end
    return one.after


def limit_named(name: str) -> Limit | None:
    """Return the limit with a name such as "free/per-day", or None."""
    slug, _, own = name.partition("/")
    return Limit.objects.filter(policy__slug=slug, name=own).select_related("policy").first()


_WRITERS: dict[str, Callable[[OpenChange, ObjectChange, str], None]] = {
    "policy": _write_policy,
    "project": _write_row,
    "token": _write_row,
    "override": _write_override,
}
