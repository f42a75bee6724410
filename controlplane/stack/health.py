"""
The health check of a container, which exits with 0 if the process in the container is alive.

    python -m controlplane.stack.health web ADDRESS
    python -m controlplane.stack.health worker
    python -m controlplane.stack.health beat SCHEDULE
"""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

# Beat writes its schedule every three minutes.
OLDEST_SCHEDULE_SECONDS = 400


def web(address: str) -> None:
    """Request /healthz from the server at host:port, with a host name of ALLOWED_HOSTS, or raise URLError."""
    from django.conf import settings

    host = settings.ALLOWED_HOSTS[0].removeprefix(".")
    request = urllib.request.Request(f"http://{address}/healthz", headers={"Host": host})
    urllib.request.urlopen(request, timeout=3).close()


def worker() -> None:
    """Ping the worker of this host over the broker, and exit with an error if it does not reply."""
    from controlplane.celery import app

    name = f"celery@{socket.gethostname()}"
    if _reaches_broker() and not app.control.ping(destination=[name], timeout=5, limit=1):
        sys.exit(f"{name} does not reply.")


def beat(schedule: str) -> None:
    """Exit with an error if the file in which beat saves its schedule is old, which it is while beat reconnects."""
    # Python 3.13 keeps it in SQLite, which writes to the file beside it and to this one only now and then.
    files = [path for path in (Path(schedule), Path(f"{schedule}-wal")) if path.exists()]
    age = time.time() - max((path.stat().st_mtime for path in files), default=0)
    if age > OLDEST_SCHEDULE_SECONDS and _reaches_broker():
        sys.exit(f"{schedule}: must be at most {OLDEST_SCHEDULE_SECONDS} s old, but beat wrote it {age:.0f} s ago.")


def _reaches_broker() -> bool:
    """
    Return whether the broker answers. Without it, nobody knows whether a process is well.

    Worker and beat reconnect by themselves. Kubernetes waits for up to five minutes before it starts one again that it
    has ended several times, also if the store is back meanwhile.
    """
    from kombu.exceptions import OperationalError

    from controlplane.celery import app

    try:
        with app.connection_for_write() as broker:
            broker.ensure_connection(max_retries=1, interval_start=0.5, timeout=3)
    except OperationalError as exc:
        print(f"The broker does not answer: {exc}")
        return False
    return True


CHECKS: dict[str, Callable[..., None]] = {"web": web, "worker": worker, "beat": beat}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](*sys.argv[2:])
