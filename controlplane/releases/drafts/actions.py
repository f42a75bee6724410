"""What people do to drafts. Admin and API call these functions with an open change."""

import hashlib
from typing import Any

from django.core.exceptions import ValidationError

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.policies.actions import replace_limits
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from controlplane.releases.drafts.models import PolicyDraft
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue

GONE = "The draft is not open any more. Somebody has published or discarded it."
DELETED = "Somebody has just deleted its policy. Open the draft again, as one of a new policy."
OVERTAKEN = "Somebody else has saved the draft meanwhile. Your changes are not saved. Check it and edit it again."


def content_of(policy: Policy, kept: set[str]) -> dict[str, Any]:
    """
    Return what a draft keeps of a policy that was saved in a transaction which is undone afterwards.

    Args:
        kept: The ids of the limits that the policy has without the draft.
    """
    record = policy.as_record()
    fields = {name: record.get(name, {}) for name in PolicyDraft.FIELDS}
    ids = {limit.name: limit.pk for limit in policy.limits.all() if limit.pk in kept}
    return {**fields, "ids": ids}


def lock_project(draft: PolicyDraft) -> None:
    """
    Lock the project of a draft, before its policy and the draft itself.

    The deletion of the project locks them in this order. In another one, each could wait for the other.

    Raises:
        ValidationError: It was deleted since the draft was read, and the draft with it.
    """
    if draft.project_id is None:
        return
    # Without the key, so that tokens of the project can still be issued.
    rows = Project.objects.select_for_update(of=("self",), no_key=True)
    if rows.filter(pk=draft.project_id).first() is None:
        raise ValidationError(GONE)


def save_draft(tx: OpenChange, draft: PolicyDraft, content: dict[str, Any]) -> None:
    """
    Save a new draft, or an open one with another content, with its audit entry. Do nothing if it has that content.

    Raises:
        ValidationError: It is not open any more, somebody has saved it since *draft* was read, or a field breaks a rule
            of the model.
    """
    lock_project(draft)
    former = PolicyDraft.objects.select_for_update(of=("self",)).filter(pk=draft.pk).first()
    if former is not None and not former.is_open:
        raise ValidationError(GONE)
    if former is not None and former.content != draft.content:
        raise ValidationError(OVERTAKEN)
    if former is not None:
        draft.policy = former.policy  # none if that was deleted since
    based_on = draft.policy.version if draft.policy else None
    if former is not None and (former.content, former.based_on) == (content, based_on):
        return
    draft.content, draft.slug, draft.saved_by = content, content["slug"], tx.actor.name[:200]
    draft.based_on = based_on
    draft.full_clean()
    draft.save()
    if former is None:
        tx.created(draft)
    else:
        tx.updated(draft, former.as_record())


def with_free_slug(draft: PolicyDraft) -> str:
    """
    Return the slug of a draft, with a number behind it if another policy has that slug by now.

    The draft then still opens as a form, in which its slug can be changed.
    """
    others = Policy.objects.exclude(pk=draft.policy_key)
    slug, number = draft.content["slug"], 2
    while others.filter(slug=slug).exists():
        slug, number = f"{draft.content['slug'][:58]}-{number}", number + 1
    return slug


def lay_out(tx: OpenChange, draft: PolicyDraft) -> tuple[Policy, dict[str, Any] | None]:
    """
    Save the policy as the draft has it, without the audit entry of the policy, and return it with its former record.

    The record is None for a new policy. Limits that are new have the same ids each time, so that a form of them can be
    posted although what it showed was undone.

    Raises:
        ValidationError: The policy would break a rule of the model, such as a slug that another one has by now.
    """
    lock_project(draft)
    if draft.policy_id:
        policy = (
            Policy.objects.select_for_update(of=("self",)).select_related("project").filter(pk=draft.policy_id).first()
        )
        if policy is None:  # deleted since the draft was read, which now is one of a new policy
            raise ValidationError(DELETED)
        before = policy.as_record()
    else:
        policy, before = Policy(pk=draft.policy_key, project=draft.project), None
    for name in ("slug", "name", "description", "metering"):
        setattr(policy, name, draft.content[name])
    policy.full_clean()
    policy.save()
    kept = set(policy.limits.values_list("pk", flat=True))
    _rename(draft.content.get("ids", {}), policy)
    replace_limits(tx, policy, _limits_of(draft))
    for limit in Limit.objects.filter(policy=policy).exclude(pk__in=kept):
        digest = hashlib.sha256(f"{draft.pk} {limit.name}".encode()).hexdigest()
        Limit.objects.filter(pk=limit.pk).update(id=f"lim_{digest[:26]}")
    return Policy.objects.select_related("project").get(pk=policy.pk), before


def _limits_of(draft: PolicyDraft) -> list[LimitValue]:
    """
    Return the limits of a draft.

    Raises:
        ValidationError: A limit cannot be enforced by the rules of today, which may be newer than the draft.
    """
    try:
        # A rule that is newer than the draft is checked like one that is newer than a document.
        return [LimitValue.from_json(limit, published=True) for limit in draft.content["limits"]]
    except InvalidLimit as exc:
        raise ValidationError(f"A limit cannot be enforced: {exc}") from exc


def _rename(ids: dict[str, str], policy: Policy) -> None:
    """Give those limits of the policy their names in the draft that it names by their ids."""
    present = dict(policy.limits.values_list("pk", "name"))
    renamed = {pk: name for name, pk in ids.items() if pk in present and present[pk] != name}
    taken = {name for pk, name in present.items() if pk not in renamed}
    wanted = {pk: name for pk, name in renamed.items() if name not in taken}
    for pk in wanted:  # two limits may exchange their names
        Limit.objects.filter(pk=pk).update(name=pk)
    for pk, name in wanted.items():
        Limit.objects.filter(pk=pk).update(name=name)


def publish_draft(tx: OpenChange, draft: PolicyDraft, policy: Policy, before: dict[str, Any] | None) -> None:
    """Record the policy that :func:`lay_out` has saved, which publishes it, and close its draft."""
    saved = Policy.objects.get(pk=policy.pk)
    if before is None:
        tx.created(saved)
    elif before != saved.as_record():
        tx.updated(saved, before)
    PolicyDraft.give_back(saved)  # this one, and others of a policy that was deleted and now exists again
    draft.policy = saved
    _set_state(tx, draft, PolicyDraft.PUBLISHED, "publish")


def discard_draft(tx: OpenChange, draft: PolicyDraft) -> None:
    """
    Close a draft without publishing it. It can be opened again.

    Raises:
        ValidationError: It is not open any more.
    """
    if not draft.is_open:
        raise ValidationError(GONE)
    _set_state(tx, draft, PolicyDraft.DISCARDED, "discard")


def reopen_draft(tx: OpenChange, draft: PolicyDraft) -> None:
    """Open a draft again that was discarded, or that was published, for instance after its publication was undone."""
    _set_state(tx, draft, PolicyDraft.OPEN, "reopen")


def _set_state(tx: OpenChange, draft: PolicyDraft, state: str, deed: str) -> None:
    before = draft.as_record()
    draft.state = state
    draft.save(update_fields=["state", "updated_at"])
    tx.record(f"policydraft.{deed}", draft, before=before, after=draft.as_record())
