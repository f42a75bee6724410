"""A project's anonymous policy in the admin."""

import pytest

from controlplane.adminkit.forms import version_of
from controlplane.policies.models import AuditEntry
from controlplane.projects.models import Project
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

PROJECTS = "/admin/projects/project/"


def save(as_ann, project, policy):
    """Send the form that changes a project."""
    fields = {"slug": project.slug, "name": "A", "active": "on", "partition_cap": 9, "anonymous_policy": policy}
    return as_ann.post(f"{PROJECTS}{project.pk}/change/", {**fields, "seen_version": version_of(project)}, follow=True)


def test_it_is_chosen_in_the_form_and_audited(as_ann, store):
    """And the page of the policy says who uses it."""
    project, policy = ProjectFactory(), PolicyFactory(slug="guests")
    save(as_ann, project, policy.pk)

    entry = AuditEntry.objects.get(action="project.update")
    assert Project.objects.get().anonymous_policy == policy
    assert (entry.before["anonymous_policy"], entry.after["anonymous_policy"]) == (None, policy.pk)
    page = as_ann.get(f"/admin/policies/policy/{policy.pk}/change/").content.decode()
    assert "requests without a token of 1 project" in page
    listed = as_ann.get(f"{PROJECTS}?anonymous_policy__id__exact={policy.pk}")
    assert listed.status_code == 200
    assert project.slug in listed.content.decode()


def test_a_policy_of_another_project_is_refused_at_the_field(as_ann, store):
    """By the rule of the model."""
    project, policy = ProjectFactory(), PolicyFactory(project=ProjectFactory())
    response = save(as_ann, project, policy.pk)

    errors = response.context["adminform"].form.errors
    assert errors["anonymous_policy"] == ["Must not be a policy of another project."]


def test_the_live_counters_say_what_they_count(as_ann, store):
    """Beside those of the tokens of the project."""
    policy = PolicyFactory()
    LimitFactory(policy=policy)
    project = ProjectFactory(anonymous_policy=policy)

    assert "requests without a token" in as_ann.get(f"{PROJECTS}{project.pk}/counters/").content.decode()
