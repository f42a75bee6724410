"""Settings of processes that tests start."""

from datetime import timedelta
from importlib import reload

from controlplane.schedule import SCHEDULE
from tests import quick_settings


def test_loading_them_twice_calls_no_task_more_often():
    """A fork of a process that has the settings loads them again; a worker that gets too many tasks drops them all."""
    reload(reload(quick_settings))

    name, seldom = "publish-pending", timedelta(seconds=2)
    assert (SCHEDULE[name]["schedule"], quick_settings.CELERY_BEAT_SCHEDULE[name]["schedule"]) == (seldom, seldom / 5)
