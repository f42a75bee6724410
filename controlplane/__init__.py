"""The control plane, in which operators manage projects, tokens and limits that are published to every proxy."""

import sys

from controlplane import aliases
from enforcement.extras import Requirement

if sys.version_info < (3, 12):  # noqa: UP036  (the version of the library, whose package this is, is lower)
    raise ImportError(f"The control plane needs Python 3.12 or newer, got {sys.version.split()[0]}.")

aliases.install()

# Celery's app has to be there whenever Django starts, so that tasks are sent by it.
with Requirement("The control plane", "sluicegate[controlplane]"):
    from controlplane.celery import app as celery_app

__all__ = ["celery_app"]
