"""The list of jobs over REST."""

import pytest

from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db


def job(kind: str, **fields) -> Job:
    return run.start(kind, "Count", created_by="ann", channel="api", **fields)


def listed(response) -> list[str]:
    assert response.status_code == 200, response.content
    return [row["id"] for row in response.json()["results"]]


def test_jobs_are_listed_by_state_and_kind(api):
    """The latest comes first. Who has lost the address of a job finds it."""
    first, second, third = job("batch"), job("count"), job("batch")
    run.cancel(first)

    assert listed(api("GET", "jobs")) == [third.pk, second.pk, first.pk]
    assert listed(api("GET", "jobs?kind=batch&state=waiting")) == [third.pk]
    assert listed(api("GET", "jobs?state=cancelled")) == [first.pk]
    assert api("GET", "jobs?state=stuck").status_code == 400


def test_a_limited_key_lists_jobs_of_its_projects_only(call):
    """And those that it has started itself, unless they concern another project."""
    own, other = ProjectFactory(), ProjectFactory()
    key = ManagementKeyFactory(projects=[own])
    mine, started = job("count", projects=[own]), job("count", key=key)
    job("count", projects=[own, other])
    job("count", projects=[other], key=key)
    job("count")

    assert listed(call("GET", "jobs?page_size=1", key=key)) == [started.pk]
    assert listed(call("GET", "jobs", key=key)) == [started.pk, mine.pk]
