"""The review of a change of a policy, which says what it will do before it is saved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from django.db.models import Exists, OuterRef, Q, Sum
from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.changes.words.change import NOTHING, Change, ObjectChange, State
from controlplane.changes.words.effects import (
    BESIDE,
    CANDIDATE,
    DENYING,
    NEW,
    SAME,
    FieldChange,
    LimitChange,
    changes_of,
    effects,
    headline,
)
from controlplane.changes.words.fields import Record
from controlplane.changes.words.words import Line, lines_without
from controlplane.core.money import permits
from controlplane.core.optional import PREVIEW, USAGE, optional
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import replace_limits
from controlplane.objects.policies.models import Policy
from controlplane.objects.policies.names import Names
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.preview.judging import Unknown
from controlplane.releases.preview.supposed import SAVED, Supposed
from controlplane.traffic.callers.kinds import DAY
from controlplane.traffic.usage.models import UsageRow
from enforcement.model.limits import Limit

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.previews import Preview, Recorded

METERING = Unknown(
    "metered requests", "What requests cost in tokens or money is not recorded before a limit denies them."
)
# With more callers, the previews of other quotas would take longer than the page may.
MOST_COMPARED = 500
# Of all of them together about as many as of the preview itself.
STEPS_OF_OTHERS = 60_000
# Nobody reads what becomes of more limits on a page.
MOST_TOLD = 40
SHADOW, ENFORCE = "shadow", "enforce"
# Whose requests a limit of the global policy counts together.
EVERYTHING = "all projects together"
# Fields whose effects a review tells of.
TOLD = ("limits", "metering", "policy", "anonymous_policy", "labels")


@dataclass(frozen=True, slots=True)
class OtherQuota:
    """What another quota of the changed limit would have denied."""

    quota: int
    preview: Preview
    note: str = ""
    unit: str = "requests"

    @property
    def shown(self) -> str:
        """The quota as people read it."""
        return permits(self.quota, self.unit)


@dataclass(frozen=True, slots=True)
class Review:
    """
    What a change of a policy will do.

    Attributes:
        change: What becomes of the objects, if that says more than the changes do.
        changes: Each limit that changes.
        kept: The names of the limits that stay as they are.
        tokens: Live tokens that have the policy.
        projects: Slugs of the projects whose requests it may deny, as far as the reader may see them.
        overrides: Overrides of its limits that stay.
        preview: What the policy would have denied after the change. None until somebody asks for it.
        denied_now: Requests that its limits did deny in the same time. None: that cannot be read.
        others: Other quotas of the limit that changes.
        title: What the change does, if that is not told by its limits.
        of_whom: The name of the token or project that is changed, if the policy itself stays as it is.
        supposed: The state after the change, which the preview judges.
        judged: The limits that the preview judges. None: those that change, and those that are enforced as they are.
        cannot: What recorded usage cannot tell, besides the limits of which the preview finds that out.
        denied_by: The conditions of the rows of usage that say what is denied as it is now. None: those of the policy.
        may_be_light: Whether words and numbers are enough if nothing is denied that passed before.
    """

    policy: Policy
    changes: Sequence[LimitChange | FieldChange]
    change: Change = NOTHING
    kept: list[str] = field(default_factory=list)
    tokens: int = 0
    projects: list[str] = field(default_factory=list)
    overrides: int = 0
    is_global: bool = False
    preview: Preview | None = None
    denied_now: int | None = 0
    others: list[OtherQuota] = field(default_factory=list)
    title: str = ""
    of_whom: str = ""
    supposed: Supposed = SAVED
    judged: list[Limit] | None = None
    cannot: list[Unknown] = field(default_factory=list)
    denied_by: dict[str, object] | None = None
    may_be_light: bool = False

    @property
    def subject(self) -> str:
        """What is changed: the policy, or the token or project that has it."""
        return self.of_whom or str(self.policy)

    @property
    def headline(self) -> str:
        return self.title or headline(self.policy.slug, self.changes)

    @property
    def told(self) -> Sequence[LimitChange | FieldChange]:
        """The first changes, which a page has room for."""
        return self.changes[:MOST_TOLD]

    @property
    def untold(self) -> int:
        """The number of the other changes."""
        return len(self.changes) - len(self.told)

    @property
    def concerns_nobody(self) -> bool:
        return not (self.tokens or self.projects or self.is_global)

    @property
    def is_needed(self) -> bool:
        """Whether the change must be reviewed: it is felt by somebody, or may be by more than one project."""
        wide = len(self.projects) > 1 or self.is_global
        done = [change for change in self.changes if change.effect != SAME]
        return not self.concerns_nobody and any(change.is_felt or wide for change in done)

    @property
    def needs_reason(self) -> bool:
        """Whether requests may be denied that passed before."""
        return any(change.effect in DENYING for change in self.changes)

    @property
    def is_light(self) -> bool:
        """Whether words and numbers are enough, because more passes than before, and nothing less."""
        return self.may_be_light and not self.needs_reason

    @property
    def digest(self) -> str:
        """32 hexadecimal characters that stand for the values before and after the change."""
        seen = self.change.digest, self.is_global, [change.seen for change in self.changes]
        return sha256(repr(seen).encode()).hexdigest()[:32]

    @property
    def named(self) -> list[Line]:
        """What else changes in the objects that stay there, in words."""
        names = Names.of_change(self.change)
        return [line for one in self.change.objects for line in lines_without(one, TOLD, names)]

    @property
    def limits(self) -> Sequence[Record]:
        """The limits of the policy after the change, as far as it is one of a policy."""
        return [limit for one in self.change.objects for limit in (one.after or {}).get("limits", ())]

    @property
    def can_start_in_shadow(self) -> bool:
        """Whether each limit that denies more can be counted first."""
        denying = [change for change in self.changes if change.effect in DENYING]
        return not self.of_whom and bool(denying) and all(change.can_start_in_shadow for change in denying)

    @property
    def shadow_tells(self) -> bool:
        """Whether a limit in shadow would show what the change does, as far as recorded usage does not."""
        return not self.of_whom and any(change.is_measurable for change in self.changes if change.effect != SAME)

    @property
    def main(self) -> LimitChange | None:
        """The change of which the preview shows the busiest moments and other quotas."""
        limits = [one for one in self.changes if isinstance(one, LimitChange) and one.after is not None]
        found = [one for one in limits if one.effect != SAME]
        return next((change for change in found if change.is_felt), found[0] if found else None)


def review_of(policy: Policy, one: ObjectChange, projects: Collection[str] | None = None) -> Review:
    """
    Return the review of the change of a policy, without a preview.

    Args:
        policy: As it is after the change.
        projects: The ids of the projects that the reader may see. None: all of them.
    """
    changes = effects(one)
    if policy.is_global:
        changes = _of_everything(changes)
    seen = Project.objects.all() if projects is None else Project.objects.filter(pk__in=projects)
    tokens = Token.objects.live(timezone.now()).filter(policy=policy.pk)
    tokens = tokens if projects is None else tokens.filter(project__in=projects)
    # Looked for by project, because a policy may have 500,000 tokens.
    uses = (
        Q(policy=policy.pk) | Q(anonymous_policy=policy.pk) | Exists(tokens.order_by().filter(project=OuterRef("pk")))
    )
    others = [change for change in changes if isinstance(change, FieldChange)]
    names = {change.name for change in changes if change.after is not None}
    overrides = Override.objects.filter(limit__policy=policy.pk, limit__name__in=names)
    return Review(
        policy=policy,
        change=Change((one,), state=State.REVIEWED),
        changes=[change for change in changes if change.is_listed],
        kept=[change.name for change in changes if not change.is_listed],
        cannot=[METERING] if any(change.is_felt for change in others) else [],
        tokens=tokens.count(),
        projects=sorted(seen.filter(uses).values_list("slug", flat=True)),
        overrides=overrides.filter(Q(project__in=seen) | Q(token__project__in=seen)).count(),
        is_global=policy.is_global,
    )


def review_of_reach(policy: Policy, former: Policy | None, projects: Collection[str] | None = None) -> Review:
    """
    Return the review of the choice of the global policy, without a preview.

    Args:
        policy: The policy as it will be. If it is not global any more, no policy will be.
        former: The global policy in whose place it comes, or None.
        projects: As for :func:`review_of`.
    """
    own = ObjectChange.of(policy, None)
    one = own if policy.is_global else replace(own, before=own.after, after=None)
    review = review_of(policy, one, projects)
    gone = changes_of(former.as_record()["limits"], []) if former else []
    removed = [replace(one, name=f"{former}/{one.name}") for one in gone if one.effect != SAME]
    does = "applies" if policy.is_global else "stops applying"
    title = f"{policy.slug} {does} to every request{f', in place of {former}' if former else ''}"
    changes = _of_everything([*review.changes, *removed])
    return replace(review, changes=changes, is_global=True, title=title)


def _of_everything(changes: Iterable[LimitChange | FieldChange]) -> list[LimitChange | FieldChange]:
    """Return the same changes of the limits of a global policy, each of which counts all requests together."""
    return [replace(one, holder=EVERYTHING) if isinstance(one, LimitChange) else one for one in changes]


def _without_preview(review: Review, now: datetime, span: timedelta = DAY, *_: object, **__: object) -> Review:
    from controlplane.releases.preview.previews import Preview  # numpy, which only a preview needs

    return replace(review, preview=Preview(now - span, now, is_unread=True))


@optional(PREVIEW, _without_preview)
def with_preview(
    review: Review,
    now: datetime,
    span: timedelta = DAY,
    projects: Collection[str] | None = None,
    *,
    others: bool = True,
) -> Review:
    """Return the review with the preview of the policy after the change, as if each changed limit were enforced."""
    from controlplane.releases.preview.previews import Recorded  # numpy, which only a preview needs

    limits = in_question(review)
    recorded = Recorded(review.policy, now, span, projects, review.supposed)
    found = recorded.preview(limits)
    found = replace(found, unknown=[*review.cannot, *found.unknown])
    others = others and found.has_data and not review.of_whom and span <= DAY
    tried = list(_others(review, limits, found, recorded)) if others else []
    return replace(review, preview=found, denied_now=_denied(review, found.starts, found.ends, projects), others=tried)


@optional(USAGE, lambda review, now, projects=None: replace(review, denied_now=None))
def with_denied(review: Review, now: datetime, projects: Collection[str] | None = None) -> Review:
    """Return the review with what was denied in the last 24 hours, and no preview."""
    return replace(review, denied_now=_denied(review, now - DAY, now, projects))


def _denied(review: Review, starts: datetime, ends: datetime, projects: Collection[str] | None) -> int:
    conditions = {"policy_id": review.policy.pk} if review.denied_by is None else review.denied_by
    rows = UsageRow.objects.filter(period="hour", at__gte=starts, at__lt=ends, **conditions)
    if projects is not None:
        rows = rows.filter(project_id__in=projects)
    return rows.aggregate(sum=Sum("denied"))["sum"] or 0


def in_question(review: Review) -> list[Limit]:
    """Return the limits that change, the main one first, and those that are enforced as they are."""
    if review.judged is not None:
        return review.judged
    changed = [change.after for change in review.changes if change.after is not None and change.effect != SAME]
    if review.of_whom:
        changed = [limit for limit in changed if not limit.shadow]  # they stay in shadow
    main = review.main and review.main.after
    changed.sort(key=lambda limit: limit is not main)
    same = {*review.kept, *(change.name for change in review.changes if change.effect == SAME)}
    kept = [Limit.from_json(limit, published=True) for limit in review.limits if limit["name"] in same]
    return [*changed, *(limit for limit in kept if not limit.shadow)]


def _others(review: Review, limits: Sequence[Limit], found: Preview, recorded: Recorded) -> Iterator[OtherQuota]:
    main = review.main
    if main is None or main.after is None or limits[0] != main.after or found.caught.high > MOST_COMPARED:
        return
    own, old = main.after.quota, main.before.quota if main.before and not main.before.shadow else None
    yield OtherQuota(own, found, "your change")
    for quota in other_quotas(own, old):
        changed = {**main.after.to_json(), "quota": quota}
        tried = recorded.preview([Limit.from_json(changed, published=True), *limits[1:]], STEPS_OF_OTHERS)
        yield OtherQuota(quota, tried, "now" if quota == old else "", main.after.unit)


def other_quotas(own: int, old: int | None) -> list[int]:
    """Return quotas to compare, between the new and the present one, or above the new one if there is none."""
    if old is not None and old > own:
        between = {own + (old - own) * part // 4 for part in (1, 2, 3)}
        return sorted((between | {old}) - {own})
    above = {own * 3 // 2, own * 2, own * 3} | ({old} if old is not None else set())
    return sorted(above - {own})


def start_in_shadow(tx: OpenChange, policy: Policy, changes: Sequence[LimitChange]) -> None:
    """
    Leave enforced what was enforced before a change, and count the new numbers beside it.

    A new limit becomes a shadow. Another one stays as it was, and a shadow limit with its name and CANDIDATE behind it
    is what it will be. The caller records the change of the policy.
    """
    new = {change.name for change in changes if change.effect == NEW}
    beside = {change.name: change.before for change in changes if change.effect in BESIDE}
    values: list[Limit] = []
    for row in policy.limits.all():
        if row.name.removesuffix(CANDIDATE) in beside and row.name not in beside:
            continue  # an earlier candidate, in whose place the new one comes
        if (before := beside.get(row.name)) is None:
            values.append(row.as_value(mode="shadow") if row.name in new else row.as_value())
        else:
            values += [before, row.as_value(mode="shadow", consistency="strict", name=row.name + CANDIDATE)]
    replace_limits(tx, policy, values)
