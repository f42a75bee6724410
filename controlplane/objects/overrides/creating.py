"""The creation of many overrides with few statements, by the rules of the model."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import batched

from django.core.exceptions import ValidationError
from django.db.models import Count, Exists, Q, QuerySet
from django.utils import timezone

from controlplane.changes.change.transaction import BrokenRules, OpenChange, Record
from controlplane.objects.overrides.actions import end_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Token

# The number of rows that one statement asks about.
AT_ONCE = 100

Place = tuple[str, str | None, str | None, str]
Holder = tuple[str | None, str | None]


def create_overrides(tx: OpenChange, overrides: Sequence[Override]) -> None:
    """
    Save new overrides with their audit entries. The number of statements does not depend on that of the overrides.

    Raises:
        BrokenRules: Overrides break a rule of the model, or are two of one limit and holder.
    """
    now = timezone.now()
    present, over = _present(overrides, now)
    for one in over:
        end_override(tx, one, one.ends_at or now)  # it must not be in the way of the next
    for override in overrides:
        override.created_by = tx.actor.name[:200]
    if broken := _broken(overrides, present, {}):
        raise BrokenRules(broken)
    Override.objects.bulk_create(overrides)
    tx.record_many("override.create", ((override, None, override.as_record()) for override in overrides))


def change_overrides(tx: OpenChange, overrides: Sequence[Override], before: Sequence[Record]) -> None:
    """
    Save changed overrides, whose limits, holders and values of a partition stay, with their audit entries.

    Args:
        before: The record of each before the change.
    Raises:
        BrokenRules: Overrides break a rule of the model.
    """
    counted = {holder: -count for holder, count in Counter(map(_holder, overrides)).items()}
    if broken := _broken(overrides, {}, counted):
        raise BrokenRules(broken)
    Override.objects.bulk_update(overrides, ["quota", "burst", "reason", "ends_at", "managed_by"], batch_size=AT_ONCE)
    changed = zip(overrides, before, strict=True)
    tx.record_many("override.update", ((override, former, override.as_record()) for override, former in changed))


def check_overrides(overrides: Sequence[Override], others: Mapping[Holder, int]) -> None:
    """
    Check new overrides as ``create_overrides`` does.

    Args:
        others: How many overrides each holder is to get besides these.
    Raises:
        BrokenRules: Overrides break a rule of the model, or are two of one limit and holder.
    """
    present, over = _present(overrides, timezone.now())
    more = Counter(others)
    more.subtract(map(_holder, over))
    if broken := _broken(overrides, present, more):
        raise BrokenRules(broken)


def _present(overrides: Sequence[Override], now: datetime) -> tuple[dict[Place, Override], list[Override]]:
    """Return the overrides in force that are in the way of these, by place, and those whose end has come."""
    found = list(_at_places(overrides).select_related("limit__policy", "token", "project"))
    over = [one for one in found if one.ends_at and one.ends_at <= now]
    return {_place(one): one for one in found if one not in over}, over


def _broken(
    overrides: Sequence[Override], present: Mapping[Place, Override], more: Mapping[Holder, int]
) -> dict[int, ValidationError]:
    """
    Return the errors of overrides by their places.

    Args:
        present: The overrides that are in force.
        more: How many each holder would have besides these and those that it has now.
    """
    sound: dict[int, Override] = {}
    broken: dict[int, ValidationError] = {}
    for place, override in enumerate(overrides):
        try:
            override.clean_fields(exclude=["limit", "token", "project"])
            override.check_alone()
            sound[place] = override
        except ValidationError as exc:
            broken[place] = exc
    by_tokens = _with_tokens(
        {(one.project_id, one.limit.policy_id) for one in sound.values() if one.project_id and not one.applies_at_once}
    )
    counts = _counts(list(sound.values()))
    counts.update(more)
    seen: set[Place] = set()
    for place, override in sound.items():
        applies = override.applies_at_once or (override.project_id, override.limit.policy_id) in by_tokens
        try:
            override.check_among(present.get(_place(override)), counts[_holder(override)] - 1, applies=applies)
            if _place(override) in seen:
                raise ValidationError({"limit": ValidationError("Must not be that of another item.", code="unique")})
        except ValidationError as exc:
            broken[place] = exc
        seen.add(_place(override))
    return dict(sorted(broken.items()))


def _place(override: Override) -> Place:
    return override.limit_id, override.token_id, override.project_id, override.partition


def _holder(override: Override) -> Holder:
    return override.token_id, override.project_id


def _of_holders(overrides: Sequence[Override]) -> QuerySet[Override]:
    tokens, projects = (
        {override.token_id for override in overrides} - {None},
        {override.project_id for override in overrides} - {None},
    )
    return Override.objects.filter(Q(token__in=tokens) | Q(project__in=projects)).order_by()


def _at_places(overrides: Sequence[Override]) -> QuerySet[Override]:
    """Return a query of the overrides in force that have a limit of one and a holder of one of these."""
    return _of_holders(overrides).filter(limit__in={override.limit_id for override in overrides})


def _counts(overrides: Sequence[Override]) -> Counter[Holder]:
    """Return how many overrides each holder would have."""
    present = _of_holders(overrides).values_list("token", "project").annotate(Count("pk"))
    return Counter({(token, project): count for token, project, count in present}) + Counter(map(_holder, overrides))


def _with_tokens(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the (project, policy) pairs for which the project has tokens with the policy."""
    return {pair for some in batched(pairs, AT_ONCE) for pair in _existing(some)}


def _existing(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    # One statement with a column for each pair, so that each stops at the first token that it finds.
    columns = {
        f"pair_{number}": Exists(Token.objects.filter(project=project, policy=policy))
        for number, (project, policy) in enumerate(pairs)
    }
    row = Policy.objects.filter(pk=pairs[0][1]).annotate(**columns).values_list(*columns).first()
    yield from (pair for pair, exists in zip(pairs, row or (), strict=False) if exists)
