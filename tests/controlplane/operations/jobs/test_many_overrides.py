"""Overrides that are deleted in their list: some at once, very many by a job, and none that have ended."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.operations.jobs import many_overrides, run
from controlplane.operations.jobs.models import Job
from tests.controlplane.web.kit.reviews import enforce
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)
LIST = "/admin/policies/override/"


@pytest.fixture
def rows(store):
    """Overrides of tokens and of a project, in two projects."""
    limit = LimitFactory(name="per-minute", quota=5)
    holders = [{"token": TokenFactory(project__slug="chat")}, {"token": TokenFactory(project__slug="shop")}]
    holders.append({"token": None, "project": ProjectFactory(slug="third")})
    return [OverrideFactory(limit=limit, **holder) for holder in holders]


def all_of(rows, **more):
    ticked = [row.pk for row in rows[:1]]
    return {"action": "delete_selected", "select_across": "1", "index": "0", "_selected_action": ticked, **more}


def test_few_are_deleted_at_once(as_ann, rows):
    """After their review. Each is in the audit, with the reason."""
    review = as_ann.post(LIST, all_of(rows, post="yes", change_reason="over"))
    assert "3 overrides are deleted" in review.content.decode()

    enforce(as_ann, review, "over")

    assert not Override.objects.exists()
    assert AuditEntry.objects.filter(action="override.delete", reason="over").count() == 3
    assert not Job.objects.exists()


def test_many_are_deleted_by_a_job(as_ann, rows, monkeypatch):
    """The page says so before, and leads to its progress. The job names the projects that it concerns."""
    monkeypatch.setattr(many_overrides, "MOST_IN_A_REQUEST", 2)
    monkeypatch.setattr(run, "AT_ONCE", 2)

    review = as_ann.post(LIST, all_of(rows))
    asked, response = review.content.decode(), enforce(as_ann, review, "over")
    job = Job.objects.get()
    kept = Override.objects.count()
    run.run_all(10.0)

    assert "so a job deletes them" in asked
    assert (response["Location"].startswith("/admin/jobs/job/"), kept, job.title) == (True, 3, "Delete 3 overrides")
    assert set(job.projects.values_list("slug", flat=True)) == {"chat", "shop", "third"}
    assert Job.objects.get().result == {"deleted": 3, "left as they were": 0}
    assert not Override.objects.exists()
    assert AuditEntry.objects.filter(action="override.delete", reason="over", actor="ann").count() == 3


def test_a_job_deletes_no_override_that_its_author_may_not_change_any_more(client, store, monkeypatch):
    """What was done until then stays done."""
    monkeypatch.setattr(many_overrides, "MOST_IN_A_REQUEST", 0)
    member = MembershipFactory(role="editor")
    limit = LimitFactory(policy=PolicyFactory(project=member.project))
    row = OverrideFactory(limit=limit, token=TokenFactory(project=member.project))
    client.force_login(member.user)
    enforce(client, client.post(LIST, all_of([row])))
    member.delete()

    run.run_all(10.0)

    assert Job.objects.get().state == "failed"
    assert Override.objects.exists()


def test_what_has_ended_stays_as_history(as_ann, rows):
    """Nobody deletes it on its own page either."""
    Override.objects.update(ended_at=rows[0].created_at)

    as_ann.post(f"{LIST}?state=ended", all_of(rows, post="yes"))

    assert Override.with_ended.count() == 3
