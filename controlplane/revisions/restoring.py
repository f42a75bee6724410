"""How each kind of object is changed back to what it was before a change."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connection, models
from django.utils import timezone

from controlplane.changes.differences import limit_of
from controlplane.changes.names import POLICIES
from controlplane.changes.words import label_of
from controlplane.drafts.models import PolicyDraft
from controlplane.policies.actions import end_override, replace_limits, save_override, set_global_policy
from controlplane.policies.models import Limit, Override, Policy
from controlplane.projects.models import Project, Token
from controlplane.publishing.changes import OpenChange
from controlplane.publishing.rollback import deleted_policy
from enforcement.model import limit_fields
from enforcement.model.limits import Limit as LimitValue

Record = dict[str, Any]
MISSING = object()
# What each kind of object gets back. Other fields say what happened to it, such as that it was revoked.
FIELDS = {
    "policy": ("slug", "name", "description", "metering", "managed_by", "is_global"),
    "project": ("slug", "name", *POLICIES, "active", "partition_cap", "time_zone", "managed_by"),
    "token": ("name", "policy", "labels", "expires_at"),
    "override": ("partition", "quota", "burst", "reason", "ends_at", "managed_by"),
}
# Fields that a record leaves out if they are empty.
EMPTY: Record = {"labels": {}, "managed_by": "", "partition": ""}
# Fields that differ after every change, or whose parts are looked at one by one.
UNSAID = ("id", "version", "limits")


@dataclass(frozen=True, slots=True)
class Span:
    """What a change did to one object, by its records before and after."""

    type: str
    pk: str
    label: str
    before: Record | None
    after: Record | None
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of a span as a whole, in sentences."""

    sentences: list[str]


@dataclass(frozen=True, slots=True)
class Restored:
    """
    How a span is undone.

    Attributes:
        project: The id of the project whose editors may do that. None stands for operators, as for a shared object.
        now: The present record, or None if there is no row.
        wanted: The record that the row gets, or None if it is ended.
        act: Does that. None if everything is as it was already.
        kept: What stays nevertheless, in sentences.
    """

    project: str | None
    now: Record | None
    wanted: Record | None
    act: Callable[[OpenChange], None] | None
    kept: list[str] = field(default_factory=list)


def _locked(rows: models.QuerySet) -> models.QuerySet:
    """Return the query with a lock of its rows within a transaction. A page that only shows a plan has none."""
    return rows.select_for_update(of=("self",)) if connection.in_atomic_block else rows


def undo_policy(span: Span, coming: set[str]) -> Kept | Restored:
    policy = _locked(Policy.objects.filter(pk=span.pk)).first()
    if span.before is None:
        return Kept([f"Policy {span.label} was created, and stays. You can delete it on its page."])
    if span.after is None:
        if policy is not None:
            return Kept([f"Policy {span.label} was deleted, and exists again."])
        restored = deleted_policy({"id": span.pk, "slug": span.before["slug"]})
        if restored is None:
            return Kept([f"Policy {span.label} stays deleted, because its project is."])
        return Restored(restored.project_id, None, span.before, partial(_write_policy, restored, span.before))
    if policy is None:
        return Kept([f"Policy {span.label} stays deleted, as it was since."])
    now = policy.as_record()
    wanted, kept = merged(span, now)
    limits, kept_limits = merged_limits(span.before["limits"], span.after["limits"], now["limits"], span.label)
    wanted["limits"] = limits
    act = partial(_write_policy, policy, wanted) if wanted != now else None
    return Restored(policy.project_id, now, wanted, act, [*kept, *kept_limits])


def merged(span: Span, now: Record) -> tuple[Record, list[str]]:
    """Return the present record with what the span has changed as it was before, and what stays, in sentences."""
    before, after = span.before or {}, span.after or {}
    wanted, kept = _merge(before, after, now, FIELDS[span.type])
    labels = partial(_label, span.type, now)
    said = [f"{labels(name)} of {span.label} stays, because it was changed since." for name in kept]
    others = dict.fromkeys([*before, *after]).keys() - {*FIELDS[span.type], *UNSAID}
    changed = [name for name in sorted(others) if before.get(name) != after.get(name)]
    return wanted, said + [f"{labels(name)} of {span.label} is not undone here." for name in changed]


def merged_limits(
    before: list[Record], after: list[Record], now: list[Record], of: str
) -> tuple[list[Record], list[str]]:
    """Return the present limits of a policy with what was changed as it was before, and what stays, in sentences."""
    old, new, present = ({limit["name"]: limit for limit in limits} for limits in (before, after, now))
    wanted, changed = _merge(old, new, present, dict.fromkeys([*old, *new]))
    kept = []
    for name in changed:
        if not (name in old and name in new and name in present):
            kept.append(f"{of}/{name} stays, because it was changed since.")
            continue
        fields = dict.fromkeys([*old[name], *new[name]])
        wanted[name], left = _merge(old[name], new[name], present[name], fields)
        labels = [limit_fields.label_of((one,), present[name]) for one in left]
        kept += [f"{label} of {of}/{name} stays, because it was changed since." for label in labels]
    # A limit that comes back comes back to its place.
    order = {name: place for place, name in enumerate(dict.fromkeys([*old, *wanted]))}
    return sorted(wanted.values(), key=lambda limit: order[limit["name"]]), kept


def _label(kind: str, record: Record, name: str) -> str:
    return label_of(kind, (name,), record)


def _merge(old: Record, new: Record, present: Record, names: Iterable[str]) -> tuple[Record, list[str]]:
    """
    Return the present record with what differs between two others as in the first, and the names of what stays.

    A member stays if it is neither as it was before nor as it was afterwards.
    """
    wanted, kept = dict(present), []
    for name in names:
        former, left, is_now = (record.get(name, MISSING) for record in (old, new, present))
        if former in (left, is_now):
            continue
        if is_now == left:
            _set(wanted, name, former)
        else:
            kept.append(name)
    return wanted, kept


def _set(record: dict[str, Any], name: str, value: Any) -> None:
    """Set a member of a record, or remove it if it was missing before."""
    if value is MISSING:
        record.pop(name, None)
    else:
        record[name] = value


def _write_policy(policy: Policy, wanted: Record, tx: OpenChange) -> None:
    if not policy._state.adding:
        policy = Policy.objects.get(pk=policy.pk)  # a step before this one may have changed which policy is global
    before = None if policy._state.adding else policy.as_record()
    policy.slug, policy.name, policy.description = wanted["slug"], wanted["name"], wanted["description"]
    policy.metering, policy.managed_by = wanted.get("metering", {}), wanted.get("managed_by", "")
    policy.full_clean(exclude=["name", "description"])  # an old text may break a younger rule
    policy.save()
    if before is None:
        PolicyDraft.give_back(policy)
    values = [LimitValue.from_json(limit_of(limit), published=True) for limit in wanted["limits"]]
    replace_limits(tx, policy, values, restored=True)
    policy = Policy.objects.get(pk=policy.pk)
    if before is None or before != policy.as_record():
        tx.record("policy.undo", policy, before=before, after=policy.as_record())
    if wanted["is_global"] != policy.is_global:
        set_global_policy(tx, policy if wanted["is_global"] else None)


def _keep_deleted(span: Span, wanted: Record, now: Record, coming: set[str]) -> list[str]:
    """Keep the present policies in place of those that are deleted by now, and say so in sentences."""
    kept = []
    for name in POLICIES:
        pk = wanted.get(name)
        if pk in (None, now.get(name), *coming) or Policy.objects.filter(pk=pk).exists():
            continue
        wanted[name] = now[name]
        kept.append(f"{_label(span.type, now, name)} of {span.label} stays, because the former one is deleted.")
    return kept


def undo_project(span: Span, coming: set[str]) -> Kept | Restored:
    project = _locked(Project.objects.filter(pk=span.pk)).first()
    if span.before is None:
        return Kept([f"Project {span.label} was created, and stays. You can delete it on its page."])
    if project is None:
        return Kept([f"Project {span.label} stays deleted, because its tokens are."])
    now = project.as_record()
    wanted, kept = merged(span, now)
    kept += _keep_deleted(span, wanted, now, coming)
    act = partial(_write_fields, project, wanted) if wanted != now else None
    fixed = any(wanted[name] != now[name] for name in Project.FOR_OPERATORS)
    return Restored(None if fixed else project.pk, now, wanted, act, kept)


def undo_token(span: Span, coming: set[str]) -> Kept | Restored:
    token = _locked(Token.objects.filter(pk=span.pk)).first()
    if span.before is None:
        return Kept([f"Token {span.label} was created, and stays. You can revoke it on its page."])
    if token is None:
        return Kept([f"Token {span.label} stays deleted, because its secret is."])
    if not token.is_live:
        return Kept([f"Token {span.label} stays {token.status}. Issue a new one, which has a new secret."])
    now = token.as_record()
    wanted, kept = merged(span, now)
    kept += _keep_deleted(span, wanted, now, coming)
    if wanted["expires_at"] != now["expires_at"] and _is_past(wanted["expires_at"]):
        wanted["expires_at"] = now["expires_at"]
        kept.append(f"End of {span.label} stays, because the former end is over.")
    act = partial(_write_fields, token, wanted) if wanted != now else None
    return Restored(token.project_id, now, wanted, act, kept)


def _write_fields(row: models.Model, wanted: Record, tx: OpenChange) -> None:
    """Save the fields of a project or token as a record has them."""
    before = row.as_record()
    for name in FIELDS[row._meta.model_name]:
        value = wanted.get(name, EMPTY[name]) if name in EMPTY else wanted[name]
        if name == "expires_at":
            value = _instant(value)
        setattr(row, f"{name}_id" if name in POLICIES else name, value)
    row.full_clean(exclude=[] if before.get("name") != wanted.get("name") else ["name"])
    row.save()
    tx.record(f"{row._meta.model_name}.undo", row, before=before, after=row.as_record())


def undo_override(span: Span, coming: set[str]) -> Kept | Restored:
    rows = Override.with_ended.filter(pk=span.pk).select_related("limit__policy", "token", "project")
    override = _locked(rows).first()
    is_live = override is not None and override.ended_at is None
    if span.before is None:
        if override is None or not is_live:
            return Kept([f"The override {span.label} is over."])
        end = partial(end_override, override=override, now=timezone.now())
        return Restored(_owner(override, override.limit), override.as_record(), None, end)
    if span.after is None or span.after.get("ended_at"):
        return _restore_override(span, coming)
    if override is None or not is_live:
        return Kept([f"The override {span.label} is over."])
    now = override.as_record()
    wanted, kept = merged(span, now)
    if wanted["ends_at"] != now["ends_at"] and _is_past(wanted["ends_at"]):
        wanted["ends_at"] = now["ends_at"]
        kept.append(f"End of the override {span.label} stays, because the former end is over.")
    act = partial(_write_override, override, wanted) if wanted != now else None
    becomes_endless = wanted["ends_at"] is None and now["ends_at"] is not None
    owner = None if becomes_endless else _owner(override, override.limit)
    return Restored(owner, now, wanted, act, kept)


def _owner(override: Override, limit: Limit | None) -> str | None:
    """
    Return the project whose editors may change an override, or None if its limit is shared, as that is for operators.

    Without the limit, which then comes back by the same undo, its policy says the same.
    """
    if limit is not None and limit.policy.project_id is None:
        return None
    return override.project_id or override.token.project_id


def _restore_override(span: Span, coming: set[str]) -> Kept | Restored:
    """Return how a deleted or ended override begins again, as a new row."""
    record = span.before or {}
    token = Token.objects.filter(pk=record["token"]).first() if record["token"] else None
    project = Project.objects.filter(pk=record["project"]).first() if record["project"] else None
    limit = _limit_named(record["limit"])
    if not (limit or record["limit"] in coming) or not (token or project) or _is_past(record["ends_at"]):
        return Kept([f"The override {span.label} is over."])
    values = record.get("partition", "")
    if limit and Override.objects.filter(limit=limit, token=token, project=project, partition=values).exists():
        return Kept([f"The override {span.label} stays ended, because there is another one since."])

    def begin(tx: OpenChange) -> None:
        # Only now, because the limit may have come back by the same undo.
        _write_override(Override(limit=_limit_named(record["limit"]), token=token, project=project), record, tx)

    # Only operators give an override no end.
    owner = _owner(Override(token=token, project=project), limit) if record["ends_at"] else None
    return Restored(owner, None, record, begin)


def _limit_named(name: str) -> Limit | None:
    """Return the limit with a name such as "free/per-day", or None."""
    slug, _, own = name.partition("/")
    return Limit.objects.filter(policy__slug=slug, name=own).select_related("policy").first()


def _write_override(override: Override, wanted: Record, tx: OpenChange) -> None:
    for name in FIELDS["override"]:
        value = wanted.get(name, EMPTY.get(name))
        setattr(override, name, _instant(value) if name == "ends_at" else value)
    save_override(tx, override)


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _is_past(text: str | None) -> bool:
    return text is not None and datetime.fromisoformat(text) <= timezone.now()


# In the order in which objects are restored, because later ones name earlier ones.
# Each gets the names of the limits that come back by the same undo, too.
HANDLERS: dict[str, Callable[[Span, set[str]], Kept | Restored]] = {
    "policy": undo_policy,
    "project": undo_project,
    "token": undo_token,
    "override": undo_override,
}
