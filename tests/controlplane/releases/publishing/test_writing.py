"""Objects are written as a change has them, each with its entry, or not at all."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.releases.publishing.writing import write
from tests.factories import PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "api")


@pytest.mark.parametrize("name", ["policy", "active", "partition_cap"])
def test_a_record_that_lacks_a_field_is_not_written(store, name):
    """Nothing stands for no policy, no cap or an active project by accident."""
    project = ProjectFactory(policy=PolicyFactory())
    before = project.as_record()
    after = {key: value for key, value in before.items() if key != name}

    with pytest.raises(KeyError, match=name), change(actor=ANN) as tx:
        write(tx, Change((ObjectChange("project", project.pk, "chat", before, after),)), "undo")

    project.refresh_from_db()
    assert project.as_record() == before
    assert not AuditEntry.objects.exists()


def test_a_field_that_is_left_out_if_empty_becomes_empty(store):
    """For each row a value of its own."""
    tokens = [TokenFactory(labels={"tier": "gold"}) for _ in range(2)]
    records = [token.as_record() for token in tokens]
    wanted = [{key: value for key, value in one.items() if key != "labels"} for one in records]
    changes = [
        ObjectChange("token", token.pk, token.name, one, other)
        for token, one, other in zip(tokens, records, wanted, strict=True)
    ]

    with change(actor=ANN) as tx:
        write(tx, Change(tuple(changes)), "undo")

    for token in tokens:
        token.refresh_from_db()
        assert token.labels == {}
    assert list(AuditEntry.objects.values_list("action", flat=True)) == ["token.undo", "token.undo"]


def test_a_change_of_nothing_writes_nothing(store):
    with change(actor=ANN) as tx:
        write(tx, Change(()), "undo")

    assert tx.is_empty
    assert not AuditEntry.objects.exists()
