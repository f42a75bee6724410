"""The review of a policy that is given to a token, a project or every request, or taken from them."""

from datetime import datetime

from django.utils import timezone

from controlplane.policies.models import Override, Policy
from controlplane.preview.kinds import EVERYTHING, PROJECT, TOKEN, Caller
from controlplane.projects.models import Project, Token
from controlplane.review.effects import SAME, changes_of
from controlplane.review.reviews import Review

Holder = Token | Project | None
"""A token or project, or None for every request."""


def attachment_review(holder: Holder, former: Policy | None, policy: Policy | None) -> Review:
    """
    Return the review of giving a holder a policy in place of its former one, without a preview.

    Limits of one name are compared, though each policy has counters of its own.
    """
    now = timezone.now()
    present = policy or former
    assert present is not None
    before, after = (limits_of(one) for one in (former, policy))
    changes = changes_of(before, after)
    tokens, project = _concerned(holder, now)
    caller = _caller(holder)
    return Review(
        policy=present,
        changes=[change for change in changes if change.effect != SAME],
        kept=[change.name for change in changes if change.effect == SAME and change.after is not None],
        tokens=tokens,
        projects=[project.slug] if project and tokens else [],
        overrides=_overrides(holder, present),
        is_global=holder is None,
        holder=caller,
        former=former,
        title=_title(holder, former, policy),
    )


def limits_of(policy: Policy | None) -> list[dict[str, object]]:
    """Return the limits of a policy as its record has them, or none."""
    return policy.as_record()["limits"] if policy else []


def _concerned(holder: Holder, now: datetime) -> tuple[int, Project | None]:
    """Return how many live tokens a policy of the holder concerns, and its project."""
    live = Token.objects.live(now)
    if holder is None:
        return live.count(), None
    if isinstance(holder, Token):
        return live.filter(pk=holder.pk).count(), holder.project
    return live.filter(project=holder).count() if holder.active else 0, holder


def _caller(holder: Holder) -> Caller:
    if holder is None:
        return EVERYTHING, ""
    return TOKEN if isinstance(holder, Token) else PROJECT, holder.pk


def _overrides(holder: Holder, policy: Policy) -> int:
    rows = Override.objects.filter(limit__policy=policy)
    if holder is not None:
        rows = rows.filter(token=holder) if isinstance(holder, Token) else rows.filter(project=holder)
    return rows.count()


def _title(holder: Holder, former: Policy | None, policy: Policy | None) -> str:
    if holder is None:
        if policy is None:
            return f"{former} no longer applies to every request"
        return f"{policy} applies to every request" + (f", in place of {former}" if former else "")
    name = f"{'Token' if isinstance(holder, Token) else 'Project'} {holder}"
    if policy is None:
        return f"{name} loses the policy {former}"
    return f"{name} gets the policy {policy}" + (f", in place of {former}" if former else "")
