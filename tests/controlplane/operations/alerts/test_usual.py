"""Rules that every installation has from the start."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.operations.alerts.models import AlertRule
from controlplane.operations.alerts.usual import USUAL, add_usual

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_rule_tells_of_lost_reservations_from_the_start(store):
    """Its events are listed, and told to nobody until somebody chooses destinations."""
    assert [add_usual(), add_usual()] == [len(USUAL), 0]

    rule = AlertRule.objects.get(pk="alr_usual_reservations")
    assert (rule.kind, rule.active, rule.project_id, rule.destinations.count()) == ("reservations_lost", True, None, 0)
    entry = AuditEntry.objects.get(object_id=rule.pk)
    assert (entry.action, entry.actor, entry.channel) == ("alertrule.create", "alerts", "task")


def test_a_rule_that_was_deleted_does_not_come_back(store):
    add_usual()
    with change(actor=Actor("ann", "admin")) as tx:
        tx.delete(AlertRule.objects.get(pk="alr_usual_reservations"))

    assert add_usual() == 0
    assert not AlertRule.objects.filter(pk="alr_usual_reservations").exists()
