"""The step between the form of a policy and its new state."""

import csv
import io

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Token
from tests.controlplane.pages import html_of
from tests.controlplane.web.kit.reviews import ReviewForm
from tests.controlplane.web.kit.test_forms import POLICIES, fields_of, policy_fields
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def policy():
    return PolicyFactory(slug="free")


@pytest.fixture
def limit(policy):
    return LimitFactory(policy=policy, name="per-minute", quota=25, algorithm="sliding_window")


@pytest.fixture
def save(as_ann, policy):
    """Save the form of the policy with changed limits, as far as the review."""

    def post(*limits, **changed):
        fields = policy_fields(policy, *limits, initial=policy.limits.count(), **changed)
        return as_ann.post(f"{POLICIES}{policy.pk}/change/", fields)

    return post


@pytest.fixture
def confirm(as_ann, policy):
    """Post a review with a decision."""

    def post(response, **decision):
        return as_ann.post(f"{POLICIES}{policy.pk}/change/", ReviewForm(response).fields | decision)

    return post


def test_a_tighter_limit_is_reviewed_before_it_is_saved(save, limit, token, sent):
    """The review says what changes, whom it concerns and what it would have denied, and nothing is saved."""
    sent(token, 30, minutes_ago=30, now=timezone.now())

    page = html_of(save(fields_of(limit, quota=10)))

    assert "free gets tighter: 25 becomes 10 (per-minute)" in page
    assert "1 of 1 caller and 20 of 30 requests would have been limited." in page
    assert "<del>25 requests per minute for each token or project, counted in a sliding window</del>" in page
    assert "Use 17" in page
    assert (Limit.objects.get().quota, AuditEntry.objects.count()) == (25, 0)


def test_the_review_names_what_else_changes(save, confirm, limit, token):
    """A name or text that nobody feels is confirmed with the rest."""
    page = save(fields_of(limit, quota=10), slug="frei", description="For trials")

    said = html_of(page)
    assert "Slug: free → frei" in said
    assert "Description: none → For trials" in said
    other = ReviewForm(page).fields | {"_start": "enforce", "change_reason": "Cost", "slug": "gratis"}
    assert "The change would do something else" in html_of(confirm(page, **other))
    assert Policy.objects.get().slug == "free"


def test_shadow_first_measures_a_candidate_beside_what_is_enforced(save, confirm, limit, token, policy):
    """The limit keeps its quota, and the new one is counted by a shadow with its name."""
    response = confirm(save(fields_of(limit, quota=10)), change_reason="Cost of the free plan")

    assert response.status_code == 302
    assert list(policy.limits.values_list("name", "quota", "mode")) == [
        ("per-minute", 25, "enforce"),
        ("per-minute.candidate", 10, "shadow"),
    ]
    assert AuditEntry.objects.get().reason == "Cost of the free plan"


def test_enforce_now_saves_what_the_form_says(save, confirm, limit, token):
    """One press more than without a review."""
    confirm(save(fields_of(limit, quota=10)), _start="enforce", change_reason="Cost")

    assert list(Limit.objects.values_list("name", "quota", "mode")) == [("per-minute", 10, "enforce")]


def test_a_second_candidate_replaces_the_first(save, confirm, limit, token, policy):
    """One candidate of a limit is measured at a time."""
    confirm(save(fields_of(limit, quota=10)), change_reason="First")
    candidate = Limit.objects.get(name="per-minute.candidate")
    policy.refresh_from_db()

    confirm(
        save(fields_of(limit, quota=12), fields_of(candidate, quota=10, mode="shadow", algorithm="sliding_window")),
        change_reason="Second",
    )

    assert list(policy.limits.values_list("name", "quota")) == [("per-minute", 25), ("per-minute.candidate", 12)]


@pytest.mark.parametrize("start", ["shadow", "enforce"])
def test_a_reason_is_required_where_more_is_denied(save, confirm, limit, token, start):
    """Without a reason the review comes back and says so."""
    page = html_of(confirm(save(fields_of(limit, quota=10)), _start=start, change_reason="  "))

    assert "Say why, because requests may be denied that passed before." in page
    assert Limit.objects.get().quota == 25


def test_the_confirmation_of_one_change_is_none_of_another(save, confirm, limit, token):
    """What is posted with it would do something else than what was read."""
    response = save(fields_of(limit, quota=10))
    page = html_of(confirm(response, **{"limits-0-quota": "1"}, _start="enforce", change_reason="Cost"))

    assert "The change would do something else than when you opened the review." in page
    limit.refresh_from_db()
    assert limit.quota == 25


def test_an_unknown_start_is_refused(save, confirm, limit, token):
    """A start that the page does not offer changes nothing."""
    assert "Choose how to start." in html_of(confirm(save(fields_of(limit, quota=10)), _start="canary"))
    assert Limit.objects.get().quota == 25


def test_a_looser_limit_needs_no_reason_and_no_shadow(save, confirm, limit, token):
    """A shadow would see only what passes today."""
    response = save(fields_of(limit, quota=50))
    assert 'value="shadow"' not in html_of(response)

    assert confirm(response).status_code == 302
    assert Limit.objects.get().quota == 50


def test_a_removed_limit_is_reviewed(save, confirm, limit, token):
    """Removing a limit lets everything pass, so the page says that it goes."""
    response = save({**fields_of(limit), "DELETE": "on"})

    assert "free loses per-minute" in html_of(response)
    confirm(response)
    assert not Limit.objects.exists()


def test_a_shadow_that_is_enforced_is_reviewed(save, limit, token):
    """From then on it denies."""
    Limit.objects.update(mode="shadow")

    assert "free: per-minute is enforced" in html_of(save(fields_of(limit, quota=25)))


def test_use_another_quota_stays_on_the_review(save, confirm, limit, token):
    """The button puts the quota into the same form, without a script."""
    page = html_of(confirm(save(fields_of(limit, quota=10)), _use="per-minute=16"))

    assert "25 becomes 16 (per-minute)" in page
    assert Limit.objects.get().quota == 25


def test_the_week_is_one_press_away(save, confirm, limit, token, sent):
    """Requests of five days ago count for a week and not for a day."""
    sent(token, 30, minutes_ago=5 * 24 * 60, now=timezone.now())
    first = save(fields_of(limit, quota=10))
    assert "No data" in html_of(first)

    assert "In the last 7 days 1 of 1 caller" in html_of(confirm(first, _span="7d"))


def test_back_to_the_form_keeps_what_was_typed(save, confirm, limit, token):
    """Nothing is saved, and the form has the new quota."""
    page = html_of(confirm(save(fields_of(limit, quota=10)), _back="1"))

    assert "Nothing is saved yet." in page
    assert 'name="limits-0-quota" value="10"' in page


def test_a_lost_update_is_refused_on_the_second_step(save, confirm, limit, token, policy):
    """Somebody else saved the policy while the review was open."""
    response = save(fields_of(limit, quota=10))
    Policy.objects.update(name="Renamed", version=7)

    page = html_of(confirm(response, _start="enforce", change_reason="Cost"))

    assert "was changed after you opened it" in page
    assert Limit.objects.get().quota == 25


@pytest.mark.parametrize("changed", [{"name": "Renamed"}, {}])
def test_names_need_no_review(save, limit, token, changed):
    """What nobody feels is saved at once."""
    assert save(fields_of(limit, quota=25), **changed).status_code == 302


def test_a_policy_of_nobody_needs_no_review(save, limit):
    """A policy that is being written denies nobody."""
    assert save(fields_of(limit, quota=10)).status_code == 302


def test_a_shadow_of_several_projects_is_reviewed(save, limit, token):
    """What concerns more than one project is shown even if it denies nothing."""
    TokenFactory(policy=limit.policy)
    Limit.objects.update(mode="shadow")

    assert "the shadow limit per-minute changes" in html_of(save(fields_of(limit, quota=10, mode="shadow")))


def test_a_new_limit_starts_in_shadow_unless_chosen(save, confirm, limit, token, policy):
    """Shadow is chosen already."""
    new = {"name": "per-hour", "quota": 50, "window_seconds": "1 hour"}

    confirm(save(fields_of(limit, quota=25), new), change_reason="New plan")

    assert policy.limits.get(name="per-hour").mode == "shadow"


def test_overrides_and_unknown_limits_are_said(save, limit, token, sent):
    """The override stays, and a path is not recorded."""
    OverrideFactory(limit=limit, token=token, quota=60)
    sent(token, 30, minutes_ago=30, now=timezone.now())

    page = html_of(save(fields_of(limit, quota=10, match_path="/v1/*")))

    assert "The path of requests is not recorded. Shadow shows it from now on." in page
    assert "<dt>Overrides that stay</dt><dd>1</dd>" in page


def test_a_caller_with_an_override_is_not_called_limited(save, limit, token, sent):
    """It stands right of the line, because it sends more, and passes."""
    OverrideFactory(limit=limit, token=token, quota=60)
    sent(token, 30, minutes_ago=30, now=timezone.now())

    assert "would be limited, unless an override gives more." in html_of(save(fields_of(limit, quota=10)))


def test_an_editor_learns_nothing_of_other_projects(client, sent):
    """Tokens, requests and names of the preview are those of the editor's projects."""
    project = ProjectFactory(slug="chat")
    policy = PolicyFactory(slug="chat--free", project=project)
    limit = LimitFactory(policy=policy, name="per-minute", quota=25)
    token = TokenFactory(project=project, policy=policy)
    sent(token, 30, minutes_ago=30, now=timezone.now())
    sent(TokenFactory(name="secret-name"), 900, minutes_ago=30, now=timezone.now())
    client.force_login(MembershipFactory(project=project, role="editor").user)

    page = html_of(
        client.post(f"{POLICIES}{policy.pk}/change/", policy_fields(policy, fields_of(limit, quota=10), initial=1))
    )

    assert "1 of 1 caller and 20 of 30 requests" in page
    assert "secret-name" not in page


def test_the_form_offers_a_new_limit_in_shadow(as_ann, policy):
    """Whoever wants it enforced from the start chooses that."""
    page = as_ann.get(f"{POLICIES}{policy.pk}/change/").content.decode()

    assert '<option value="shadow" selected>' in page
    assert '<option value="enforce" selected>' not in page


def file_of(client, response) -> list[dict[str, str]]:
    """The lines of the file of a review, and nothing else happens."""
    fields = ReviewForm(response).fields | {"_file": "csv", "_start": "enforce", "change_reason": "x"}
    file = client.post(response.request["PATH_INFO"], fields, QUERY_STRING=response.request["QUERY_STRING"])
    assert file["Content-Disposition"] == 'attachment; filename="free-affected.csv"'
    assert AuditEntry.objects.count() == 0
    return list(csv.DictReader(io.StringIO(file.getvalue().decode())))


def test_a_file_has_all_callers_that_a_change_would_limit(save, as_ann, limit, sent, monkeypatch):
    """The most denied first, also those that the page leaves out. Nothing is saved."""
    monkeypatch.setattr("controlplane.releases.preview.previews.MOST_AFFECTED", 1)
    for name, requests in (("=web", 15), ("batch", 30), ("quiet", 3)):
        token = TokenFactory(policy=limit.policy, name=name, project__slug=f"of-{name.strip('=')}")
        sent(token, requests, minutes_ago=30, now=timezone.now())
    review = save(fields_of(limit, quota=10))

    lines = file_of(as_ann, review)

    names = ("caller", "name", "project", "requests", "would_deny", "busiest_minute")
    assert [[line[name] for name in names] for line in lines] == [
        ["token", "batch", "of-batch", "30", "20", "30"],
        ["token", "'=web", "of-web", "15", "5", "15"],
    ]
    assert "1 more caller: 5 requests." in html_of(review)
    assert Limit.objects.get().quota == 25


def test_a_file_of_a_change_that_limits_nobody_has_its_head_only(save, as_ann, limit, token):
    """And saves nothing either, although the change needs no review any more."""
    review = save(fields_of(limit, quota=10))
    Token.objects.update(policy=None)

    assert file_of(as_ann, review) == []
    assert Limit.objects.get().quota == 25


def test_a_file_has_only_callers_of_the_projects_that_the_user_may_see(client, policy, limit, sent):
    """Of a shadow limit that is to be enforced, too."""
    own, other = ProjectFactory(slug="own"), ProjectFactory(slug="other")
    Policy.objects.update(project=own)
    Limit.objects.update(mode="shadow", quota=10)
    for project in (own, other):
        sent(TokenFactory(project=project, name=project.slug), 30, minutes_ago=30, now=timezone.now())
    Token.objects.update(policy=policy)
    client.force_login(MembershipFactory(project=own, role="editor").user)

    review = client.get(f"{POLICIES}{policy.pk}/enforce/?limit=per-minute")

    assert [line["name"] for line in file_of(client, review)] == ["own"]
    assert Limit.objects.get().mode == "shadow"
