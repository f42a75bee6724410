"""The reviews of a policy that is given to tokens, a project, or its requests without a token, or taken from them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from django.db.models import Count, QuerySet
from django.utils import timezone

from controlplane.changes.words.change import Change, ObjectChange, State
from controlplane.changes.words.describe import sentence
from controlplane.changes.words.effects import ADMITTED, REFUSED, SAME, FieldChange, LimitChange, changes_of
from controlplane.changes.words.fields import Record
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.preview.judging import Unknown
from controlplane.releases.preview.supposed import Supposed
from controlplane.releases.review.labelling import labels_review
from controlplane.releases.review.reviews import Review
from controlplane.traffic.callers.kinds import ANONYMOUS, PROJECT, TOKEN
from enforcement.model.limits import Limit
from enforcement.model.matching import is_label

# Of whom a limit of the policy for them counts the requests together.
WITHOUT = "all requests without a token"
# Without a policy for them, requests without a token are refused.
NONE_PASSES = Limit(name="no-policy", quota=0, window_seconds=60)
# With more tokens, a page would take too long.
MOST_REPLAYED = 5_000
# With more former policies, nobody reads what becomes of each.
MOST_FORMERS = 10
TOO_MANY = f"More than {MOST_REPLAYED:,} tokens are not replayed at once. Choose fewer of them to see it."
ALONE = "This part of the change is not replayed here. Save it alone to see it."


def attachment_review(holder: Token | Project, former: Policy | None, policy: Policy | None) -> Review:
    """
    Return the review of giving a holder a policy in place of its former one, without a preview. One may be None.

    Limits of one name are compared, though each policy has counters of its own.
    """
    kind = TOKEN if isinstance(holder, Token) else PROJECT
    tokens = _live_tokens(holder)
    project = holder.project if isinstance(holder, Token) else holder
    changes = changes_of(limits_of(former), limits_of(policy))
    return replace(
        _review(former, policy, changes),
        tokens=tokens,
        projects=[project.slug] if tokens else [],
        overrides=Override.objects.filter(limit__policy=policy or former, **{kind: holder}).count(),
        title=_title(f"{kind.capitalize()} {holder}", former, policy),
        of_whom=str(holder),
        supposed=Supposed(holders=frozenset([(kind, holder.pk)])),
        denied_by={"policy_id": former.pk if former else "-", f"{kind}_id": holder.pk},
    )


def anonymous_review(project: Project, former: Policy | None, policy: Policy | None) -> Review:
    """Return the review of another policy for the requests without a token of a project, which are refused without."""
    name = f"Requests without a token of {project}"
    changes: Sequence[LimitChange | FieldChange]
    if former and policy:
        title = _title(name, former, policy, verb="get")
        found = changes_of(_without_labels(former), _without_labels(policy))
        changes = [replace(change, holder=WITHOUT) for change in found]
    elif policy:
        title = f"{name} are admitted under the policy {policy}, where a proxy admits them"
        changes = [FieldChange("requests without a token", "refused", _under(policy), ADMITTED)]
    else:
        assert former is not None
        title, changes = (
            f"{name} are refused",
            [FieldChange("requests without a token", _under(former), "refused", REFUSED)],
        )
    return replace(
        _review(former, policy, changes),
        projects=[project.slug] if project.active else [],
        overrides=Override.objects.filter(limit__policy=policy or former, project=project).count(),
        title=title,
        of_whom=str(project),
        supposed=Supposed(holders=frozenset([(ANONYMOUS, project.pk)])),
        judged=_enforced(_without_labels(policy), changes) if policy else [NONE_PASSES],
        denied_by={"policy_id": former.pk if former else "-", "project_id": project.pk, "token_id": ""},
    )


def tokens_review(tokens: QuerySet[Token], policy: Policy | None, now: datetime) -> Review:
    """Return the review of giving many tokens one policy, or none for None, without a preview."""
    chosen = Token.objects.live(now).filter(pk__in=tokens.order_by().values("pk"), project__active=True)
    moved = chosen.exclude(policy=policy).order_by()
    groups = sorted(moved.values_list("policy").annotate(Count("pk")), key=lambda group: -group[1])
    formers = Policy.objects.in_bulk([pk for pk, _ in groups if pk])
    changes = [change for pk, count in groups[:MOST_FORMERS] for change in _of_group(formers.get(pk), policy, count)]
    ids = list(moved.values_list("pk", flat=True)[: MOST_REPLAYED + 1])
    count = sum(number for _, number in groups)
    too_many = [Unknown(f"{count:,} tokens", TOO_MANY)] if count > MOST_REPLAYED else []
    more = [Unknown(f"{len(groups) - MOST_FORMERS:,} more policies", "What they lose is not listed here.")]
    nouns = "1 token" if count == 1 else f"{count:,} tokens"
    gets, loses = ("gets", "loses its policy") if count == 1 else ("get", "lose their policies")
    return replace(
        _review(next(iter(formers.values()), None), policy, changes),
        kept=[],
        tokens=count,
        projects=sorted(Project.objects.filter(tokens__in=moved).distinct().values_list("slug", flat=True)),
        overrides=Override.objects.filter(limit__policy=policy, token__in=moved).count() if policy else 0,
        title=f"{nouns} {gets} the policy {policy}" if policy else f"{nouns} {loses}",
        of_whom=nouns,
        supposed=Supposed(holders=frozenset() if too_many else frozenset((TOKEN, pk) for pk in ids)),
        cannot=[*too_many, *(more if len(groups) > MOST_FORMERS else [])],
        denied_by={"policy_id__in": list(formers), "token_id__in": ids},
        may_be_light=True,
    )


def row_review(row: Token | Project, before: Record, now: datetime) -> Review | None:
    """
    Return the review of what enforcers notice of the change of a row, or None if that is nothing.

    Args:
        row: As it is after the change.
        before: Its record before.
    """
    found = together(_reviews(row, before, now))
    return found and replace(found, change=Change((ObjectChange.of(row, before),), state=State.REVIEWED))


def _reviews(row: Token | Project, before: Record, now: datetime) -> Iterator[Review]:
    fields = [name for name in ("policy", "anonymous_policy") if name in before]
    pairs = {name: (before[name], getattr(row, f"{name}_id")) for name in fields}
    policies = Policy.objects.in_bulk({pk for pair in pairs.values() for pk in pair if pk})
    for name, (former, chosen) in pairs.items():
        if former == chosen or (chosen and chosen not in policies):
            continue  # one that was deleted since the form was checked makes the commit fail, and the form says so
        both = policies.get(former), policies.get(chosen)
        if isinstance(row, Project) and name == "anonymous_policy":
            yield anonymous_review(row, *both)
        else:
            yield attachment_review(row, *both)
    if isinstance(row, Token) and before.get("labels", {}) != row.labels:
        yield labels_review([(row, before.get("labels", {}), row.labels)], now)


def together(reviews: Iterable[Review]) -> Review | None:
    """Return one review of several changes of one row, or None for none. One of them is replayed."""
    reviews = list(reviews)
    needed = [review for review in reviews if review.is_needed]
    if not needed:
        return reviews[0] if reviews else None
    main = next((review for review in needed if review.needs_reason), needed[0])
    others = [review for review in needed if review is not main]
    return replace(
        main,
        changes=[*main.changes, *(change for other in others for change in other.changes)],
        title=". ".join(review.headline for review in (main, *others)),
        tokens=max(review.tokens for review in needed),
        projects=sorted({slug for review in needed for slug in review.projects}),
        cannot=[*main.cannot, *(Unknown(other.headline, ALONE) for other in others)],
    )


def limits_of(policy: Policy | None) -> list[Record]:
    """Return the limits of a policy as its record has them, or none."""
    return policy.as_record()["limits"] if policy else []


def _review(former: Policy | None, policy: Policy | None, changes: Sequence[LimitChange | FieldChange]) -> Review:
    felt = [change for change in changes if change.effect != SAME]
    return Review(
        policy=policy or former or Policy(),
        changes=felt,
        kept=[change.name for change in changes if change.effect == SAME and change.after is not None],
        judged=_enforced(limits_of(policy), felt),
    )


def _enforced(limits: Sequence[Record], changes: Sequence[LimitChange | FieldChange]) -> list[Limit]:
    """Return those of the limits of a record that deny, those that change first. Others stay in shadow."""
    changed = [change.name for change in changes]
    values = [change.after for change in changes_of([], limits) if change.after is not None]
    return sorted((value for value in values if not value.shadow), key=lambda value: value.name not in changed)


def _of_group(former: Policy | None, policy: Policy | None, count: int) -> list[LimitChange]:
    """Return what becomes of each limit for the tokens that had the same policy."""
    whose = f"of {former}" if former else "without a policy"
    note = f"{count:,} token{'' if count == 1 else 's'} {whose}"
    changes = changes_of(limits_of(former), limits_of(policy))
    return [replace(change, note=note) for change in changes if change.effect != SAME]


def _live_tokens(holder: Token | Project) -> int:
    """Return how many live tokens a policy of the holder concerns."""
    live = Token.objects.live(timezone.now())
    if isinstance(holder, Token):
        return live.filter(pk=holder.pk).count()
    return live.filter(project=holder).count() if holder.active else 0


def _without_labels(policy: Policy | None) -> list[Record]:
    """Return the limits of a policy that look at no label, because the others do not count requests without a token."""
    return [
        limit
        for limit in limits_of(policy)
        if not any(map(is_label, (*limit.get("partition_by", ()), *limit.get("match", {}).get("attributes", {}))))
    ]


def _under(policy: Policy) -> str:
    limits = [change.after for change in changes_of([], _without_labels(policy)) if change.after is not None]
    return f"admitted under {policy}: {'; '.join(sentence(limit, WITHOUT) for limit in limits) or 'no limit'}"


def _title(name: str, former: Policy | None, policy: Policy | None, verb: str = "gets") -> str:
    if policy is None:
        return f"{name} loses the policy {former}"
    return f"{name} {verb} the policy {policy}" + (f", in place of {former}" if former else "")
