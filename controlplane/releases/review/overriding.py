"""
The review of overrides that are given, changed or ended.

Which quota a holder has, depends on the time: its override may end, and then that of its project counts, or the limit
itself. So each change is told for each stretch of time between two ends.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from django.db.models import Exists, OuterRef, Q, QuerySet

from controlplane.changes.words.effects import DENYING, SAME, LimitChange, effect
from controlplane.core.instants import exact
from controlplane.core.partitions import values_of, with_values
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.preview.judging import Unknown
from controlplane.releases.preview.supposed import Supposed, SupposedOverride, holder_of, overridden
from controlplane.releases.review.reviews import Review
from controlplane.traffic.callers.kinds import PROJECT, TOKEN, Caller
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.matching import LABEL_PREFIX, is_label

Key = tuple[str, Caller, str]
"""Id of a limit, the holder of an override of it, and the values that it is for."""
Rows = Mapping[Key, Override]

SHARED = "{} shares its counter with others, and whose requests came first is not recorded."
TOO_MANY = "They are too many for one page. Their numbers are in the list."
ELSEWHERE = "The overrides of this policy are not replayed here. Change those of one policy at a time to see it."


@dataclass(slots=True)
class OverridePart:
    """What becomes of one limit for one holder of an override, with the start of each change."""

    limit: Limit
    holder: Token | Project
    partition: str = ""
    changes: list[tuple[datetime, LimitChange]] = field(default_factory=list)

    @property
    def caller(self) -> Caller:
        return (TOKEN if isinstance(self.holder, Token) else PROJECT), self.holder.pk

    @property
    def key(self) -> Key:
        return self.limit.pk, self.caller, self.partition

    @property
    def denies(self) -> bool:
        """Whether requests of the holder may be denied that passed before."""
        return any(change.effect in DENYING for _, change in self.changes)

    @property
    def shared(self) -> str:
        """Why recorded usage cannot judge all of it, or nothing."""
        policy = self.limit.policy
        if isinstance(self.holder, Project):
            return SHARED.format(f"The project {self.holder}") if policy.is_global else ""
        is_shared = policy.is_global or self.holder.project.policy_id == policy.pk
        return SHARED.format(f"The token {self.holder.name}") if is_shared else ""


def override_review(former: Override | None, override: Override | None, now: datetime) -> Review:
    """
    Return the review of the change of one override, without a preview.

    Args:
        former: The override as it was, or None for a new one.
        override: The override as it will be, or None if it ends.
    """
    before, after = ([one] if one else [] for one in (former, override))
    parts, states = _parts(before, after, now)
    does = "changes" if former and override else "ends" if former else "begins"
    name = _name(parts[0].holder, parts[0].partition)
    return _review(parts, states, now, f"The override of {parts[0].limit} for {name} {does}")


def deletion_review(overrides: Sequence[Override], now: datetime, more: int = 0) -> Review:
    """
    Return the review of the deletion of some overrides, at least one, without a preview.

    Args:
        more: How many other overrides are deleted with them, of which the review does not tell.
    """
    if len(overrides) == 1 and not more:
        return override_review(overrides[0], None, now)
    parts, states = _parts(overrides, [], now)
    review = _review(parts, states, now, f"{len(overrides) + more:,} overrides are deleted")
    if more:
        review.cannot.append(Unknown(f"{more:,} more overrides", TOO_MANY))
    return review


def _parts(
    before: Sequence[Override], after: Sequence[Override], now: datetime
) -> tuple[list[OverridePart], tuple[Rows, Rows]]:
    """Return what becomes of each limit and holder, and the overrides of these before and after the change."""
    rows = {_key(one): one for one in _others([*before, *after], now)}
    states = rows | {_key(one): one for one in before}, rows | {_key(one): one for one in after}
    touched = {_key(one): OverridePart(one.limit, one.token or one.owner, one.partition) for one in (*after, *before)}
    for part in touched.values():
        part.changes = list(_changes(part, states, now))
    return list(touched.values()), states


def _others(changed: Sequence[Override], now: datetime) -> QuerySet[Override]:
    """Return the overrides in force of the same limits and of the same holders, or of the projects of these."""
    tokens = {one.token_id for one in changed if one.token_id}
    projects = {one.token.project_id if one.token else one.project_id for one in changed}
    rows = Override.objects.filter(limit__in={one.limit_id for one in changed}).exclude(ends_at__lte=now)
    return rows.filter(Q(token__in=tokens) | Q(project__in=projects)).exclude(pk__in=[one.pk for one in changed])


def _key(override: Override) -> Key:
    return override.limit_id, holder_of(override), override.partition


def _changes(part: OverridePart, states: tuple[Rows, Rows], now: datetime) -> Iterator[tuple[datetime, LimitChange]]:
    """Yield each change of a limit with its start. Stretches of time with the same change are one."""
    keys = _keys(part, {*states[0], *states[1]})
    old, new = states
    known = {rows[key].ends_at for rows in states for key in keys if key in rows}
    starts = [now, *sorted(end for end in known if end is not None and end > now)]
    stretches = [(at, _value(part.limit, old, keys, at), _value(part.limit, new, keys, at)) for at in starts]
    found = [next(same) for _, same in groupby(stretches, lambda stretch: stretch[1:])]
    ends = [*(start for start, *_ in found[1:]), None]
    for (start, before, after), end in zip(found, ends, strict=True):
        what = effect(before, after)
        if what != SAME:
            when = _when(start if start > now else None, end)
            yield start, LimitChange(str(part.limit), before, after, what, _name(part.holder, part.partition), when)


def _keys(part: OverridePart, known: Iterable[Key]) -> list[Key]:
    """Return the keys of the overrides that count for a part, each before those that it comes before."""
    own = values_of(part.partition).items()
    found = [key for key in known if key[0] == part.limit.pk and values_of(key[2]).items() <= own]
    callers = _callers(part.holder)
    most_exact = sorted((key for key in found if key[1] in callers), key=lambda key: (-len(values_of(key[2])), key[2]))
    return sorted(most_exact, key=lambda key: callers.index(key[1]))


def _callers(holder: Token | Project) -> list[Caller]:
    """Return whose overrides count for a holder, the first of them before the second."""
    return [(TOKEN, holder.pk), (PROJECT, holder.project_id)] if isinstance(holder, Token) else [(PROJECT, holder.pk)]


def _value(limit: Limit, rows: Rows, keys: Iterable[Key], at: datetime) -> LimitValue | None:
    """Return a limit as the holder of the overrides with these keys has it at an instant, or None if it is invalid."""
    try:
        value = limit.as_value()
    except InvalidLimit:  # another program has written to the table
        return None
    for key in keys:
        row = rows.get(key)
        if row is not None and (row.ends_at is None or row.ends_at > at):
            try:
                return overridden(value, row.quota, row.burst)
            except InvalidLimit:  # the limit was changed since, so that the numbers do not fit it any more
                continue
    return value


def _when(start: datetime | None, end: datetime | None) -> str:
    since = f"from {exact(start)}" if start else ""
    until = f"until {exact(end)}" if end else "on" if start else ""
    return " ".join(filter(None, [since, until]))


def _name(holder: Token | Project, partition: str = "") -> str:
    name = f"the token {holder.name}" if isinstance(holder, Token) else f"the project {holder}"
    return name + with_values(partition)


def _review(parts: Sequence[OverridePart], states: tuple[Rows, Rows], now: datetime, title: str) -> Review:
    changed = [part for part in parts if part.changes] or list(parts)
    # Of several policies, the one is replayed of which more is denied than before.
    judged = next((part for part in changed if part.denies), changed[0])
    policy = judged.limit.policy
    own = [part for part in changed if part.limit.policy_id == policy.pk]
    denying = [start for part in own for start, change in part.changes if change.effect in DENYING]
    changes = sorted(
        (change for part in changed for _, change in part.changes), key=lambda it: it.effect not in DENYING
    )
    tokens, projects = _concerned(changed, now)
    others = {part.limit.policy for part in changed} - {policy}
    return Review(
        policy=policy,
        changes=changes,
        kept=[limit.name for limit in policy.limits.all() if limit.pk not in {part.limit.pk for part in own}],
        tokens=tokens.count(),
        projects=sorted(projects.values_list("slug", flat=True)),
        overrides=len(states[0].keys() & states[1].keys() - {part.key for part in parts}),
        title=title + _numbers(changes[:1] if len(parts) == 1 else []),
        of_whom=_whom(parts),
        supposed=_supposed(own, states, min(denying, default=now)),
        judged=_limits(policy, [part.limit for part in own]),
        cannot=[
            *(Unknown(str(part.limit), part.shared) for part in own if part.shared),
            *(Unknown(str(other), ELSEWHERE) for other in sorted(others, key=str)),
        ],
        denied_by={"policy_id": policy.pk, **_rows_of(own)},
        may_be_light=True,
    )


def _whom(parts: Sequence[OverridePart]) -> str:
    holders = {part.caller: part.holder for part in parts}
    return str(next(iter(holders.values()))) if len(holders) == 1 else f"{len(holders):,} tokens and projects"


def _numbers(changes: Sequence[LimitChange]) -> str:
    first = next((change for change in changes if change.numbers), None)
    return f": {first.numbers}{f' {first.note}' if first.note else ''}" if first else ""


def _concerned(parts: Sequence[OverridePart], now: datetime) -> tuple[QuerySet[Token], QuerySet[Project]]:
    """Return the live tokens whose requests the changed limits count with the changed numbers, and their projects."""
    concerned = Q(pk__in=[part.holder.pk for part in parts if isinstance(part.holder, Token)])
    anonymous = Q(pk__in=())
    for limit, partition in {(part.limit, part.partition) for part in parts}:
        alike = [part for part in parts if (part.limit, part.partition) == (limit, partition)]
        projects = [part.holder.pk for part in alike if isinstance(part.holder, Project)]
        if not projects:
            continue
        own = Override.objects.filter(limit=limit, token=OuterRef("pk")).exclude(ends_at__lte=now)
        any_token = ~Q(pk=None)
        having = Q(policy=limit.policy_id) | Q(project__policy=limit.policy_id)
        labels = {name: value for name, value in values_of(partition).items() if is_label(name)}
        of_values = Token.objects.all()
        for name, value in labels.items():
            of_values = of_values.with_label(name.removeprefix(LABEL_PREFIX), value)
        fitting = Q(pk__in=of_values.values("pk")) if labels else any_token
        having = fitting & (any_token if limit.policy.is_global else having)
        concerned |= Q(project__in=projects) & ~Exists(own) & having
        if not labels:
            anonymous |= Q(pk__in=projects, anonymous_policy=limit.policy_id)
    tokens = Token.objects.live(now).filter(concerned, project__active=True)
    return tokens, Project.objects.filter(Exists(tokens.order_by().filter(project=OuterRef("pk"))) | anonymous)


def _supposed(parts: Sequence[OverridePart], states: tuple[Rows, Rows], at: datetime) -> Supposed:
    """Return the state after the change at an instant, narrowed to the holders, whose limits are of one policy."""
    before, after = states
    policy = parts[0].limit.policy_id
    limits = {part.limit.pk: part.limit.name for part in parts}
    there = [
        SupposedOverride(holder, limits[pk], row.quota, row.burst)
        for (pk, holder, partition), row in after.items()
        if pk in limits and not partition and (row.ends_at is None or row.ends_at > at)
    ]
    # The counters of the other tokens are shared.
    holders = [part.caller for part in parts if isinstance(part.holder, Token) and part.holder.policy_id == policy]
    projects = [part.holder.pk for part in parts if isinstance(part.holder, Project)]
    gone = frozenset(row.pk for row in (*before.values(), *after.values()))
    return Supposed(frozenset(holders), frozenset(projects), gone, tuple(there))


def _rows_of(parts: Sequence[OverridePart]) -> dict[str, object]:
    """Return the conditions of the rows of usage of the holders."""
    if all(isinstance(part.holder, Token) for part in parts):
        return {"token_id__in": [part.holder.pk for part in parts]}
    return {"project_id__in": [_project_of(part.holder) for part in parts]}


def _limits(policy: Policy, main: Sequence[Limit]) -> list[LimitValue]:
    """Return the limits of a policy that deny, the *main* ones first. Those in shadow stay there."""
    names = [limit.pk for limit in main]
    found = []
    for row in sorted(policy.limits.all(), key=lambda limit: limit.pk not in names):
        try:
            found.append(row.as_value())
        except InvalidLimit:  # another program has written to the table
            continue
    return [value for value in found if not value.shadow]


def _project_of(holder: Token | Project) -> str:
    return holder.project_id if isinstance(holder, Token) else holder.pk
