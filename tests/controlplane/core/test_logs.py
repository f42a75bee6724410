"""The log tells which task wrote a line, and which request it goes back to."""

import logging
from typing import Any

import pytest
from celery import shared_task
from celery.worker.request import Request
from django.db import OperationalError
from kombu import Connection
from structlog.contextvars import bound_contextvars, get_contextvars

from controlplane import celery
from controlplane.operations.jobs import kinds, run
from tests.controlplane.core.test_requests import lines  # noqa: F401  (a fixture)

logger = logging.getLogger("controlplane.tests")


@shared_task
def write_a_line(fails: bool = False) -> None:
    logger.warning("A line of a task")
    if fails:
        raise ValueError("wrong")


def run_sent(**arguments: Any) -> None:
    """Send the task through a broker in memory, and execute the message as a worker does."""
    with Connection("memory://") as connection:
        write_a_line.apply_async(kwargs=arguments, connection=connection)
        message = connection.SimpleQueue("celery").get(block=False)
        Request(message, app=celery.app, task=write_a_line).execute()
        message.ack()


def test_a_task_names_itself_and_the_request_that_sent_it(lines):  # noqa: F811
    """The next task of the process knows nothing of it."""
    with bound_contextvars(request_id="req-1", actor="ann", channel="api", secret="x"):
        run_sent()
    run_sent()

    first, second = (line for line in lines() if line["event"] == "A line of a task")
    assert (first["request_id"], first["actor"], first["channel"], "secret" in first) == ("req-1", "ann", "api", False)
    assert first["task"] == second["task"] == "tests.controlplane.core.test_logs.write_a_line"
    assert first["task_id"] != second["task_id"]
    assert "request_id" not in second
    assert get_contextvars() == {}


def test_the_failure_of_a_task_is_found_by_the_request_too(lines):  # noqa: F811
    """Celery writes that line itself."""
    with bound_contextvars(request_id="req-1"):
        run_sent(fails=True)

    (line,) = (line for line in lines() if line["level"] == "error")
    assert (line["request_id"], "ValueError: wrong" in line["exception"]) == ("req-1", True)


@pytest.mark.django_db(transaction=True)
def test_a_slice_of_a_job_names_the_request_that_started_it(lines, monkeypatch):  # noqa: F811
    """A worker runs it, long after the response."""

    def fail(job: Any) -> bool:
        raise OperationalError("database is locked")

    monkeypatch.setitem(kinds._kinds, "test", kinds.Kind(fail, writes=True))
    job = run.start("test", "Count", created_by="ann", channel="admin", request_id="req-1")

    run.run_next()

    (line,) = lines()
    assert (line["job"], line["request_id"], line["actor"]) == (job.pk, "req-1", "ann")
