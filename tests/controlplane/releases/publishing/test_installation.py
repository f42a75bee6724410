"""Two control planes with two databases on one store: one of them publishes, and the other says why it does not."""

import pytest
from django.core.management import CommandError, call_command

from controlplane.core.store import keys
from controlplane.releases.publishing import installation, publisher, tasks
from controlplane.releases.publishing.installation import store_is_ours
from controlplane.releases.publishing.models import Installation, OutboxEntry
from controlplane.releases.publishing.reconcile import reconcile
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def stranger(store, client_of_store):
    """Have another installation publish to the store; return what the store then has."""
    ProjectFactory()
    publisher.publish_all()
    Installation.objects.update(name="ins_another")  # from here on, this database is another one
    return client_of_store.hgetall(keys().documents)


def test_the_first_installation_takes_the_store(store, client_of_store):
    """Also one of 0.2, which has no owner, and one that was emptied."""
    for _ in range(2):
        publisher.publish_all()
        assert client_of_store.get(keys().installation) == Installation.own_id()
        assert (installation.other_owner(client_of_store), store_is_ours()) == (None, [])
        client_of_store.delete(keys().installation)


def test_another_installation_publishes_nothing_and_says_why(stranger, client_of_store, caplog):
    """Before, each reconciler published everything over the other, for ever and without a word."""
    ProjectFactory(slug="mine")
    owner = client_of_store.get(keys().installation)

    with pytest.raises(publisher.Postponed, match=f"belongs to another installation of the control plane .{owner}"):
        reconcile()
    with pytest.raises(CommandError, match="or take it over"):
        call_command("publish", "--all")
    assert tasks.publish_pending() is None
    assert "Nothing was published: The store belongs to another installation" in caplog.text
    assert client_of_store.hgetall(keys().documents) == stranger
    (found,) = store_is_ours()
    assert (found.id, found.msg.endswith("Nothing is published.")) == ("sluicegate.W009", True)


def test_a_new_epoch_takes_the_store_over(stranger, client_of_store):
    """On purpose, with a reason in the audit. The other installation then publishes nothing more."""
    owner = client_of_store.get(keys().installation)
    project = ProjectFactory(slug="mine")

    call_command("publish", "--all", "--new-epoch", "--reason", "the old control plane is gone")

    assert client_of_store.hexists(keys().documents, f"project:{project.pk}")
    assert not OutboxEntry.objects.filter(revision=None).exists()
    assert reconcile(full=True) == []
    Installation.objects.update(name=owner)
    with pytest.raises(publisher.Postponed, match="ins_another"):
        reconcile()
