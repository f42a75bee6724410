from collections.abc import Callable, Iterator
from typing import Any

import pytest

from controlplane.objects.policies.models import Policy
from controlplane.operations.jobs import kinds, run
from controlplane.operations.jobs.models import Job


@pytest.fixture
def work() -> Iterator[Callable[..., None]]:
    """``work(function)`` makes the function the work of the kind "test"; ``writes=False`` says that it only reads."""

    def register(function: Callable[[Job], bool], *, writes: bool = True) -> None:
        kinds.kind("test", writes=writes)(function)

    yield register
    kinds._kinds.pop("test", None)


@pytest.fixture
def begin(db: None) -> Callable[..., Job]:
    """A job of the kind "test", which ann has started."""

    def start(title: str = "Count to three", **fields: Any) -> Job:
        return run.start("test", title, **{"created_by": "ann", "channel": "admin", **fields})

    return start


def count_to_three(job: Job) -> bool:
    """Make one policy a slice, and three in all."""
    Policy.objects.create(slug=f"made-{job.done}", name="Made")
    job.done, job.total = job.done + 1, 3
    job.result = {"made": job.done}
    return job.done == 3
