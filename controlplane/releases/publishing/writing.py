"""Write objects as a change has them, with its audit entries."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from itertools import batched, groupby

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from controlplane.changes.change.transaction import AT_ONCE, BrokenRules, OpenChange
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.fields import Record, limit_of
from controlplane.objects.overrides.actions import end_override, save_override
from controlplane.objects.overrides.creating import change_overrides, create_overrides
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import create_policies, replace_limits, set_global_policy
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.drafts.models import PolicyDraft
from enforcement.model.limits import Limit as LimitValue

# What the audit calls a change that restores nothing.
DEEDS = ("create", "update", "delete")
REFERENCES = ("policy", "anonymous_policy", "token_policy")
# What is written of each kind of object. Other fields say what happened to it, such as that it was revoked.
FIELDS: dict[str, tuple[str, ...]] = {
    "policy": ("slug", "name", "description", "metering", "managed_by", "is_global"),
    "project": (
        *("slug", "name", "policy", "anonymous_policy", "token_policy"),
        *("active", "partition_cap", "time_zone", "managed_by"),
    ),
    "token": ("name", "policy", "labels", "expires_at"),
    "override": ("partition", "quota", "burst", "reason", "ends_at", "managed_by"),
}
# Fields that a record leaves out if they are empty, and what makes an empty one.
_EMPTY: dict[str, Callable[[], object]] = {
    "metering": dict,
    "labels": dict,
    "managed_by": str,
    "partition": str,
}


def write(tx: OpenChange, change: Change, deed: str = "") -> None:
    """
    Save the objects of *change*, and record each: policies, projects, tokens, overrides, and then what is deleted.

    A policy that is not there is created under its id, and gets its drafts back. An override that is not there begins
    anew.

    Args:
        deed: What the audit calls it, such as ``undo``, which ends overrides that have no record afterwards. If left
            out, objects are created, updated and deleted, many at once where that is possible.
    Raises:
        ValidationError: A value breaks a rule of the model, such as a slug that another object has by now.
        BrokenRules: The same without a *deed*. The places are those of the objects in the change.
        RestrictedError: A policy that is to be deleted is used.
        KeyError: A record lacks a field that is never left out. The open change is to be undone.
    """
    _save_projects(change)
    placed = sorted(enumerate(change.objects), key=lambda pair: _order(pair[1]))
    for (kind, action), some in groupby(placed, key=lambda pair: (pair[1].kind, pair[1].action)):
        places, objects = zip(*some, strict=True)
        many = None if deed else _MANY.get((kind, action))
        try:
            if many:
                many(tx, objects)
        except BrokenRules as exc:
            raise BrokenRules({places[at]: broken for at, broken in exc.by_place.items()}) from exc
        for place, one in zip(places, objects, strict=True) if not many else ():
            try:
                _WRITERS[kind](tx, one, deed or action)
            except ValidationError as exc:
                if deed:
                    raise
                raise BrokenRules({place: exc}) from exc


def _order(one: ObjectChange) -> tuple[bool, int]:
    """Return the order in which objects are written. Overrides need limits, and a policy is deleted once unused."""
    kinds = ("policy", "project", "token", "override")
    return (one.after is None, kinds.index(one.kind) if one.after else -kinds.index(one.kind))


def _save_projects(change: Change) -> None:
    """Save new projects without their policies, which may be their own, so that both can name each other."""
    new = {place: one for place, one in enumerate(change.objects) if one.kind == "project" and one.before is None}
    slugs = [one.label for one in new.values()]
    taken = set(Project.objects.filter(slug__in=slugs).values_list("slug", flat=True)) if new else set()
    if taken:
        error = ValidationError({"slug": ValidationError("Is taken already.", code="unique")})
        raise BrokenRules({place: error for place, one in new.items() if one.label in taken})
    for one in new.values():
        row = Project(pk=one.pk)
        _assign(row, {**_present(one), **dict.fromkeys(REFERENCES)})
        row.save(force_insert=True)


def _write_policy(tx: OpenChange, one: ObjectChange, deed: str) -> None:
    if one.after is None:
        return tx.delete(Policy.objects.select_for_update(of=("self",)).get(pk=one.pk))
    # Read again, because what was written before it may have changed which policy is global.
    policy = Policy.objects.select_for_update(of=("self",)).filter(pk=one.pk).first()
    before, wanted, restored = policy.as_record() if policy else None, one.after, deed not in DEEDS
    policy = policy or Policy(pk=one.pk, project_id=wanted["project"])
    _assign(policy, wanted, "is_global")
    policy.full_clean(exclude=["name", "description"] if restored else [])  # an old text may break a younger rule
    policy.save()
    if before is None:
        PolicyDraft.give_back(policy)
    values = [LimitValue.from_json(limit_of(limit), published=True) for limit in wanted["limits"]]
    replace_limits(tx, policy, values, restored=restored)
    policy = Policy.objects.get(pk=policy.pk)
    if before is None or before != policy.as_record():
        tx.record(f"policy.{deed}", policy, before=before, after=policy.as_record())
    if wanted["is_global"] != policy.is_global:
        set_global_policy(tx, policy if wanted["is_global"] else None)
    return None


def _create_policies(tx: OpenChange, objects: Sequence[ObjectChange]) -> None:
    rows, broken = [Policy(pk=one.pk, project_id=_present(one)["project"]) for one in objects], {}
    for place, (row, one) in enumerate(zip(rows, objects, strict=True)):
        _assign(row, _present(one), "is_global")
        try:
            row.full_clean(exclude=["project"], validate_unique=False, validate_constraints=False)
        except ValidationError as exc:
            broken[place] = exc
    if broken:
        raise BrokenRules(broken)
    values = [[LimitValue.from_json(limit_of(limit)) for limit in _present(one)["limits"]] for one in objects]
    create_policies(tx, list(zip(rows, values, strict=True)))
    for row, one in zip(rows, objects, strict=True):
        if _present(one)["is_global"]:
            set_global_policy(tx, row)


def _write_row(tx: OpenChange, one: ObjectChange, deed: str) -> None:
    model: type[Project | Token] = Project if one.kind == "project" else Token
    row = model.objects.select_for_update(of=("self",)).get(pk=one.pk)
    before, wanted = row.as_record(), _present(one)
    _assign(row, wanted)
    row.full_clean(exclude=[] if before["name"] != wanted["name"] else ["name"])
    row.save()
    tx.record(f"{one.kind}.{deed}", row, before=before if one.before else None, after=row.as_record())


def _write_override(tx: OpenChange, one: ObjectChange, deed: str) -> None:
    if one.after is None:
        return end_override(tx, Override.objects.get(pk=one.pk), timezone.now())
    if one.before is None:
        # Only now, because the limit may have come back by the same change.
        (override,) = _new_overrides([one])
    else:
        override = Override.objects.select_related("limit__policy", "token", "project").get(pk=one.pk)
        _assign(override, one.after)
    return save_override(tx, override)


def _new_overrides(objects: Sequence[ObjectChange]) -> list[Override]:
    """Return new overrides with their limits and holders, unsaved."""
    records = [_present(one) for one in objects]
    limits = limits_named({record["limit"] for record in records})
    tokens = _by_id(Token.objects.select_related("project"), (record["token"] for record in records))
    projects = _by_id(Project.objects.all(), (record["project"] for record in records))
    rows = []
    for record in records:
        holder = {"token": tokens.get(record["token"]), "project": projects.get(record["project"])}
        rows.append(Override(limit=limits.get(record["limit"]), **holder))
        _assign(rows[-1], record)
    return rows


def _create_overrides(tx: OpenChange, objects: Sequence[ObjectChange]) -> None:
    create_overrides(tx, _new_overrides(objects))


def _change_overrides(tx: OpenChange, objects: Sequence[ObjectChange]) -> None:
    related = Override.objects.select_related("limit__policy", "token__project", "project")
    found = _by_id(related, (one.pk for one in objects))
    rows = [found[one.pk] for one in objects]
    before = [row.as_record() for row in rows]
    for row, one in zip(rows, objects, strict=True):
        _assign(row, _present(one))
    change_overrides(tx, rows, before)


def _delete_overrides(tx: OpenChange, objects: Sequence[ObjectChange]) -> None:
    rows = _by_id(Override.objects.select_related("limit__policy", "token", "project"), (one.pk for one in objects))
    tx.record_deleted(rows.values())
    for some in batched(rows, AT_ONCE):
        Override.objects.filter(pk__in=some).delete()


def _by_id[M: models.Model](rows: models.QuerySet[M], ids: Iterable[str | None]) -> dict[str, M]:
    """Return rows by their ids, with few statements. None names no row."""
    wanted = sorted({pk for pk in ids if pk is not None})
    return {pk: row for some in batched(wanted, AT_ONCE) for pk, row in rows.in_bulk(some).items()}


def _assign(row: models.Model, wanted: Record, *without: str) -> None:
    """Give a row the values of a record."""
    for name in FIELDS[str(row._meta.model_name)]:
        if name in without:
            continue
        # A record without any other field is damaged, and nothing is written of it.
        value: object = _EMPTY[name]() if name in _EMPTY and name not in wanted else wanted[name]
        if name.endswith("_at") and value and isinstance(value, str):
            value = datetime.fromisoformat(value)
        setattr(row, f"{name}_id" if name.endswith("policy") else name, value)


def _present(one: ObjectChange) -> Record:
    assert one.after is not None  # only overrides end
    return one.after


def limit_named(name: str) -> Limit | None:
    """Return the limit with a name such as "free/per-day", or None."""
    return limits_named({name}).get(name)


def limits_named(names: Collection[str]) -> dict[str, Limit]:
    """Return limits by names such as "free/per-day"."""
    slugs = {name.partition("/")[0] for name in names}
    rows = Limit.objects.filter(policy__slug__in=slugs).select_related("policy")
    return {str(limit): limit for limit in rows if str(limit) in names}


_WRITERS: dict[str, Callable[[OpenChange, ObjectChange, str], None]] = {
    "policy": _write_policy,
    "project": _write_row,
    "token": _write_row,
    "override": _write_override,
}
# Those that write many objects of one kind at once, by what is done to them.
_MANY: dict[tuple[str, str], Callable[[OpenChange, Sequence[ObjectChange]], None]] = {
    ("policy", "create"): _create_policies,
    ("override", "create"): _create_overrides,
    ("override", "update"): _change_overrides,
    ("override", "delete"): _delete_overrides,
}
