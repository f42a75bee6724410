import json

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.operations.explain import live_counters
from controlplane.releases.publishing import publisher
from tests.factories import (
    LimitFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_reset_reaches_the_change_log(actor, store, client_of_store):
    """Enforcers forget what they remember of a token when its counters are reset."""
    token, limit = TokenFactory(), LimitFactory(name="minute")
    publisher.publish_all()

    with change(actor=actor, reason="support call") as tx:
        live_counters.record_reset(tx, token, limit)

    _, entry = client_of_store.xrevrange("sg:{doc}:log", count=1)[0]
    assert json.loads(entry["changes"])["resets"] == [{"project": token.project_id, "token": token.pk}]
    assert AuditEntry.objects.get().after == {"limit": f"{limit.policy.slug}/minute"}


def test_two_resets_of_one_thing_are_both_published(actor, store):
    """A second reset, after a publication, is no repetition of the first."""
    token = TokenFactory()
    for expected in (1, 2):
        with change(actor=actor) as tx:
            live_counters.record_reset(tx, token)
        assert tx.revision == expected
