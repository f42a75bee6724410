"""Who sees a job, and what its page and REST say."""

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from tests.controlplane.operations.jobs.conftest import count_to_three
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob(db):
    return User.objects.create_user("bob", is_staff=True)


def page_of(job):
    return reverse("admin:jobs_job_change", args=[job.pk])


def test_the_page_shows_the_progress(as_ann, ann, work, begin):
    """It names what is done, of how much, and by whom it was started."""
    work(count_to_three)
    job = begin(user=ann, reason="leaked")
    run.run_next()

    page = as_ann.get(page_of(job)).content.decode()

    assert "Count to three" in page
    assert "1 of 3 done." in page
    assert "leaked" in page
    assert 'value="1"' in page
    part = as_ann.get(reverse("admin:jobs_job_progress", args=[job.pk])).content.decode()
    assert "1 of 3 done." in part
    assert "<html" not in part


def test_a_job_is_cancelled_on_its_page(as_ann, ann, begin):
    """A second time says that it has ended."""
    job = begin(user=ann)
    cancel = reverse("admin:jobs_job_cancel", args=[job.pk])

    assert "The job is cancelled." in as_ann.post(cancel, follow=True).content.decode()
    assert "The job has ended already" in as_ann.post(cancel, follow=True).content.decode()
    assert as_ann.get(cancel).status_code == 405


def test_users_see_their_own_jobs_only(client, bob, ann, begin):
    """The id of another one is not found, by any address."""
    own, other = begin("Own", user=bob), begin("Another", user=ann)
    client.force_login(bob)

    listed = client.get(reverse("admin:jobs_job_changelist")).content.decode()

    assert "Own" in listed
    assert "Another" not in listed
    assert client.get(page_of(own)).status_code == 200
    assert client.get(page_of(other)).status_code == 404
    assert client.get(reverse("admin:jobs_job_progress", args=[other.pk])).status_code == 404
    assert client.post(reverse("admin:jobs_job_cancel", args=[other.pk])).status_code == 404
    other.refresh_from_db()
    assert other.is_active


def test_an_operator_sees_all_jobs(as_ann, bob, begin):
    """And may cancel them."""
    job = begin("Of bob", user=bob)

    assert "Of bob" in as_ann.get(reverse("admin:jobs_job_changelist")).content.decode()
    assert as_ann.get(page_of(job)).status_code == 200


def test_the_page_of_a_batch_names_the_wrong_items(as_ann, ann, begin):
    """In words, and with the error of each."""
    error = {"pointer": "#/items/3/slug", "code": "unique", "detail": "Is taken already."}
    result = {"checked": 1300, "created": 0, "invalid": 1, "errors": [error]}
    ended = {"state": "failed", "error": "1 item is not valid, of 1,300. Nothing was created."}
    job = begin("Create 1,300 policies", user=ann, total=1300, result=result, **ended)
    Job.objects.update(kind="batch")

    page = as_ann.get(page_of(job)).content.decode()

    assert "1 item is not valid, of 1,300. Nothing was created." in page
    assert "1,300 items are checked, and 1 of them is not valid." in page
    assert "#/items/3/slug" in page
    assert "Is taken already." in page
    assert "{&#x27;pointer" not in page


def test_rest_shows_and_cancels_a_job(api, begin):
    """A deletion cancels, once."""
    job = begin(ids=["tok_1"])

    assert api("GET", f"jobs/{job.pk}").json() == {
        "id": job.pk,
        "kind": "test",
        "title": "Count to three",
        "state": "waiting",
        "done": 0,
        "total": 1,
        "result": {},
        "error": "",
        "created_at": job.created_at.isoformat().replace("+00:00", "Z"),
        "ended_at": None,
    }
    assert api("DELETE", f"jobs/{job.pk}").status_code == 204
    assert api("GET", f"jobs/{job.pk}").json()["state"] == "cancelled"
    again = api("DELETE", f"jobs/{job.pk}")
    assert (again.status_code, again.json()["code"]) == (409, "job_ended")


def test_a_limited_key_sees_its_own_jobs_and_those_of_its_projects(call, begin):
    """Not those that concern another project too, even if it has started them."""
    mine, theirs = ProjectFactory(slug="mine"), ProjectFactory(slug="theirs")
    key = ManagementKeyFactory(scopes=["jobs:read"], projects=[mine])
    jobs = {
        "own": begin(key=key),
        "mine": begin(projects=[mine]),
        "theirs": begin(projects=[theirs]),
        "both": begin(key=key, projects=[mine, theirs]),
        "none": begin(),
    }

    found = {name: call("GET", f"jobs/{job.pk}", key=key).status_code for name, job in jobs.items()}

    assert found == {"own": 200, "mine": 200, "theirs": 404, "both": 404, "none": 404}
