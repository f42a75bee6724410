"""What each kind of object has to become, so that it is again what it was before a change."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import connection, models
from django.utils import timezone

from controlplane.changes.words.change import ObjectChange
from controlplane.changes.words.fields import Record
from controlplane.changes.words.rebase import rebased
from controlplane.changes.words.words import label_of
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.policies.names import POLICIES
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.writing import FIELDS, limit_named

Undone = tuple[ObjectChange | None, list[str]]
"""What has to become of an object, or None if it is as it was already, and what stays nevertheless, in sentences."""


def _locked(rows: models.QuerySet) -> models.QuerySet:
    """Return the query with a lock of its rows within a transaction. A page that only shows a plan has none."""
    return rows.select_for_update(of=("self",)) if connection.in_atomic_block else rows


def undo_policy(done: ObjectChange, coming: set[str]) -> Undone:
    policy = _locked(Policy.objects.filter(pk=done.pk)).first()
    if done.before is None:
        return None, [f"Policy {done.label} was created, and stays. You can delete it on its page."]
    if done.after is None:
        if policy is not None:
            return None, [f"Policy {done.label} was deleted, and exists again."]
        owner = done.before["project"]
        if owner and not Project.objects.filter(pk=owner).exists():
            return None, [f"Policy {done.label} stays deleted, because its project is."]
        return _to(done, None, done.before, owner), []
    if policy is None:
        return None, [f"Policy {done.label} stays deleted, as it was since."]
    now = policy.as_record()
    wanted, kept = rebased(done, now, FIELDS[done.kind])
    return _to(done, now, wanted, policy.project_id), kept


def _to(done: ObjectChange, now: Record | None, wanted: Record | None, project: str | None) -> ObjectChange | None:
    """Return what becomes of the object of a change, or None if it is as it is wanted already."""
    return ObjectChange(done.kind, done.pk, done.label, now, wanted, project) if wanted != now else None


def _keep_deleted(done: ObjectChange, wanted: dict[str, Any], now: Record, coming: set[str]) -> list[str]:
    """Keep the present policies in place of those that are deleted by now, and say so in sentences."""
    kept = []
    for name in POLICIES:
        pk = wanted.get(name)
        if pk in (None, now.get(name), *coming) or Policy.objects.filter(pk=pk).exists():
            continue
        wanted[name] = now[name]
        kept.append(f"{label_of(done.kind, (name,), now)} of {done.label} stays, because the former one is deleted.")
    return kept


def undo_project(done: ObjectChange, coming: set[str]) -> Undone:
    project = _locked(Project.objects.filter(pk=done.pk)).first()
    if done.before is None:
        return None, [f"Project {done.label} was created, and stays. You can delete it on its page."]
    if project is None:
        return None, [f"Project {done.label} stays deleted, because its tokens are."]
    now = project.as_record()
    wanted, kept = rebased(done, now, FIELDS[done.kind])
    kept += _keep_deleted(done, wanted, now, coming)
    fixed = any(wanted[name] != now[name] for name in Project.FOR_OPERATORS)
    return _to(done, now, wanted, None if fixed else project.pk), kept


def undo_token(done: ObjectChange, coming: set[str]) -> Undone:
    token = _locked(Token.objects.filter(pk=done.pk)).first()
    if done.before is None:
        return None, [f"Token {done.label} was created, and stays. You can revoke it on its page."]
    if token is None:
        return None, [f"Token {done.label} stays deleted, because its secret is."]
    if not token.is_live:
        return None, [f"Token {done.label} stays {token.status}. Issue a new one, which has a new secret."]
    now = token.as_record()
    wanted, kept = rebased(done, now, FIELDS[done.kind])
    kept += _keep_deleted(done, wanted, now, coming)
    if wanted["expires_at"] != now["expires_at"] and _is_past(wanted["expires_at"]):
        wanted["expires_at"] = now["expires_at"]
        kept.append(f"End of {done.label} stays, because the former end is over.")
    return _to(done, now, wanted, token.project_id), kept


def undo_override(done: ObjectChange, coming: set[str]) -> Undone:
    rows = Override.with_ended.filter(pk=done.pk).select_related("limit__policy", "token", "project")
    override = _locked(rows).first()
    is_live = override is not None and override.ended_at is None
    if done.before is None:
        if override is None or not is_live:
            return None, [f"The override {done.label} is over."]
        return _to(done, override.as_record(), None, _owner(override, override.limit)), []
    if done.after is None or done.after.get("ended_at"):
        return _restore_override(done, coming)
    if override is None or not is_live:
        return None, [f"The override {done.label} is over."]
    now = override.as_record()
    wanted, kept = rebased(done, now, FIELDS[done.kind])
    if wanted["ends_at"] != now["ends_at"] and _is_past(wanted["ends_at"]):
        wanted["ends_at"] = now["ends_at"]
        kept.append(f"End of the override {done.label} stays, because the former end is over.")
    becomes_endless = wanted["ends_at"] is None and now["ends_at"] is not None
    owner = None if becomes_endless else _owner(override, override.limit)
    return _to(done, now, wanted, owner), kept


def _owner(override: Override, limit: Limit | None) -> str | None:
    """
    Return the project whose editors may change an override, or None if its limit is shared, as that is for operators.

    Without the limit, which then comes back by the same undo, its policy says the same.
    """
    if limit is not None and limit.policy.project_id is None:
        return None
    return override.audited_project(None, None)


def _restore_override(done: ObjectChange, coming: set[str]) -> Undone:
    """Return how a deleted or ended override begins again, as a new row."""
    record = dict(done.before or {})
    token = Token.objects.filter(pk=record["token"]).first() if record["token"] else None
    project = Project.objects.filter(pk=record["project"]).first() if record["project"] else None
    limit = limit_named(record["limit"])
    if not (limit or record["limit"] in coming) or not (token or project) or _is_past(record["ends_at"]):
        return None, [f"The override {done.label} is over."]
    values = record.get("partition", "")
    if limit and Override.objects.filter(limit=limit, token=token, project=project, partition=values).exists():
        return None, [f"The override {done.label} stays ended, because there is another one since."]
    # Only operators give an override no end.
    owner = _owner(Override(token=token, project=project), limit) if record["ends_at"] else None
    return ObjectChange(done.kind, done.pk, done.label, None, record, owner), []


def _is_past(text: str | None) -> bool:
    return text is not None and datetime.fromisoformat(text) <= timezone.now()


# In the order in which objects are restored, because later ones name earlier ones.
# Each gets the names of the limits that come back by the same undo, too.
HANDLERS: dict[str, Callable[[ObjectChange, set[str]], Undone]] = {
    "policy": undo_policy,
    "project": undo_project,
    "token": undo_token,
    "override": undo_override,
}
