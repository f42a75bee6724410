import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from django.db import connection

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOON_MINUTE = 29_925_360  # minutes since the epoch
USAGE = "sg:{usage}:stream"


def row(minute: int = NOON_MINUTE, **changed) -> list:
    """One row of a batch: one permitted request of tok_1, unless fields are changed."""
    fields = {"project": "proj_1", "token": "tok_1", "policy": "", "limit": "", "unit": "requests"}
    fields |= {"allowed": 1, "denied": 0, "would_deny": 0, "cost": 1}
    return [minute, *(fields | changed).values()]


@pytest.fixture
def report_usage(client_of_store) -> Callable[..., str]:
    """Append a batch as an enforcer does: ``report_usage("proxy-1-1", row(), row(...))``."""

    def send(batch_id: str, *rows: list) -> str:
        return client_of_store.xadd(USAGE, {"id": batch_id, "instance": "proxy-1", "rows": json.dumps(rows)})

    return send


@pytest.fixture
def environment(store, transactional_db) -> dict[str, str]:
    """What a process of the control plane is told, to work on the database and the store of the test."""
    name, user, port = (connection.settings_dict[key] for key in ("NAME", "USER", "PORT"))
    database = f"sqlite:///{name}" if connection.vendor == "sqlite" else f"postgres://{user}@127.0.0.1:{port}/{name}"
    return {
        **os.environ,
        "DATABASE_URL": database,
        "SLUICEGATE_REDIS_URL": store.url,
        "DJANGO_SETTINGS_MODULE": "tests.quick_settings",
    }


@pytest.fixture
def start(environment, settings) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a Python process with these arguments; what is left of its group is killed after the test."""
    started = []

    def run(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, *arguments]
        started.append(subprocess.Popen(command, env=environment, cwd=settings.BASE_DIR, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def run_python(start) -> Callable[[str], subprocess.Popen]:
    """Start a process of the control plane that runs this code."""
    return lambda code: start("-c", f"import django; django.setup()\n{code}")
