"""Projects and policies that are managed from files: their mark, and what the admin lets people do with them."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.web.kit.forms import version_of
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"name": "per-minute", "quota": 5, "window_seconds": 60}


@pytest.fixture
def admin(client):
    client.force_login(UserFactory(operator=True))
    return client


@pytest.fixture
def project():
    return ProjectFactory(slug="chat", name="Chat", managed_by="policies/chat.yaml")


def page(row, query=""):
    return f"/admin/{row._meta.app_label}/{row._meta.model_name}/{row.pk}/change/{query}"


def fields(project, **changed):
    given = {"slug": project.slug, "name": project.name, "active": "on", "partition_cap": 10_000, "time_zone": "UTC"}
    return {**given, "seen_version": version_of(project), **changed}


def test_rest_marks_a_policy_and_a_project(api):
    """The mark is part of the audit, and no change that leaves it out takes it away."""
    api("POST", "projects", {"slug": "chat", "name": "Chat", "managed_by": "chat.yaml"})
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": [LIMIT], "managed_by": "chat.yaml"})

    put = api("PUT", "policies/free", {"slug": "free", "name": "Gratis", "limits": [LIMIT]})

    assert put.json()["managed_by"] == Project.objects.get().managed_by == "chat.yaml"
    assert AuditEntry.objects.first().after["managed_by"] == "chat.yaml"


@pytest.mark.parametrize(("value", "code"), [("a\u202eb", "unprintable"), ("x" * 201, "max_length"), (None, "null")])
def test_a_mark_is_a_short_printable_string(api, value, code):
    """It is shown on pages and in terminals."""
    reply = api("POST", "projects", {"slug": "chat", "name": "Chat", "managed_by": value})

    assert [(error["pointer"], error["code"]) for error in reply.json()["errors"]] == [("#/managed_by", code)]


def test_an_undo_brings_the_mark_back_as_it_was(api, store):
    """A policy that is marked by mistake is as before after the undo."""
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": [LIMIT]})
    marked = api("PATCH", "policies/free", {"managed_by": "chat.yaml"})

    api("POST", f"revisions/{marked['Sluicegate-Revision']}/undo", {"reason": "by mistake"})

    assert Policy.objects.get().managed_by == ""


def test_the_form_is_read_only_and_says_where_the_file_is(admin, project):
    """With a link to the form that can be changed."""
    text = admin.get(page(project)).content.decode()

    assert "policies/chat.yaml" in text
    assert "?edit=anyway" in text
    assert 'name="slug"' not in text
    assert admin.post(page(project), fields(project, name="Other")).status_code == 403


def test_a_policy_shows_its_limits_all_the_same(admin, project):
    """By sentences in place of forms."""
    policy = LimitFactory(policy=PolicyFactory(managed_by="chat.yaml", project=project), name="per-minute").policy
    text = admin.get(page(policy)).content.decode()

    assert "<strong>per-minute</strong>" in text
    assert 'name="limits-0-quota"' not in text
    assert 'name="limits-0-quota"' in admin.get(page(policy, "?edit=anyway")).content.decode()


def test_who_edits_anyway_gives_a_reason(admin, project):
    """Without one, nothing is saved, and the error is at its field."""
    without = admin.post(page(project, "?edit=anyway"), fields(project, name="Other", change_reason=" "))
    project.refresh_from_db()
    before = project.name

    admin.post(page(project, "?edit=anyway"), fields(project, name="Other", change_reason="the site is down"))
    project.refresh_from_db()

    assert without.context["adminform"].form.errors == {"change_reason": ["This field is required."]}
    assert (before, project.name, project.managed_by) == ("Chat", "Other", "policies/chat.yaml")
    assert AuditEntry.objects.first().reason == "the site is down"


def test_lists_show_what_is_managed_from_files(admin, project):
    """And nothing at what is not."""
    ProjectFactory()
    PolicyFactory(managed_by="chat.yaml")
    PolicyFactory()

    for model in ("projects/project", "policies/policy"):
        assert admin.get(f"/admin/{model}/").content.decode().count(">from files<") == 1


def test_control_other_forms_ask_for_no_reason(admin):
    """A project that no file manages is saved without one."""
    project = ProjectFactory(slug="shop", name="Shop")

    admin.post(page(project), fields(project, name="Other"))
    project.refresh_from_db()

    assert project.name == "Other"
