"""An override is saved or deleted in the admin only after its review."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from tests.controlplane.pages import html_of
from tests.controlplane.web.kit.reviews import ReviewForm, enforce
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db
LIST = "/admin/policies/override/"


@pytest.fixture
def token(token, sent):
    sent(token, 70, minutes_ago=30, now=timezone.now())
    return token


@pytest.fixture
def override(limit, token):
    return OverrideFactory(limit=limit, token=token, quota=60)


def fields_of(client, override, **changed):
    """What the form of an override sends."""
    page = client.get(f"{LIST}{override.pk}/change/")
    form = {"limit": override.limit_id, "token": override.token_id, "quota": override.quota, "reason": override.reason}
    return {**form, "seen_version": page.context["adminform"].form.initial["seen_version"], **changed}


def test_a_lower_override_is_reviewed_before_it_is_saved(as_ann, limit, token):
    """The review has the preview with the numbers as they will be, and the reason of the override."""
    fields = {"limit": limit.pk, "token": token.pk, "quota": 10, "reason": "abuse"}

    review = as_ann.post(f"{LIST}add/", fields)

    page = html_of(review)
    assert "The override of free/per-minute for the token web begins: 25 becomes 10" in page
    assert "1 of 1 caller and 60 of 70 requests would have been limited." in page
    assert ("<strong>Reason:</strong> abuse" in page, 'name="change_reason"' in page) == (True, False)
    assert not Override.objects.exists()
    assert enforce(as_ann, review).status_code == 302
    assert (Override.objects.get().quota, AuditEntry.objects.get().reason) == (10, "abuse")


def test_what_only_gives_more_is_told_without_a_replay(as_ann, limit, token):
    """Words and numbers, and one press."""
    review = as_ann.post(f"{LIST}add/", {"limit": limit.pk, "token": token.pk, "quota": 90, "reason": "launch"})

    page = html_of(review)
    assert "Nothing is denied that passed before. Its limits denied nothing in the last 24 hours." in page
    assert ("25 becomes 90" in page, "would have been limited" in page) == (True, False)
    assert enforce(as_ann, review).status_code == 302
    assert Override.objects.get().quota == 90


def test_a_changed_override_is_reviewed(as_ann, override):
    """Against what it was, and not against the limit."""
    review = as_ann.post(f"{LIST}{override.pk}/change/", fields_of(as_ann, override, quota=40))

    assert "60 becomes 40" in html_of(review)
    assert Override.objects.get().quota == 60
    assert "Nothing is saved yet." in html_of(
        as_ann.post(f"{LIST}{override.pk}/change/", ReviewForm(review).fields | {"_back": "1"})
    )
    enforce(as_ann, review)
    assert Override.objects.get().quota == 40


def test_another_reason_needs_no_review(as_ann, override):
    """Nobody feels it."""
    saved = as_ann.post(f"{LIST}{override.pk}/change/", fields_of(as_ann, override, reason="Another"))

    assert saved.status_code == 302
    assert Override.objects.get().reason == "Another"


def test_a_deletion_is_asked_for_by_its_review(as_ann, override):
    """The page that asks is the review, so it takes as many clicks as before."""
    url = f"{LIST}{override.pk}/delete/"

    review = as_ann.get(url)

    page = html_of(review)
    assert "The override of free/per-minute for the token web ends: 60 becomes 25" in page
    assert "45 of 70 requests would have been limited." in page
    assert "Delete the override" in page
    assert "Say why" in html_of(as_ann.post(url, ReviewForm(review).fields))
    assert "In the last 7 days" in html_of(as_ann.post(url, ReviewForm(review).fields | {"_span": "7d"}))
    assert Override.objects.exists()
    assert enforce(as_ann, review, "over").status_code == 302
    assert (Override.objects.exists(), AuditEntry.objects.get().reason) == (False, "over")


def test_a_deletion_that_was_not_reviewed_deletes_nothing(as_ann, override):
    """A program that posts the old confirmation gets the review."""
    page = html_of(as_ann.post(f"{LIST}{override.pk}/delete/", {"post": "yes", "change_reason": "x"}))

    assert "Nothing is saved yet." in page
    assert Override.objects.exists()


@pytest.mark.parametrize("way", ["delete", "change"])
def test_a_review_that_is_out_of_date_confirms_nothing(as_ann, override, way):
    """Somebody else has changed the limit, so the change would do something else."""
    url = f"{LIST}{override.pk}/{way}/"
    review = as_ann.get(url) if way == "delete" else as_ann.post(url, fields_of(as_ann, override, quota=40))
    Limit.objects.update(quota=30, algorithm="sliding_log")

    page = html_of(enforce(as_ann, review))

    assert "The change would do something else than when you opened the review." in page
    assert Override.objects.get().quota == 60


def test_selected_overrides_are_reviewed_together(as_ann, override):
    """Those of one policy are replayed together."""
    other = OverrideFactory(limit=override.limit, token=TokenFactory(policy=override.limit.policy), quota=90)
    chosen = {"action": "delete_selected", "_selected_action": [override.pk, other.pk]}

    review = as_ann.post(f"{LIST}?q=free", chosen)

    page = html_of(review)
    assert "2 overrides are deleted" in page
    assert "1 of 1 caller and 45 of 70 requests would have been limited." in page
    assert "Say why" in html_of(as_ann.post(f"{LIST}?q=free", ReviewForm(review).fields))
    enforce(as_ann, review)
    assert not Override.objects.exists()


def test_a_long_selection_is_told_in_part(as_ann, override, monkeypatch):
    """The page says how many changes it leaves out."""
    monkeypatch.setattr("controlplane.releases.review.reviews.MOST_TOLD", 1)
    others = [OverrideFactory(limit=override.limit, token=TokenFactory(policy=override.limit.policy)) for _ in range(2)]
    chosen = {"action": "delete_selected", "_selected_action": [row.pk for row in (override, *others)]}

    page = html_of(as_ann.post(LIST, chosen))

    assert ("3 overrides are deleted" in page, "And 2 more." in page, page.count("<del>")) == (True, True, 1)


def test_a_selection_that_has_changed_is_reviewed_again(as_ann, override):
    """Nothing is deleted that nobody has seen."""
    chosen = {"action": "delete_selected", "_selected_action": [override.pk], "select_across": "1"}
    review = as_ann.post(LIST, chosen)
    OverrideFactory(limit=override.limit, token=TokenFactory(policy=override.limit.policy))

    page = html_of(enforce(as_ann, review))

    assert "The selected rows are not the same" in page
    assert "2 overrides are deleted" in page
    assert Override.objects.count() == 2


def test_an_editor_learns_nothing_of_other_projects(client, sent):
    """The preview of a deletion counts the callers of the editor's projects."""
    policy = PolicyFactory(slug="chat--free", project=ProjectFactory(slug="chat"))
    limit = LimitFactory(policy=policy, name="per-minute", quota=25)
    token = TokenFactory(project=policy.project, policy=policy)
    rows = [
        OverrideFactory(limit=limit, token=token),
        Override.objects.create(limit=limit, project=policy.project, quota=500, reason="x"),
    ]
    sent(token, 30, minutes_ago=30, now=timezone.now())
    sent(TokenFactory(name="secret-name"), 900, minutes_ago=30, now=timezone.now())
    client.force_login(MembershipFactory(project=policy.project, role="editor").user)

    page = html_of(client.post(LIST, {"action": "delete_selected", "_selected_action": [row.pk for row in rows]}))

    assert "1 of 1 caller and 5 of 30 requests" in page
    assert "secret-name" not in page
