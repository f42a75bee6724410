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
    """Celery runs Django's checks and does not look at what they say."""
    from django.core.exceptions import ImproperlyConfigured

    from controlplane.checks import refuse_unsafe_settings

    try:
        refuse_unsafe_settings()
    except ImproperlyConfigured as exc:
        raise SystemExit(str(exc)) from exc  # Celery logs any other exception of a receiver, and goes on


@worker_ready.connect
def check_store(**_: Any) -> None:
    """Every site has a worker, so one of its processes says at start what the store is not set to."""
    from controlplane.checks import warn_of_store

    warn_of_store()


@setup_logging.connect
def keep_logging(**_: Any) -> None:
    """Leave logging as the settings configured it: with a receiver here, Celery does not replace the handlers."""
