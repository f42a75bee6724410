"""The control plane, in which operators manage projects, tokens and limits that are published to every proxy."""

from controlplane.celery import app as celery_app

__all__ = ["celery_app"]
