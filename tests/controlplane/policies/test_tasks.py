import pytest

from controlplane.celery import app
from controlplane.policies import tasks
from controlplane.policies.models import AuditEntry, Override
from tests.factories import OverrideFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_ended_overrides_are_removed(store):
    """The usual quota is shown again, and the trace says that it was the task."""
    OverrideFactory(ended=True)

    assert tasks.end_overrides() == 1
    assert not Override.objects.exists()
    assert AuditEntry.objects.get().channel == "task"


def test_the_task_keeps_the_name_that_queues_hold():
    """A message of version 0.2.0 is still run after the upgrade."""
    app.loader.import_default_modules()

    assert app.tasks["controlplane.publishing.tasks.end_overrides"].run == tasks.end_overrides.run
