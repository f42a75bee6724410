"""Settings of processes that tests start."""

from datetime import timedelta
from importlib import reload

from controlplane.schedule import SCHEDULE
from tests import quick_settings


def test_loading_them_twice_calls_no_task_more_often():
    """A fork of a process that has the settings loads them again; a worker that gets too many tasks drops them all."""
    reload(reload(quick_settings))

    assert quick_settings.CELERY_BEAT_SCHEDULE["publish-pending"]["schedule"] == SCHEDULE["publish-pending"]["schedule"] / 5
    assert SCHEDULE["publish-pending"]["schedule"] == timedelta(seconds=2)
