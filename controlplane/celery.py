import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_init, worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

app = Celery("controlplane")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
@beat_init.connect
def check_settings(**_: Any) -> None:
    """Stop the process if the settings are unsafe, because Celery ignores the errors of Django's checks."""
    from django.core.exceptions import ImproperlyConfigured

    from controlplane.checks import refuse_unsafe_settings

    try:
        refuse_unsafe_settings()
    except ImproperlyConfigured as exc:
        raise SystemExit(str(exc)) from exc  # Celery only logs any other exception of a receiver


@beat_init.connect
def watch_outages(**_: Any) -> None:
    """Start the watch for outages of the store in beat, because a worker gets no task while its broker is away."""
    from controlplane.alerts.evaluating import start_watching

    start_watching()


@worker_ready.connect
def check_all(**_: Any) -> None:
    """Log all warnings of the checks when a worker starts. Every installation has a worker."""
    from controlplane.checks import warn_at_start

    warn_at_start()


@setup_logging.connect
def keep_logging(**_: Any) -> None:
    """Do nothing. With a receiver of this signal, Celery keeps the logging of the settings."""
