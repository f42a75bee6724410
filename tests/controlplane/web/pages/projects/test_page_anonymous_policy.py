"""A project's anonymous policy in the admin."""

import html

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from controlplane.web.kit.forms import version_of
from tests.controlplane.web.kit.reviews import enforce
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

PROJECTS = "/admin/projects/project/"


def save(as_ann, project, policy):
    """Send the form that changes a project."""
    fields = {"slug": project.slug, "name": "A", "active": "on", "partition_cap": 9, "time_zone": "UTC"}
    fields |= {"anonymous_policy": policy, "seen_version": version_of(project)}
    return as_ann.post(f"{PROJECTS}{project.pk}/change/", fields, follow=True)


def test_it_is_chosen_in_the_form_and_audited(as_ann, store):
    """And the page of the policy says who uses it."""
    project, policy = ProjectFactory(), PolicyFactory(slug="guests")
    enforce(as_ann, save(as_ann, project, policy.pk))

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


@pytest.mark.parametrize(
    ("token", "whom"),
    [
        (False, "for each project's requests without a token and each ip,"),
        (True, "for each token or project with this policy, and for each project's requests without a token and each"),
    ],
)
def test_the_sentence_of_its_limit_says_whose_requests_it_counts(as_ann, token, whom):
    """In the list, and while a limit is typed."""
    limit = LimitFactory(name="per-ip", quota=5, partition_by=["ip"])
    project = ProjectFactory(anonymous_policy=limit.policy)
    if token:
        TokenFactory(project=project, policy=limit.policy)

    typed = {
        "policy": limit.policy.pk,
        "name": "per-ip",
        "quota": 5,
        "window_seconds": "1 minute",
        "partition_by": "ip",
    }
    usual = {"algorithm": "fixed_window", "unit": "requests", "mode": "enforce", "consistency": "strict"}
    fields = {f"limits-0-{name}": value for name, value in {**usual, **typed, "on_store_failure": "local"}.items()}
    posted = {"limits-TOTAL_FORMS": 1, "policy": limit.policy.pk, **fields}
    reply = as_ann.post("/admin/policies/policy/advice/", posted)

    listed = html.unescape(as_ann.get("/admin/policies/policy/").content.decode())
    assert "5 requests per minute for each ip<" in listed
    assert "requests without a token of 1 project" in listed
    assert whom in reply.json()["limits"]["limits-0"]["sentence"]
