import pytest

from controlplane.celery import app
from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides import tasks
from controlplane.objects.overrides.models import Override
from tests.factories import OverrideFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_overrides_end(store):
    """The usual quota is shown again, the row is kept, and the trace says that it was the task."""
    OverrideFactory(ended=True)

    assert tasks.end_overrides() == 1
    assert not Override.objects.exists()
    assert Override.with_ended.get().ended_at is not None
    assert AuditEntry.objects.get().channel == "task"


def test_the_task_keeps_the_name_that_queues_hold():
    """A message of version 0.2.0 is still run after the upgrade."""
    app.loader.import_default_modules()

    assert app.tasks["controlplane.publishing.tasks.end_overrides"].run == tasks.end_overrides.run
