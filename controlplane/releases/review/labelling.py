"""The review of labels of tokens, by which limits match requests or count them apart."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from controlplane.changes.words.effects import CHANGED, NEW, REMOVED, SAME, FieldChange, LimitChange, effect
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Token
from controlplane.releases.preview.judging import Unknown
from controlplane.releases.preview.supposed import Supposed
from controlplane.releases.review.reviews import Review
from controlplane.traffic.callers.kinds import TOKEN
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.matching import LABEL_PREFIX, is_label

Labels = Mapping[str, str]
Relabelled = tuple[Token, Labels, Labels]
"""A token with its labels before and after a change."""

SHARED = "Its counters are shared by several tokens, and which of their requests came first is not recorded."


def labels_review(changed: Sequence[Relabelled], now: datetime) -> Review:
    """
    Return the review of other labels of some tokens, without a preview. It has no changes if no limit looks at them.

    Args:
        changed: At least one token, with its project.
    """
    live = set(Token.objects.live(now).filter(pk__in=[token.pk for token, *_ in changed]).values_list("pk", flat=True))
    tokens = [one for one in changed if one[0].pk in live and one[0].project.active]
    policies = _policies([token for token, *_ in tokens])
    changes, concerned = list[LimitChange | FieldChange](), set[Token]()
    for limit, value in _looking(policies.values()):
        felt = [
            one for one in tokens if _applies(one[0], limit.policy) and _found(value, one[1]) != _found(value, one[2])
        ]
        if felt:
            changes.append(_change(limit, value, felt))
            concerned |= {token for token, *_ in felt}
    name = tokens[0][0].name if len(tokens) == 1 else f"{len(concerned):,} tokens"
    review = Review(
        policy=next(iter(policies.values()), Policy()),
        changes=[change for change in changes if change.effect != SAME],
        tokens=len(concerned),
        projects=sorted({token.project.slug for token in concerned}),
        title=f"Other limits apply to {name}, by other labels",
        of_whom=name,
        supposed=Supposed(holders=frozenset()),
        cannot=[Unknown(change.name, SHARED) for change in changes],
        judged=[],
        may_be_light=True,
        denied_by={"token_id__in": [token.pk for token in concerned]},
    )
    return _replayed(review, tokens[0]) if len(tokens) == 1 and concerned else review


def _policies(tokens: Sequence[Token]) -> dict[str, Policy]:
    """Return the policies that apply to some of the tokens."""
    own = {pk for token in tokens for pk in (token.policy_id, token.project.policy_id) if pk}
    found = Policy.objects.filter(pk__in=own) | Policy.objects.filter(is_global=True)
    return {policy.pk: policy for policy in found.order_by("slug").prefetch_related("limits")} if tokens else {}


def _applies(token: Token, policy: Policy) -> bool:
    return policy.is_global or policy.pk in (token.policy_id, token.project.policy_id)


def _looking(policies: Iterable[Policy]) -> Iterator[tuple[Limit, LimitValue]]:
    """Yield the limits that look at labels, each with its value."""
    for policy in policies:
        for limit in policy.limits.all():
            try:
                value = limit.as_value()
            except InvalidLimit:  # another program has written to the table
                continue
            if _names(value):
                yield limit, value


def _names(limit: LimitValue) -> list[str]:
    return [name for name in (*limit.partition_by, *limit.match.attributes) if is_label(name)]


def _found(limit: LimitValue, labels: Labels) -> dict[str, str] | None:
    """Return by which labels a limit counts a token, or None if it does not apply to it, as enforcers find it out."""
    given = {LABEL_PREFIX + name: value for name, value in labels.items()}
    if any(name not in given for name in _names(limit)) or not limit.match.fits(given):
        return None
    return {name: given[name] for name in _names(limit)}


def _change(limit: Limit, value: LimitValue, felt: Sequence[Relabelled]) -> LimitChange | FieldChange:
    """Return what becomes of a limit for the tokens that it counts in another way, or not, or not any more."""
    pairs = [(_found(value, before), _found(value, after)) for _, before, after in felt]
    if len(pairs) == 1 and None in pairs[0]:
        old, new = (value if found is not None else None for found in pairs[0])
        return LimitChange(str(limit), old, new, effect(old, new))
    kinds = Counter(NEW if was is None else REMOVED if becomes is None else CHANGED for was, becomes in pairs)
    what = next(iter(kinds)) if len(kinds) == 1 else CHANGED
    if len(pairs) == 1:
        was, becomes = (_in_words(found or {}) for found in pairs[0])
        return FieldChange(str(limit), f"counts {was}", f"counts {becomes}", SAME if value.shadow else what)
    was, becomes = (f"applies to {sum(pair[side] is not None for pair in pairs):,} of these" for side in (0, 1))
    moved = f", {kinds[CHANGED]:,} of them with another counter" if kinds[CHANGED] else ""
    return FieldChange(str(limit), was, becomes + moved, SAME if value.shadow else what, f"{len(pairs):,} tokens")


def _in_words(found: Labels) -> str:
    return ", ".join(f"{name.removeprefix(LABEL_PREFIX)} = {value}" for name, value in found.items())


def _replayed(review: Review, one: Relabelled) -> Review:
    """Return the review of one token with what of its own policy can be replayed, whose counters it has alone."""
    token, _, after = one
    policy = Policy.objects.filter(pk=token.policy_id).first()
    if policy is None:
        return review
    values = [LimitValue.from_json(limit, published=True) for limit in policy.as_record()["limits"]]
    judged = [_for_token(value) for value in values if not value.shadow and _found(value, after) is not None]
    changed = {change.name for change in review.changes}
    judged.sort(key=lambda value: f"{policy}/{value.name}" not in changed)
    shared = policy.is_global or token.project.policy_id == policy.pk
    others = [one for one in review.cannot if shared or not one.limit.startswith(f"{policy}/")]
    supposed = Supposed(holders=frozenset([(TOKEN, token.pk)]))
    return replace(review, policy=policy, judged=judged, cannot=others, supposed=supposed)


def _for_token(limit: LimitValue) -> LimitValue:
    """Return a limit as it counts a token whose labels it fits, so that these need not be looked at."""
    attributes = {name: rule for name, rule in limit.match.attributes.items() if not is_label(name)}
    parts = tuple(name for name in limit.partition_by if not is_label(name))
    return replace(limit, partition_by=parts, match=replace(limit.match, attributes=attributes), published=True)
