from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.celery import app
from controlplane.releases.publishing import tasks
from controlplane.releases.publishing.models import OutboxEntry, Revision
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_every_scheduled_task_exists(settings):
    """A typing error in the schedule would be a task that never runs."""
    app.loader.import_default_modules()

    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= set(app.tasks)


def test_pending_changes_are_published(store):
    """What a request could not publish, the task does."""
    OutboxEntry.objects.create(kind="project", object_id=ProjectFactory().pk)

    assert tasks.publish_pending() == 1


def test_a_task_may_run_twice(store):
    """The second run finds nothing to do."""
    OutboxEntry.objects.create(kind="project", object_id=ProjectFactory().pk)
    tasks.publish_pending()

    assert tasks.publish_pending() is None
    assert Revision.objects.count() == 1


def test_a_task_without_a_change_asks_no_store(client_of_store, django_assert_num_queries):
    """It runs every two seconds."""
    before = client_of_store.info("stats")["total_commands_processed"]

    with django_assert_num_queries(1):
        assert tasks.publish_pending() is None

    # The first reading itself is counted in the second.
    assert client_of_store.info("stats")["total_commands_processed"] == before + 1


def test_a_store_that_is_away_fails_no_task(store):
    """The next run is the retry: no traceback every two seconds."""
    OutboxEntry.objects.create(kind="project", object_id=ProjectFactory().pk)
    store.kill()

    assert tasks.publish_pending() is None
    assert OutboxEntry.objects.filter(revision=None).count() == 1
    assert tasks.reconcile() == []
    assert tasks.reconcile_fully() == []


def test_an_emptied_store_is_refilled_by_the_frequent_task(store, client_of_store):
    """It runs every five seconds, so an emptied store is whole again within ten."""
    tasks.reconcile()
    client_of_store.flushall()

    assert tasks.reconcile() == ["the store was empty"]


def test_a_tampered_document_is_repaired_by_the_task_of_the_minute(store, client_of_store):
    """The full comparison is too dear for every five seconds."""
    tasks.reconcile()
    client_of_store.hset("sg:{doc}:documents", "global", "{}")

    assert tasks.reconcile() == []
    assert tasks.reconcile_fully() == ["the document global differed"]


def test_the_outbox_is_pruned_after_a_month(store):
    """What was published long ago goes; what is pending stays, however old."""
    month_ago = timezone.now() - timedelta(days=31)
    old = Revision.objects.create(number=1, published_at=month_ago)
    new = Revision.objects.create(number=2, published_at=timezone.now())
    for revision in (old, new, None):
        OutboxEntry.objects.create(kind="global", revision=revision, created_at=month_ago)

    assert tasks.prune_outbox() == 1
    assert set(OutboxEntry.objects.values_list("revision", flat=True)) == {2, None}
