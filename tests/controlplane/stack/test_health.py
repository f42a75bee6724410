"""The health checks of the containers of worker and beat, with and without a broker."""

import os
import shelve
import subprocess
import sys
from pathlib import Path

import pytest

from enforcement.embedded import free_port
from tests.controlplane.stack.parts import SECRET_KEY
from tests.repository import ROOT


def checked(broker: str, folder, *part: str) -> subprocess.CompletedProcess[str]:
    given = {"SLUICEGATE_REDIS_URL": broker, "SLUICEGATE_VAR": str(folder), "SECRET_KEY": SECRET_KEY}
    return subprocess.run(
        [sys.executable, "-m", "controlplane.stack.health", *part],
        env={**os.environ, **given, "DJANGO_SETTINGS_MODULE": "controlplane.settings"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_worker_that_does_not_reply_is_not_healthy(store, tmp_path):
    """The broker answers, so it is the worker that does not."""
    done = checked(store.url, tmp_path, "worker")

    assert done.returncode == 1
    assert "does not reply" in done.stderr


@pytest.fixture
def old_schedule(tmp_path):
    """The file of a beat that has not written it for longer than it may."""
    file = tmp_path / "schedule"
    file.touch()
    os.utime(file, (0, 0))
    return str(file)


def test_a_beat_that_hangs_is_not_healthy(store, tmp_path, old_schedule):
    done = checked(store.url, tmp_path, "beat", old_schedule)

    assert done.returncode == 1
    assert "must be at most 400 s old" in done.stderr


@pytest.mark.skipif(sys.version_info < (3, 13), reason="earlier versions have no shelf in SQLite")
def test_a_beat_that_writes_beside_the_file_is_healthy(store, tmp_path, old_schedule):
    """Celery saves the schedule by a shelf, which is a database of SQLite since Python 3.13."""
    Path(old_schedule).unlink()
    with shelve.open(old_schedule, writeback=True) as schedule:
        os.utime(old_schedule, (0, 0))
        schedule["entries"] = {"name": "x" * 100}
        schedule.sync()
        assert checked(store.url, tmp_path, "beat", old_schedule).returncode == 0


@pytest.mark.parametrize("part", ["worker", "beat"])
def test_an_outage_of_the_broker_restarts_nobody(tmp_path, old_schedule, part):
    """Beat writes no schedule while it reconnects. Nobody would fill the store when it is back."""
    more = [old_schedule] if part == "beat" else []

    done = checked(f"redis://127.0.0.1:{free_port()}/0", tmp_path, part, *more)

    assert (done.returncode, done.stderr) == (0, "")
    assert "The broker does not answer" in done.stdout
