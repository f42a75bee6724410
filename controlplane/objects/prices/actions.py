"""Changes of prices. Admin, API and commands call these functions with an open change."""

from collections.abc import Sequence
from datetime import datetime

from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core.transactions import take_turn
from controlplane.objects.prices import estimates
from controlplane.objects.prices.differences import Difference
from controlplane.objects.prices.estimates import EstimateChange
from controlplane.objects.prices.models import LearnedEstimate, ModelAddend, ModelPrice

OF_THE_CATALOGUE = "This price is one of the catalogue. Set a price of your own for the model, which comes first."


def lock_prices() -> None:
    """
    Lock all prices until the end of the transaction, because together they are one document.

    Whoever also locks the row of a price does that later. Otherwise two changes could wait for each other.
    """
    take_turn("prices")


def save_price(tx: OpenChange, price: ModelPrice) -> None:
    """
    Save a new or changed price of an operator with its audit entry. Do nothing if nothing was changed.

    Raises:
        ValidationError: It breaks a rule, or all prices together do, or it is one of the catalogue.
    """
    lock_prices()
    if not price.is_operators:
        raise ValidationError(OF_THE_CATALOGUE)
    former = ModelPrice.objects.filter(pk=price.pk).first()
    if former is not None and former.as_record() == price.as_record():
        return
    price.changed_by, price.changed_at = tx.actor.name[:200], timezone.now()
    price.full_clean()
    price.save()
    ModelPrice.objects.check_document()
    if former is None:
        tx.created(price)
    else:
        tx.updated(price, former.as_record())


def delete_price(tx: OpenChange, price: ModelPrice) -> None:
    """Delete a price of an operator with its audit entry, or raise ValidationError if it is one of the catalogue."""
    lock_prices()
    if not price.is_operators:
        raise ValidationError(OF_THE_CATALOGUE)
    tx.delete(price)


def apply_catalogue(tx: OpenChange, differences: Sequence[Difference]) -> None:
    """
    Make the prices of the catalogue what the differences say, with an audit entry for each.

    Raises:
        ValidationError: A price breaks a rule, or all of them together do. Nothing is changed then.
    """
    now = timezone.now()
    changed = [(it.new, it.old.as_record() if it.old else None) for it in differences if it.new is not None]
    for price, _ in changed:
        price.changed_by, price.changed_at = tx.actor.name[:200], now
        _check(price)
    removed = [it.old for it in differences if it.new is None and it.old is not None]
    tx.record_many("modelprice.delete", ((price, price.as_record(), None) for price in removed))
    ModelPrice.objects.filter(pk__in=[price.pk for price in removed]).delete()
    for price, _ in changed:
        price.save()
    tx.record_many("modelprice.create", ((price, None, price.as_record()) for price, old in changed if old is None))
    tx.record_many("modelprice.update", ((price, old, price.as_record()) for price, old in changed if old is not None))
    ModelPrice.objects.check_document()


def _check(price: ModelPrice) -> None:
    """Raise ValidationError, with the model and the field, if a price of the catalogue breaks a rule."""
    try:
        price.full_clean(validate_unique=False, validate_constraints=False)
    except ValidationError as exc:
        rows = exc.message_dict.items()
        raise ValidationError([f"{price.pattern}, {name}: {text}" for name, texts in rows for text in texts]) from exc


def learn_estimates(actor: Actor, now: datetime, reason: str = "") -> tuple[OpenChange, list[EstimateChange]]:
    """
    Learn numbers for estimates from the metered usage, publish those that differ enough from the present ones, and
    return the change with what it did.

    A second run on the same usage changes nothing, also at the same time.
    """
    with change(actor=actor, reason=reason) as tx:
        lock_prices()
        found = estimates.changes(list(estimates.measure(now)), now)
        _apply_estimates(tx, found, now)
    return tx, found


def _apply_estimates(tx: OpenChange, found: Sequence[EstimateChange], now: datetime) -> None:
    """Make the learned numbers what the changes say, with an audit entry for each."""
    present = LearnedEstimate.objects.filter(name__in=[one.name for one in found])
    rows = {(row.kind, row.name): row for row in present}
    records = {key: row.as_record() for key, row in rows.items()}
    for one in found:
        if one.measured is None:
            continue
        row = rows.setdefault((one.kind, one.name), LearnedEstimate(kind=one.kind, name=one.name))
        for name in ("requests", "projects", "error"):
            setattr(row, name, getattr(one.measured, name))
        row.numbers, row.changed_at = list(one.measured.numbers), now
        row.full_clean(validate_unique=False)
        row.save()
    gone = [rows[one.kind, one.name] for one in found if one.measured is None]
    keys = [(one.kind, one.name) for one in found if one.measured is not None]
    before = [(rows[key], records.get(key)) for key in keys]
    tx.record_many("learnedestimate.delete", ((row, row.as_record(), None) for row in gone))
    tx.record_many("learnedestimate.create", ((row, None, row.as_record()) for row, old in before if old is None))
    tx.record_many("learnedestimate.update", ((row, old, row.as_record()) for row, old in before if old is not None))
    LearnedEstimate.objects.filter(pk__in=[row.pk for row in gone]).delete()
    if found:
        ModelPrice.objects.check_document()


def raise_addends(now: datetime) -> list[ModelAddend]:
    """
    Publish what providers add to requests by themselves, as far as they have reported more than is published, and
    return the addends that were raised. One of the same pattern is raised once in ten minutes at most.
    """
    if not ModelAddend.objects.due(now).exists():
        return []  # the usual case costs one query
    with change(actor=Actor("raise_addends", "task"), reason="a bound was broken") as tx:
        lock_prices()
        addends = list(ModelAddend.objects.due(now))
        records = [row.as_record() for row in addends]
        for row in addends:
            row.tokens, row.raised_at = row.reported, now
            row.save(update_fields=["tokens", "raised_at"])
        tx.record_many("modeladdend.update", zip(addends, records, [row.as_record() for row in addends], strict=True))
    return addends


def forget_addend(tx: OpenChange, addend: ModelAddend) -> bool:
    """
    Publish no more what was reported for a pattern, with an audit entry, and return whether anything was published. The
    next report of more tokens than are reserved raises it again.
    """
    lock_prices()
    addend.refresh_from_db()
    if not addend.tokens:
        return False
    before = addend.as_record()
    addend.tokens, addend.reported, addend.raised_at = 0, 0, timezone.now()
    addend.save(update_fields=["tokens", "reported", "raised_at"])
    tx.updated(addend, before)
    return True
