"""A token or project gets another policy only after its review."""

import pytest
from django.utils import timezone

from controlplane.adminkit.forms import version_of
from controlplane.policies.models import AuditEntry
from tests.controlplane.adminkit.reviews import ReviewForm
from tests.controlplane.adminkit.test_changes import NEW_PROJECT, PROJECTS, TOKENS
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def free():
    return LimitFactory(policy__slug="free", name="per-minute", quota=25).policy


@pytest.fixture
def strict():
    return LimitFactory(policy__slug="strict", name="per-minute", quota=10).policy


@pytest.fixture
def token(free):
    return TokenFactory(project=ProjectFactory(slug="chat", policy=free), policy=free, name="web")


@pytest.fixture
def project_form(token):
    """What the form of the project sends, with the strict policy."""
    project = token.project
    return {**NEW_PROJECT, "slug": "chat", "active": "on", "partition_cap": 10_000, "seen_version": version_of(project)}


def text_of(response):
    assert response.status_code == 200, response.headers
    return response.content.decode()


def test_a_project_gets_another_policy_after_its_review(as_ann, token, strict, project_form, sent):
    """Its requests are replayed together under the limits that they would have."""
    sent(token, 30, minutes_ago=30, now=timezone.now())
    url = f"{PROJECTS}{token.project_id}/change/"

    review = as_ann.post(url, project_form | {"policy": strict.pk})

    page = text_of(review)
    token.project.refresh_from_db()
    assert "Project chat gets the policy strict, in place of free" in page
    assert "1 of 1 caller and 20 of 30 requests would have been limited." in page
    assert 'value="shadow"' not in page
    assert (token.project.policy.slug, AuditEntry.objects.count()) == ("free", 0)

    assert "Say why" in text_of(as_ann.post(url, ReviewForm(review).fields))
    assert "Nothing is saved yet." in text_of(as_ann.post(url, ReviewForm(review).fields | {"_back": "1"}))
    as_ann.post(url, ReviewForm(review).fields | {"change_reason": "Cost"})
    token.project.refresh_from_db()
    assert (token.project.policy.slug, AuditEntry.objects.get().reason) == ("strict", "Cost")


def test_a_token_that_loses_its_policy_is_reviewed(as_ann, token):
    """All of its limits go, so nothing of it would be limited, which is no lack of data."""
    fields = {"name": "web", "policy": "", "labels": "team = red", "seen_version": version_of(token)}
    url = f"{TOKENS}{token.pk}/change/"

    review = as_ann.post(url, fields)

    assert "loses the policy free" in text_of(review)
    as_ann.post(url, ReviewForm(review).fields)
    token.refresh_from_db()
    assert (token.policy, token.labels) == (None, {"team": "red"})


def test_what_nobody_feels_needs_no_review(as_ann, free, strict):
    """A project without live tokens, and another policy with the same limits."""
    project, twin = ProjectFactory(policy=free), LimitFactory(policy__slug="twin", name="per-minute", quota=25).policy
    token = TokenFactory(policy=free)
    fields = {**NEW_PROJECT, "slug": project.slug, "policy": strict.pk, "seen_version": version_of(project)}

    saved = [
        as_ann.post(f"{PROJECTS}{project.pk}/change/", fields),
        as_ann.post(
            f"{TOKENS}{token.pk}/change/",
            {"name": "web", "policy": twin.pk, "seen_version": version_of(token)},
        ),
    ]

    assert [response.status_code for response in saved] == [302, 302]


def test_a_lost_update_is_refused_on_the_second_step(as_ann, token, strict, project_form):
    """Somebody else saved the project while the review was open. What was typed stays."""
    url = f"{PROJECTS}{token.project_id}/change/"
    review = as_ann.post(url, project_form | {"policy": strict.pk, "name": "Typed"})
    type(token.project).objects.update(name="Renamed", version=7)

    page = text_of(as_ann.post(url, ReviewForm(review).fields | {"change_reason": "Cost"}))

    assert "was changed after you opened it" in page
    assert 'value="Typed"' in page
    token.project.refresh_from_db()
    assert token.project.policy.slug == "free"
