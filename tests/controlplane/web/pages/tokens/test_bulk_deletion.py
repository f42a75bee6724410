"""A project with many tokens is deleted by a job, some tokens at a time."""

import pytest
from django.contrib.admin.utils import quote

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs import many_tokens, run
from controlplane.operations.jobs.models import Job
from controlplane.releases.publishing import publisher
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)
from tests.million.measuring import counted

pytestmark = pytest.mark.django_db(transaction=True)

TOKENS = 7
CONFIRMED = {"post": "yes", "object_name": "chat"}


@pytest.fixture
def chat(store, monkeypatch):
    """A published project with more tokens than a request deletes, and a policy and an override of its own."""
    monkeypatch.setattr(many_tokens, "MOST_IN_A_REQUEST", TOKENS - 1)
    monkeypatch.setattr(run, "AT_ONCE", 3)
    monkeypatch.setattr(run, "SLICE_SECONDS", 0.0)
    project = ProjectFactory(slug="chat")
    tokens = TokenFactory.create_batch(TOKENS, project=project)
    OverrideFactory(token=tokens[0], limit=LimitFactory(policy=PolicyFactory(project=project)))
    publisher.publish_all()
    return project


def url_of(project):
    return f"/admin/projects/project/{quote(project.pk)}/delete/"


def test_its_page_starts_a_job_that_deletes_all_of_it(as_ann, told, chat, document, client_of_store):
    """Until then the project is inactive, so that no proxy admits some of its tokens and refuses the others."""
    digests = list(Token.objects.values_list("digest", flat=True))
    page = as_ann.get(url_of(chat)).content.decode()
    response = as_ann.post(url_of(chat), CONFIRMED, follow=True)

    assert "a job deletes them, and then the project" in page
    assert "Delete the project chat" in response.content.decode()
    assert told(response) == ["chat is inactive, and a job deletes it with all of its tokens. Published as revision 2."]
    assert document(f"project:{chat.pk}")["active"] is False
    assert Token.objects.count() == TOKENS
    run.run_all(60.0)
    job = Job.objects.get()
    assert (job.state, job.done, job.total, job.result) == ("done", TOKENS, TOKENS, {"deleted tokens": TOKENS})
    assert not Project.objects.exists()
    assert not Override.objects.exists()
    assert document(f"project:{chat.pk}") is None
    assert not client_of_store.exists(*(f"sg:{{doc}}:token:{digest}" for digest in digests))
    deleted = AuditEntry.objects.filter(actor="ann", action__endswith=".delete").values_list("action", flat=True)
    assert sorted(deleted) == ["override.delete", "policy.delete", "project.delete", *["token.delete"] * TOKENS]


def test_a_second_deletion_leads_to_the_same_job(as_ann, chat):
    """Until that has ended."""
    for _ in range(2):
        as_ann.post(url_of(chat), CONFIRMED)
    job = Job.objects.get()
    run.cancel(job)
    as_ann.post(url_of(chat), CONFIRMED)

    assert Job.objects.exclude(pk=job.pk).count() == 1


def test_a_token_that_is_added_meanwhile_is_deleted_too(as_ann, chat):
    """The project would stay otherwise."""
    as_ann.post(url_of(chat), CONFIRMED)
    run.run_next()
    TokenFactory(project=chat, name="late")
    run.run_all(60.0)

    assert Job.objects.get().done == TOKENS + 1
    assert not Project.objects.exists()


def test_a_project_that_is_deleted_meanwhile_ends_the_job(as_ann, chat):
    """As one with few tokens is, at once."""
    as_ann.post(url_of(chat), CONFIRMED)
    run.run_next()
    as_ann.post(url_of(chat), CONFIRMED)
    run.run_all(60.0)

    assert Job.objects.get().state == "done"
    assert AuditEntry.objects.filter(action="project.delete").count() == 1


def test_what_the_request_reads_does_not_grow_with_the_tokens(as_ann, chat):
    """A request reads no token, whether it asks or starts the job."""

    def cost():
        with counted() as asked:
            as_ann.get(url_of(chat))
        with counted() as posted:
            as_ann.post(url_of(chat), CONFIRMED)
        Job.objects.all().delete()
        return (asked.queries, asked.rows), posted.queries, posted.rows

    cost()  # the first one makes the project inactive
    before = cost()
    TokenFactory.create_batch(20, project=chat)

    assert cost() == before


@pytest.mark.parametrize("role", ["editor", "viewer"])
def test_the_job_ends_when_its_author_is_no_owner_any_more(client, chat, role):
    """What was deleted until then stays deleted, and the project stays inactive."""
    user = MembershipFactory(project=chat, role="owner").user
    client.force_login(user)
    client.post(url_of(chat), CONFIRMED)
    run.run_next()
    Membership.objects.update(role=role)
    run.run_all(60.0)

    job = Job.objects.get()
    assert (job.state, job.done, Token.objects.count()) == ("failed", 3, TOKENS - 3)
    assert job.error.startswith(f"{user.username} may not change chat any more.")
    assert not Project.objects.get().active


def test_several_projects_are_deleted_from_the_list_only_if_all_have_few_tokens(as_ann, told, chat):
    """Each of the others has a page that starts its job."""
    other = ProjectFactory(slug="other")
    chosen = {"action": "delete_selected", "_selected_action": [chat.pk, other.pk], "index": "0"}
    response = as_ann.post("/admin/projects/project/", {**chosen, "post": "yes", "object_name": "2 projects"})

    text = f"These projects have more than {TOKENS - 1} tokens together. Delete each of them on its own page."
    assert told(as_ann.get(response.headers["Location"])) == [text]
    assert Project.objects.count() == 2
    Token.objects.first().delete()
    as_ann.post("/admin/projects/project/", {**chosen, "post": "yes", "object_name": "2 projects"})
    assert not Project.objects.exists()


def test_rest_starts_the_job(api, chat):
    """The response has its address. The deletion of an inactive project that waits for it changes nothing."""
    started = [api("DELETE", "projects/chat", Sluicegate_Reason="closed") for _ in range(2)]
    job = Job.objects.get()

    assert [(one.status_code, one.json()) for one in started] == [(202, {"job": job.pk})] * 2
    assert [one["Location"] for one in started] == [f"/api/v1/jobs/{job.pk}"] * 2
    assert (started[0]["Sluicegate-Revision"], job.reason) == ("2", "closed")
    assert api("GET", "projects/chat").json()["active"] is False
    run.run_all(60.0)
    assert api("GET", f"jobs/{job.pk}").json()["state"] == "done"
    assert api("GET", "projects/chat").status_code == 404


def test_a_key_of_the_project_deletes_it_and_ends(call, chat):
    """At the end it has no project left, so it is revoked."""
    key = ManagementKeyFactory(scopes=["projects:write"], projects=[chat])
    call("DELETE", "projects/chat", key=key)
    run.run_all(60.0)

    assert not Project.objects.exists()
    assert not ManagementKey.objects.get(pk=key.pk).is_live


@pytest.mark.parametrize(
    "changes",
    [
        lambda key, other: ManagementKey.objects.filter(pk=key.pk).update(scopes=["projects:read"]),
        lambda key, other: key.projects.set([other]),
        lambda key, other: ManagementKey.objects.get(pk=key.pk).revoke(key.created_at),
        lambda key, other: ManagementKey.objects.filter(pk=key.pk).delete(),
    ],
    ids=["scope", "project", "revoked", "deleted"],
)
def test_the_job_of_a_key_ends_when_the_key_may_not_do_it_any_more(call, chat, changes):
    """Between two slices."""
    key = ManagementKeyFactory(scopes=["projects:write"], projects=[chat])
    call("DELETE", "projects/chat", key=key)
    run.run_next()
    changes(key, ProjectFactory())
    run.run_all(60.0)

    assert (Job.objects.get().state, Token.objects.count()) == ("failed", TOKENS - 3)
