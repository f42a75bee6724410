"""The control plane's settings for processes of tests, whose beat calls each task five times as often."""

from datetime import timedelta

from controlplane.settings import *  # noqa: F403  (settings are one flat namespace)
from controlplane.settings import CELERY_BEAT_SCHEDULE as SCHEDULE

CELERY_BEAT_MAX_LOOP_INTERVAL = 0.2
# A schedule of its own: this module may be loaded again in a process that has the other one.
CELERY_BEAT_SCHEDULE = {
    name: entry | {"schedule": entry["schedule"] / 5} if isinstance(entry["schedule"], timedelta) else entry
    for name, entry in SCHEDULE.items()
}
