"""
The kinds of jobs. A room registers its own, with the function that does one slice of such a job.

The configuration of its app names the modules that do so as ``job_modules``. A worker imports them with the first job.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError

from controlplane.operations.jobs.models import Job

Slice = Callable[[Job], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind of job.

    Attributes:
        work: Does one slice, of about half a second, and returns whether it was the last one. It sets ``done``,
            ``total``, ``position`` and ``result`` of the job, and saves none of them.
        writes: Whether a slice changes rows. It then runs in one transaction with the progress, so a slice that was
            interrupted has changed nothing. Otherwise it runs outside of a transaction, and may run twice.
    """

    work: Slice
    writes: bool


class FailedWithResult(ValidationError):
    """Raised by a slice whose job fails with a *result*. As with any other error, the slice itself is undone."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


_kinds: dict[str, Kind] = {}


def kind(name: str, *, writes: bool = True) -> Callable[[Slice], Slice]:
    """Return a decorator that registers the function of one slice of the jobs of this kind. See :class:`Kind`."""

    def register(work: Slice) -> Slice:
        _kinds[name] = Kind(work, writes)
        return work

    return register


def kind_of(job: Job) -> Kind | None:
    """Return the kind of a job, or None if this release does not know it."""
    _register_all()
    return _kinds.get(job.kind)


@cache
def _register_all() -> None:
    for config in apps.get_app_configs():
        for module in getattr(config, "job_modules", ()):
            import_module(module)
