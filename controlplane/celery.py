import os
from typing import Any

from celery import Celery, Task
from celery.signals import (
    beat_init,
    before_task_publish,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_init,
    worker_ready,
)
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

app = Celery("controlplane")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
@beat_init.connect
def check_settings(**_: object) -> None:
    """Stop the process if the settings are unsafe, because Celery ignores the errors of Django's checks."""
    from django.core.exceptions import ImproperlyConfigured

    from controlplane.checks import refuse_unsafe_settings

    try:
        refuse_unsafe_settings()
    except ImproperlyConfigured as exc:
        raise SystemExit(str(exc)) from exc  # Celery only logs any other exception of a receiver


@beat_init.connect
def watch_outages(**_: object) -> None:
    """Start the watch for outages of the store in beat, because a worker gets no task while its broker is away."""
    from controlplane.operations.alerts.run import start_watching

    start_watching()


@worker_ready.connect
def check_all(**_: object) -> None:
    """Log all warnings of the checks when a worker starts. Every installation has a worker."""
    from controlplane.checks import warn_at_start

    warn_at_start()


@setup_logging.connect
def keep_logging(**_: object) -> None:
    """Do nothing. With a receiver of this signal, Celery keeps the logging of the settings."""


# The names of what a task takes over from the log lines of the request that sent it.
TAKEN_OVER = ("request_id", "actor", "channel")


@before_task_publish.connect
def send_request_id(headers: dict[str, Any] | None = None, **_: object) -> None:
    """Send the id of the present request along with a task, for the log lines of the task. Beat has none to send."""
    context = get_contextvars()
    if headers is not None:
        headers.update({f"log_{name}": context[name] for name in TAKEN_OVER if name in context})


@task_prerun.connect
def log_task(task_id: str, task: Task, **_: object) -> None:
    """Add the task to every log line that is written for it, and the request that sent it, if there was one."""
    clear_contextvars()  # a process runs many tasks
    sent = {**(task.request.headers or {}), **vars(task.request)}
    taken = {name: sent[f"log_{name}"] for name in TAKEN_OVER if sent.get(f"log_{name}")}
    bind_contextvars(task=task.name, task_id=task_id, **taken)


@task_postrun.connect
def forget_task(**_: object) -> None:
    clear_contextvars()
