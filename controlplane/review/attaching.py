"""The review of a policy that is given to a token or project, or taken from it."""

from django.utils import timezone

from controlplane.policies.models import Override, Policy
from controlplane.preview.kinds import PROJECT, TOKEN
from controlplane.preview.supposed import Supposed
from controlplane.projects.models import Project, Token
from controlplane.review.effects import SAME, changes_of
from controlplane.review.reviews import Review


def attachment_review(holder: Token | Project, former: Policy | None, policy: Policy | None) -> Review:
    """
    Return the review of giving a holder a policy in place of its former one, without a preview. One may be None.

    Limits of one name are compared, though each policy has counters of its own.
    """
    present = policy or former
    assert present is not None
    changes = changes_of(limits_of(former), limits_of(policy))
    kind = TOKEN if isinstance(holder, Token) else PROJECT
    tokens = _live_tokens(holder)
    project = holder.project if isinstance(holder, Token) else holder
    return Review(
        policy=present,
        changes=[change for change in changes if change.effect != SAME],
        kept=[change.name for change in changes if change.effect == SAME and change.after is not None],
        tokens=tokens,
        projects=[project.slug] if tokens else [],
        overrides=Override.objects.filter(limit__policy=present, **{kind: holder}).count(),
        title=_title(f"{kind.capitalize()} {holder}", former, policy),
        of_whom=str(holder),
        supposed=Supposed(holders=frozenset([(kind, holder.pk)])),
        denied_by={"policy_id": former.pk if former else "-", f"{kind}_id": holder.pk},
    )


def limits_of(policy: Policy | None) -> list[dict[str, object]]:
    """Return the limits of a policy as its record has them, or none."""
    return policy.as_record()["limits"] if policy else []


def _live_tokens(holder: Token | Project) -> int:
    """Return how many live tokens a policy of the holder concerns."""
    live = Token.objects.live(timezone.now())
    if isinstance(holder, Token):
        return live.filter(pk=holder.pk).count()
    return live.filter(project=holder).count() if holder.active else 0


def _title(name: str, former: Policy | None, policy: Policy | None) -> str:
    if policy is None:
        return f"{name} loses the policy {former}"
    return f"{name} gets the policy {policy}" + (f", in place of {former}" if former else "")
