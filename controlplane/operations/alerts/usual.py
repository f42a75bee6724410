"""The rules that every installation has from the start."""

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.core.transactions import take_turn
from controlplane.operations.alerts.models import AlertRule
from controlplane.operations.alerts.rule_kinds import BROKEN, RESERVATIONS

# Id, name and kind. Somebody who deletes one, or makes it inactive, does not get it back: the audit knows its id.
USUAL = (
    ("alr_usual_reservations", "Reservations are lost", RESERVATIONS),
    ("alr_usual_bounds", "Bounds are broken", BROKEN),
)


def add_usual() -> int:
    """Save those of the usual rules that there never were, without destinations, and return their number."""
    ids = [pk for pk, _, _ in USUAL]
    known = set(
        AuditEntry.objects.filter(object_type="alertrule", object_id__in=ids).values_list("object_id", flat=True)
    )
    if known.issuperset(ids):
        return 0
    with change(actor=Actor("alerts", "task"), reason="usual alert rules") as tx:
        take_turn("usual alert rules")  # of two workers, the second one finds what the first one has saved
        added = [AlertRule(pk=pk, name=name, kind=kind) for pk, name, kind in USUAL if pk not in known]
        added = [rule for rule in added if not AlertRule.objects.filter(pk=rule.pk).exists()]
        for rule in added:
            rule.full_clean()
            rule.save(force_insert=True)
            tx.created(rule)
    return len(added)
