"""
``python -m controlplane.stack.health web ADDRESS|worker|beat SCHEDULE``: exit with 0 if that part is alive.

A container's health check runs this beside the process that it is about.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

# Beat writes its schedule every three minutes.
OLDEST_SCHEDULE_SECONDS = 400


def web(address: str) -> None:
    """Ask the server at host:port for /healthz, under a name that ALLOWED_HOSTS lets in."""
    from django.conf import settings

    host = settings.ALLOWED_HOSTS[0].removeprefix(".")
    request = urllib.request.Request(f"http://{address}/healthz", headers={"Host": host})
    urllib.request.urlopen(request, timeout=3).close()


def worker() -> None:
    """Ask the worker of this host, over the broker."""
    from controlplane.celery import app

    name = f"celery@{socket.gethostname()}"
    if not app.control.ping(destination=[name], timeout=5, limit=1):
        sys.exit(f"{name} does not answer.")


def beat(schedule: str) -> None:
    """Look at the age of the file in which beat notes what it sent."""
    age = time.time() - Path(schedule).stat().st_mtime
    if age > OLDEST_SCHEDULE_SECONDS:
        sys.exit(f"Beat has not written {schedule} for {age:.0f} s.")


if __name__ == "__main__":
    {"web": web, "worker": worker, "beat": beat}[sys.argv[1]](*sys.argv[2:])
