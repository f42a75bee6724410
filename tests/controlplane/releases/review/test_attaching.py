"""A token or project gets another policy only after its review."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Token
from controlplane.releases.review import attaching
from controlplane.releases.review.attaching import tokens_review
from controlplane.releases.review.reviews import with_preview
from controlplane.traffic.callers.models import RecordedMinute
from controlplane.web.kit.forms import version_of
from tests.controlplane.pages import html_of
from tests.controlplane.web.kit.reviews import ReviewForm, enforce
from tests.controlplane.web.kit.test_forms import NEW_PROJECT, PROJECTS, TOKENS
from tests.factories import LimitFactory, MembershipFactory, PolicyFactory, ProjectFactory, TokenFactory

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


def test_a_project_gets_another_policy_after_its_review(as_ann, token, strict, project_form, sent):
    """Its requests are replayed together under the limits that they would have."""
    sent(token, 30, minutes_ago=30, now=timezone.now())
    url = f"{PROJECTS}{token.project_id}/change/"

    review = as_ann.post(url, project_form | {"policy": strict.pk})

    page = html_of(review)
    token.project.refresh_from_db()
    assert "Project chat gets the policy strict, in place of free" in page
    assert "1 of 1 caller and 20 of 30 requests would have been limited." in page
    assert 'value="shadow"' not in page
    assert (token.project.policy.slug, AuditEntry.objects.count()) == ("free", 0)

    assert "Say why" in html_of(as_ann.post(url, ReviewForm(review).fields))
    assert "Nothing is saved yet." in html_of(as_ann.post(url, ReviewForm(review).fields | {"_back": "1"}))
    as_ann.post(url, ReviewForm(review).fields | {"change_reason": "Cost"})
    token.project.refresh_from_db()
    assert (token.project.policy.slug, AuditEntry.objects.get().reason) == ("strict", "Cost")


def test_the_review_names_what_else_changes(as_ann, token, strict, project_form):
    """Whatever is confirmed with the policy is shown with it."""
    changed = {"policy": strict.pk, "partition_cap": 500, "token_policy": strict.pk}

    page = html_of(as_ann.post(f"{PROJECTS}{token.project_id}/change/", project_form | changed))

    assert "Values counted per limit: 10,000 → 500" in page
    assert "Policy for new tokens: none → strict" in page


def test_a_token_that_loses_its_policy_is_reviewed(as_ann, token):
    """All of its limits go, so nothing of it would be limited, which is no lack of data."""
    fields = {"name": "web", "policy": "", "labels": "team = red", "seen_version": version_of(token)}
    url = f"{TOKENS}{token.pk}/change/"

    review = as_ann.post(url, fields)

    assert "loses the policy free" in html_of(review)
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

    page = html_of(as_ann.post(url, ReviewForm(review).fields | {"change_reason": "Cost"}))

    assert "was changed after you opened it" in page
    assert 'value="Typed"' in page
    token.project.refresh_from_db()
    assert token.project.policy.slug == "free"


@pytest.fixture
def anonymous(token):
    """Thirty requests without a token, in one minute."""
    at = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=30)
    RecordedMinute.objects.create(project_id=token.project_id, at=at, allowed=30, cost=30, part_0=30, seconds=1)


def test_another_policy_of_requests_without_a_token_is_reviewed(as_ann, token, free, strict, project_form, anonymous):
    """They are a caller of their own."""
    token.project.anonymous_policy = free
    token.project.save()
    fields = {**project_form, "policy": free.pk, "seen_version": version_of(token.project)}
    url = f"{PROJECTS}{token.project_id}/change/"

    review = as_ann.post(url, fields | {"anonymous_policy": strict.pk})

    page = html_of(review)
    assert "Requests without a token of chat get the policy strict, in place of free" in page
    assert "10 requests per minute for all requests without a token" in page
    assert "1 of 1 caller and 20 of 30 requests would have been limited." in page
    enforce(as_ann, review)
    token.project.refresh_from_db()
    assert token.project.anonymous_policy.slug == "strict"


@pytest.mark.parametrize(
    ("before", "after", "told", "denied"),
    [
        (True, False, "Requests without a token of chat are refused", "30 of 30 requests"),
        (False, True, "are admitted under the policy free, where a proxy admits them", "5 of 30 requests"),
    ],
)
def test_without_a_policy_for_them_all_are_refused(
    as_ann, token, free, project_form, anonymous, before, after, told, denied
):
    """So taking it away denies more, and giving one denies less."""
    token.project.anonymous_policy = free if before else None
    token.project.save()
    fields = {**project_form, "policy": free.pk, "seen_version": version_of(token.project)}

    page = html_of(
        as_ann.post(f"{PROJECTS}{token.project_id}/change/", fields | {"anonymous_policy": free.pk if after else ""})
    )

    assert told in page
    assert denied in page
    assert ("Required, because requests may be denied" in page) == before


def test_two_changes_of_a_project_are_reviewed_together(as_ann, token, free, strict, project_form):
    """The page says which of them is not replayed."""
    url = f"{PROJECTS}{token.project_id}/change/"

    page = html_of(as_ann.post(url, project_form | {"policy": strict.pk, "anonymous_policy": free.pk}))

    assert (
        "Project chat gets the policy strict, in place of free. Requests without a token of chat are admitted" in page
    )
    assert "This part of the change is not replayed here." in page


def chosen(*tokens, **more):
    return {
        "action": "policy_selected",
        "_selected_action": [one.pk for one in tokens],
        "change_reason": "Cost",
        **more,
    }


def test_a_policy_for_many_tokens_is_reviewed(as_ann, token, free, strict, sent):
    """What becomes of each limit is told for the tokens of each former policy, and all are replayed together."""
    others = [TokenFactory(policy=strict), TokenFactory(policy=None)]
    for one in (token, *others):
        sent(one, 30, minutes_ago=30, now=timezone.now())

    review = as_ann.post(f"{TOKENS}?q=", chosen(token, *others, policy="strict"))

    page = html_of(review)
    assert "2 tokens get the policy strict" in page
    assert ("1 token of free" in page, "1 token without a policy" in page) == (True, True)
    assert "2 of 2 callers and 40 of 60 requests would have been limited." in page
    assert not AuditEntry.objects.exists()
    form = html_of(as_ann.post(f"{TOKENS}?q=", ReviewForm(review).fields | {"_back": "1"}))
    assert 'value="strict"' in form
    assert enforce(as_ann, review, "Cost").status_code == 302
    assert {one.policy for one in Token.objects.all()} == {strict}
    assert {entry.reason for entry in AuditEntry.objects.all()} == {"Cost"}


def test_tokens_that_lose_their_policies_are_told_in_words(as_ann, token, free):
    """Nothing is denied that passed before, so nothing is replayed."""
    review = as_ann.post(TOKENS, chosen(token, policy=""))

    page = html_of(review)
    assert "1 token loses its policy" in page
    assert "Nothing is denied that passed before." in page
    enforce(as_ann, review)
    token.refresh_from_db()
    assert token.policy is None


def test_tokens_that_have_the_policy_already_need_no_review(as_ann, token, free):
    """Nothing changes for them."""
    assert as_ann.post(TOKENS, chosen(token, policy="free")).status_code == 302


def test_too_many_tokens_are_told_and_not_replayed(token, free, strict, sent, monkeypatch):
    """The page says so, which is no zero."""
    monkeypatch.setattr(attaching, "MOST_REPLAYED", 1)
    other = TokenFactory(policy=free)
    for one in (token, other):
        sent(one, 30, minutes_ago=30, now=timezone.now())

    review = tokens_review(Token.objects.all(), strict, timezone.now())

    found = with_preview(review, timezone.now(), others=False).preview
    assert (review.tokens, found.has_data, found.callers) == (2, False, 0)
    assert [one.limit for one in found.unknown] == ["2 tokens"]


def test_an_editor_reviews_the_own_tokens(client, token, free, sent):
    """The preview counts no tokens of other projects."""
    LimitFactory(policy=PolicyFactory(slug="chat--strict", project=token.project), quota=10)
    sent(token, 30, minutes_ago=30, now=timezone.now())
    other = TokenFactory(policy=free, name="secret-name")
    sent(other, 900, minutes_ago=30, now=timezone.now())
    client.force_login(MembershipFactory(project=token.project, role="editor").user)

    page = html_of(client.post(TOKENS, chosen(token, other, policy="chat--strict", select_across="1")))

    assert "1 of 1 caller and 20 of 30 requests" in page
    assert "secret-name" not in page
