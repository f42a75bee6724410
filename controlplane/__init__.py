"""The control plane: who is limited, by what, and how it reaches every proxy."""

from controlplane.celery import app as celery_app

__all__ = ["celery_app"]
